"""Asks a workload through the gate with one of the clients that people use.

usage: ask.py CLIENT URL WEBSOCKET_URL   with DORMOUSE_TOKEN, and SSL_CERT_FILE naming the authority
CLIENT: requests, httpx-h1, httpx-h2, websockets, openai
"""

import asyncio
import hashlib
import os
import ssl
import sys
import uuid

client, url, socket_url = sys.argv[1:]
token = os.environ["DORMOUSE_TOKEN"]
authority = os.environ["SSL_CERT_FILE"]
bearer = {"Authorization": f"Bearer {token}"}
MIB = 1 << 20


def same(seen, wanted):
    if seen != wanted:
        raise SystemExit(f"{client}: {seen!r}, and not {wanted!r}")


def exchanges(session, stream):
    """What requests and httpx do alike. `stream(url)` gives the lines of an answer as they come."""
    for _ in range(20):
        same(session.get(f"{url}/v1/models").json()["data"][0]["id"], "parrot")
    seen = session.get(f"{url}/headers").json()
    same(seen["x-forwarded-user"], "alice")
    same([name for name in seen if name in ("authorization", "cookie")], [])
    body = os.urandom(8 * MIB)
    wanted = {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    same(session.post(f"{url}/upload", data=body).json(), wanted)
    same(session.get(f"{url}/download?bytes={32 * MIB}").content, bytes(range(256)) * (32 * MIB // 256))
    part = session.get(f"{url}/download?bytes=4096", headers={"Range": "bytes=10-19"})
    same((part.status_code, part.content), (206, bytes(range(10, 20))))
    head = session.head(f"{url}/download?bytes=4096")
    same((head.headers["content-length"], head.content), ("4096", b""))
    name = uuid.uuid4().hex
    lines = stream(f"{url}/events/{name}")
    same(next(lines), "data: before")
    # Only now may the rest come: the first event was not kept back.
    session.get(f"{url}/go/{name}")
    same([line for line in lines if line], ["data: behind"])
    return wanted, body


def with_requests():
    import requests

    with requests.Session() as session:
        session.headers.update(bearer)
        # What else the environment says of certificates would win.
        session.trust_env = False
        session.verify = authority
        wanted, body = exchanges(session, lambda one: session.get(one, stream=True).iter_lines(decode_unicode=True))
        parts = (body[at : at + MIB] for at in range(0, len(body), MIB))
        same(session.post(f"{url}/upload", data=parts).json(), wanted)
        for method in ("PUT", "POST"):
            same(session.request(method, f"{url}/x", data=b"1").json()["bytes"], 1)
        del session.headers["Authorization"]
        refused = session.get(url)
    same((refused.status_code, refused.json()["status"]), (401, 401))


def with_httpx(http2):
    import httpx

    context = ssl.create_default_context(cafile=authority)
    version = "HTTP/2" if http2 else "HTTP/1.1"
    settings = dict(http2=http2, verify=context, headers=bearer, timeout=60)

    def lines(one):
        with session.stream("GET", one) as answer:
            yield from answer.iter_lines()

    with httpx.Client(**settings) as session:
        same(session.get(f"{url}/").http_version, version)
        exchanges(session, lines)

    async def many():
        async with httpx.AsyncClient(**settings) as session:
            answers = await asyncio.gather(*(session.get(f"{url}/{n}?a=%2f") for n in range(100)))
            same([answer.json()["path"] for answer in answers], [f"/{n}?a=%2f" for n in range(100)])

            async def parts():
                for _ in range(8):
                    yield bytes(MIB)

            same((await session.post(f"{url}/upload", content=parts())).json()["bytes"], 8 * MIB)

    asyncio.run(many())


def with_websockets():
    import websockets
    from websockets.sync.client import connect as connect_sync

    context = ssl.create_default_context(cafile=authority)

    async def talk():
        settings = dict(ssl=context, additional_headers=bearer, max_size=None)
        async with websockets.connect(socket_url, **settings) as socket:
            # It was offered, and the gate has to read the frames.
            same(socket.protocol.extensions, [])
            await socket.send("hello")
            same(await socket.recv(), "hello")
            large = os.urandom(8 * MIB)
            await socket.send(large)
            same(await socket.recv() == large, True)
            await socket.send(["frag", "men", "ted"])
            same(await socket.recv(), "fragmented")
            await asyncio.wait_for(await socket.ping(b"there?"), 30)
        same(socket.close_code, 1000)
        try:
            async with websockets.connect(socket_url, ssl=context):
                raise SystemExit("websockets: let in without a token")
        except websockets.exceptions.InvalidStatus as refused:
            same(refused.response.status_code, 401)

    asyncio.run(talk())
    with connect_sync(socket_url, ssl=context, additional_headers=bearer) as socket:
        for number in range(200):
            socket.send(str(number))
            same(socket.recv(), str(number))


def with_openai():
    import httpx
    from openai import OpenAI

    context = ssl.create_default_context(cafile=authority)
    model = OpenAI(base_url=f"{url}/v1", api_key=token, http_client=httpx.Client(verify=context))
    same([one.id for one in model.models.list()], ["parrot"])
    said = model.chat.completions.create(model="parrot", messages=[{"role": "user", "content": "polly wants"}])
    same(said.choices[0].message.content, "polly wants")
    name = uuid.uuid4().hex
    words = [name, *(f"word{n}" for n in range(200))]
    asked = [{"role": "user", "content": " ".join(words)}]
    seen = []
    for part in model.chat.completions.create(model="parrot", messages=asked, stream=True):
        seen.append(part.choices[0].delta.content or "")
        if len(seen) == 1:
            httpx.get(f"{url}/go/{name}", headers=bearer, verify=context)
    same("".join(seen).split(), words)


{
    "requests": with_requests,
    "httpx-h1": lambda: with_httpx(False),
    "httpx-h2": lambda: with_httpx(True),
    "websockets": with_websockets,
    "openai": with_openai,
}[client]()
print("ok")
