"""`*.localhost` is loopback for Python, as RFC 6761 (section 6.3) has it and browsers do.

On the PYTHONPATH of a test's program: not every resolver knows these names.
"""

import socket

_resolve = socket.getaddrinfo


def _getaddrinfo(host, *args, **kwargs):
    name = host.decode() if isinstance(host, bytes) else host
    return _resolve("127.0.0.1" if name and name.endswith(".localhost") else host, *args, **kwargs)


socket.getaddrinfo = _getaddrinfo
