"""Sends and takes bodies of any length. Arguments: the address and the port to listen on.

GET /N sends N bytes in chunks, or the range of them that is asked for; PUT answers how many came.
"""

import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PIECE = b"\0" * 65536


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        total = int(self.path[1:])
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked:
            first, last = int(asked[1]), int(asked[2])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
            self.send_header("Content-Length", str(last - first + 1))
            self.end_headers()
            self.wfile.write(bytes(n % 256 for n in range(first, last + 1)))
            return
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while total > 0:
            piece = PIECE[:total]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            total -= len(piece)
        self.wfile.write(b"0\r\n\r\n")

    def do_HEAD(self):
        self.send_response(200)
        self.send_header("Content-Length", self.path[1:])
        self.end_headers()

    def do_PUT(self):
        left = int(self.headers["Content-Length"])
        taken = 0
        while left > 0:
            piece = self.rfile.read(min(left, 65536))
            if not piece:
                return
            taken += len(piece)
            left -= len(piece)
        answer = str(taken).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
