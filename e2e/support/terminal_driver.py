"""Runs a command in a pseudo-terminal that a test drives.

usage: terminal_driver.py ROWS COLUMNS COMMAND...
Standard input: JSON lines, {"write": "text"} or {"resize": [rows, columns]}.
Standard output: what the command writes. Exits with the command's code.
"""

import fcntl
import json
import os
import pty
import select
import struct
import sys
import termios


def resize(terminal: int, rows: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def main() -> int:
    rows, columns, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    child, terminal = pty.fork()
    if child == 0:
        resize(0, rows, columns)
        os.execvp(command[0], command)
    resize(terminal, rows, columns)
    pending = b""
    sources = [0, terminal]
    while True:
        ready, _, _ = select.select(sources, [], [])
        if terminal in ready:
            try:
                data = os.read(terminal, 65536)
            except OSError:
                data = b""
            if not data:
                break
            os.write(1, data)
        if 0 in ready:
            data = os.read(0, 65536)
            if not data:
                sources.remove(0)
            pending += data
            *lines, pending = pending.split(b"\n")
            for line in lines:
                order = json.loads(line)
                if "write" in order:
                    os.write(terminal, order["write"].encode())
                if "resize" in order:
                    resize(terminal, *order["resize"])
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    code = main()
    sys.exit(code if code >= 0 else 128 - code)
