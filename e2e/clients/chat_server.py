"""A small server that speaks OpenAI's chat API, with what else the clients of the tests need.

usage: chat_server.py ADDRESS PORT
"""

import hashlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

# A stream goes on behind its gate when somebody has asked for /go/NAME: so a test knows that what
# came before has arrived, and was not kept until the end.
gates = {}
gates_lock = threading.Lock()


def gate(name):
    with gates_lock:
        return gates.setdefault(name, threading.Event())


def chunk(text, finish=None):
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "parrot",
        "choices": [{"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}],
    }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def read_body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def answer(self, value, status=200):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def begin_stream(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def event(self, value):
        text = value if isinstance(value, str) else json.dumps(value)
        data = f"data: {text}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def end_stream(self):
        self.wfile.write(b"0\r\n\r\n")

    def do_GET(self):
        url = urlsplit(self.path)
        if url.path == "/v1/models":
            self.answer({"object": "list", "data": [{"id": "parrot", "object": "model", "created": 1, "owned_by": "me"}]})
        elif url.path.startswith("/go/"):
            gate(url.path[4:]).set()
            self.answer({})
        elif url.path == "/headers":
            self.answer({name.lower(): value for name, value in self.headers.items()})
        elif url.path == "/download":
            size = int(parse_qs(url.query)["bytes"][0])
            self.download(bytes(range(256)) * (size // 256))
        elif url.path.startswith("/events/"):
            self.begin_stream()
            self.event("before")
            gate(url.path[8:]).wait(30)
            self.event("behind")
            self.end_stream()
        else:
            self.answer({"path": self.path})

    do_HEAD = do_GET

    def download(self, body):
        given = self.headers.get("Range")
        if not given:
            return self.answer(body)
        first, last = (int(part) for part in given.removeprefix("bytes=").split("-"))
        part = body[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(body)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def do_POST(self):
        body = self.read_body()
        if self.path == "/v1/chat/completions":
            self.chat(json.loads(body))
        else:
            self.answer({"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()})

    do_PUT = do_POST

    def chat(self, asked):
        words = asked["messages"][-1]["content"].split()
        if not asked.get("stream"):
            message = {"role": "assistant", "content": " ".join(words)}
            whole = {**chunk(None), "object": "chat.completion"}
            whole["choices"] = [{"index": 0, "message": message, "finish_reason": "stop"}]
            return self.answer(whole)
        self.begin_stream()
        for at, word in enumerate(words):
            # The first word names the gate behind it.
            if at == 1:
                gate(words[0]).wait(30)
            self.event(chunk(word + " "))
        self.event(chunk(None, "stop"))
        self.event("[DONE]")
        self.end_stream()


address, port = sys.argv[1], int(sys.argv[2])
ThreadingHTTPServer.daemon_threads = True
# The usual 5 overflow when a hundred connect at once, and TCP then waits for long before it tries again.
ThreadingHTTPServer.request_queue_size = 256
ThreadingHTTPServer((address, port), Handler).serve_forever()
