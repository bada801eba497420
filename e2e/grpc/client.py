"""Calls server.py through the gateway and says what came of it, as JSON.

Arguments: the port, the host, a file with the authority's certificate, a token.
"""

import json
import sys
import time

import grpc

port, host, authority, token = sys.argv[1:]
with open(authority, "rb") as file:
    credentials = grpc.ssl_channel_credentials(file.read())
options = (
    ("grpc.ssl_target_name_override", host),
    ("grpc.default_authority", f"{host}:{port}"),
    ("grpc.max_receive_message_length", -1),
)
channel = grpc.secure_channel(f"ipv4:127.0.0.1:{port}", credentials, options)
mine = (("authorization", f"Bearer {token}"), ("x-mine", "here"))
unary = channel.unary_unary("/test.Echo/Unary")
server_stream = channel.unary_stream("/test.Echo/ServerStream")
client_stream = channel.stream_unary("/test.Echo/ClientStream")
both = channel.stream_stream("/test.Echo/Both")


def failure(call):
    try:
        call()
    except grpc.RpcError as error:
        trailers = dict(error.trailing_metadata() or ())
        return {"code": error.code().name, "details": error.details(), "why": trailers.get("x-why")}
    return None


def metadata():
    answer, call = unary.with_call(b"metadata", metadata=mine, timeout=60)
    pairs = dict(pair.split("=", 1) for pair in answer.decode().split("|"))
    return {**pairs, "trailers": dict(call.trailing_metadata())}


def conversation():
    """Each message only after the answer to the one before."""
    asked = []
    answers = []

    def questions():
        for number in range(20):
            while len(answers) < number:
                time.sleep(0.001)
            asked.append(number)
            yield str(number).encode()

    for answer in both(questions(), metadata=mine, timeout=30):
        answers.append(int(answer))
    return answers == asked == list(range(20))


def broken_conversation():
    return failure(lambda: list(both(iter([b"one", b"fail"]), metadata=mine, timeout=30)))


def deadline():
    started = time.monotonic()
    remaining = float(unary(b"remaining", metadata=mine, timeout=20))
    late = failure(lambda: list(server_stream(b"endless", metadata=mine, timeout=0.5)))
    return {
        "told": 0 < remaining <= 21,
        "code": late["code"],
        "in time": time.monotonic() - started < 15,
        "reached the pod": unary(b"was cancelled", metadata=mine, timeout=20).decode(),
    }


def large():
    message = b"x" * (3 << 20)
    return unary(message, metadata=mine, timeout=60) == message


def refused(token_):
    return failure(lambda: unary(b"hi", metadata=(("authorization", f"Bearer {token_}"),), timeout=20))


print(
    json.dumps(
        {
            "metadata": metadata(),
            "server stream": [int(n) for n in server_stream(b"500", metadata=mine, timeout=30)]
            == list(range(500)),
            "client stream": int(client_stream(iter([b"x" * 1000] * 300), metadata=mine, timeout=30)),
            "conversation": conversation(),
            "error": failure(lambda: unary(b"fail", metadata=mine, timeout=20)),
            "error in a conversation": broken_conversation(),
            "deadline": deadline(),
            "large": large(),
            "without a token": refused("nothing")["code"],
        }
    )
)
