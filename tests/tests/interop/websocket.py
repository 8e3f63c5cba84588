"""A server and a client of WebSocket, as Python's websockets has them, that know nothing of a mesh.

    websocket.py serve                    listens on a free port and prints it; a line for each connection
                                          that has ended
    websocket.py call ROAD ADDRESS        does everything a client can, and prints what came of it
    websocket.py refused ROAD ADDRESS     asks for what is refused, and prints how
    websocket.py broken ROAD ADDRESS      waits on a connection until it breaks, and prints how
    websocket.py many ROAD ADDRESS COUNT  that many connections at once, all open before the first message

A road is how ADDRESS is used: "host" connects there and names the service, "port" names ADDRESS itself, and
"proxy" takes it for a proxy, which it asks for a tunnel (CONNECT).
"""

import asyncio
import json
import os
import sys
from http import HTTPStatus

from websockets.asyncio.client import connect
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed, InvalidStatus, NegotiationError

SERVICE = "orders.shop"
LIMIT = 4 << 20


def how(closed):
    """What a side has heard of the end of a connection, and what it said itself."""
    frames = [closed.rcvd, closed.sent]
    return [frame and [frame.code, frame.reason] for frame in frames]


async def conversation(connection):
    path = connection.request.path
    if path == "/close":
        await connection.close(4001, "caf\u00e9")
    elif path == "/fail":
        raise RuntimeError("as applications do")
    elif path == "/ping":
        await (await connection.ping(b"server"))
        await connection.send("the client answered")
    async for message in connection:
        await connection.send(message)


async def noted(connection):
    try:
        await conversation(connection)
    except RuntimeError:
        await connection.close(1011, "failed")
    except ConnectionClosed:
        pass
    await connection.wait_closed()
    ended = {
        "path": connection.request.path,
        "code": connection.close_code,
        "reason": connection.close_reason,
        "subprotocol": connection.subprotocol,
        "from": connection.request.headers.get_all("x-forwarded-client-cert"),
    }
    print(json.dumps(ended), flush=True)


def admit(connection, request):
    if request.path == "/private":
        return connection.respond(HTTPStatus.UNAUTHORIZED, "who are you?")
    return None


def choose(connection, offered):
    """The first known one, which none has to be offered for."""
    if not offered:
        return None
    for subprotocol in ["v2.orders", "v1.orders"]:
        if subprotocol in offered:
            return subprotocol
    raise NegotiationError("no subprotocol of these")


async def server():
    listening = await serve(
        noted,
        "127.0.0.1",
        0,
        select_subprotocol=choose,
        process_request=admit,
        max_size=LIMIT,
        ping_interval=None,
    )
    print("port", listening.sockets[0].getsockname()[1], flush=True)
    await listening.wait_closed()


def opened(road, address, path, **more):
    host, port = address.rsplit(":", 1)
    name = address if road == "port" else SERVICE
    more["proxy"] = f"http://{address}" if road == "proxy" else None
    if road == "host":
        more.update(host=host, port=int(port))
    return connect(f"ws://{name}{path}", max_size=LIMIT, ping_interval=None, open_timeout=30, close_timeout=30, **more)


async def call(road, address):
    seen = {}
    async with opened(road, address, "/talk", subprotocols=["v9.orders", "v1.orders"]) as connection:
        seen["subprotocol"] = connection.subprotocol
        seen["extensions"] = connection.response.headers.get("sec-websocket-extensions", "").split(";")[0]
        messages = ["", "caf\u00e9 \u2026", b"", bytes(range(256)), os.urandom(1 << 20), "x" * (1 << 20)]
        for message in messages:
            await connection.send(message)
        seen["same"] = [await connection.recv() == message for message in messages]
        # In many frames, of which a control frame may come in between.
        pieces = [os.urandom(1000) for _ in range(20)]

        async def piecewise():
            for number, piece in enumerate(pieces):
                if number == 10:
                    await connection.ping(b"between")
                yield piece

        await connection.send(piecewise())
        seen["fragments"] = await connection.recv() == b"".join(pieces)
        await (await connection.ping(b"client"))
        await connection.close(3999, "enough")
    seen["own"] = [connection.close_code, connection.close_reason]
    async with opened(road, address, "/ping") as connection:
        seen["pinged"] = await connection.recv()
        seen["no subprotocol"] = connection.subprotocol
    seen["normal"] = connection.close_code
    for path in ["/close", "/fail", "/large"]:
        async with opened(road, address, path) as connection:
            try:
                if path == "/large":
                    # Compressed it is small: all of it is on its way before the answer.
                    await connection.send("x" * (LIMIT + 1))
                await connection.recv()
            except ConnectionClosed as closed:
                seen[path] = how(closed)[0]
    return seen


async def refused(road, address):
    seen = {}
    for path, subprotocols in [("/private", None), ("/talk", ["v9.orders"])]:
        try:
            async with opened(road, address, path, subprotocols=subprotocols):
                seen[path] = "open"
        except InvalidStatus as error:
            response = error.response
            body = (response.body or b"").decode()
            seen[path] = [response.status_code, body, response.headers.get("x-mesh-reason")]
    return seen


async def broken(road, address):
    async with opened(road, address, "/talk") as connection:
        await connection.send("there?")
        assert await connection.recv() == "there?"
        print("connected", flush=True)
        try:
            await connection.recv()
        except ConnectionClosed as closed:
            return {"code": connection.close_code, "heard": how(closed)[0]}
    return {}


async def many(road, address, count):
    together = asyncio.Barrier(int(count))

    async def one(number):
        async with opened(road, address, "/talk") as connection:
            await together.wait()
            for turn in range(20):
                message = f"{number} {turn} " * (number + 1)
                await connection.send(message)
                assert await connection.recv() == message
            await together.wait()
        return connection.close_code

    return {"codes": await asyncio.gather(*(one(number) for number in range(int(count))))}


if sys.argv[1] == "serve":
    asyncio.run(server())
else:
    KINDS = {"call": call, "refused": refused, "broken": broken, "many": many}
    print(json.dumps(asyncio.run(KINDS[sys.argv[1]](*sys.argv[2:]))), flush=True)
