"""A gRPC service of every kind of call, on plain bytes. Arguments: the address to listen on."""

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc

cancelled = threading.Event()


def unary(request, context):
    metadata = dict(context.invocation_metadata())
    if request == b"metadata":
        context.set_trailing_metadata((("x-count", str(len(metadata))),))
        names = ["x-forwarded-user", "authorization", "te", "x-mine"]
        return "|".join(f"{name}={metadata.get(name, '')}" for name in names).encode()
    if request == b"fail":
        context.set_trailing_metadata((("x-why", "asked"),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as you wish: 100 %")
    if request == b"remaining":
        return str(context.time_remaining()).encode()
    if request == b"was cancelled":
        return b"yes" if cancelled.wait(10) else b"no"
    return request


def server_stream(request, context):
    if request == b"endless":
        context.add_callback(cancelled.set)
        while context.is_active():
            yield b"tick"
            time.sleep(0.05)
        return
    for number in range(int(request)):
        yield str(number).encode()


def client_stream(requests, context):
    return str(sum(len(request) for request in requests)).encode()


def both(requests, context):
    for request in requests:
        if request == b"fail":
            context.abort(grpc.StatusCode.ABORTED, "in the middle")
        yield request


handlers = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
    "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
    "Both": grpc.stream_stream_rpc_method_handler(both),
}
server = grpc.server(ThreadPoolExecutor(32))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
server.add_insecure_port(sys.argv[1])
server.start()
server.wait_for_termination()
