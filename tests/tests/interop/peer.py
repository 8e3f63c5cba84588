"""Clients of HTTP as Python has them, that know nothing of a mesh.

    peer.py httpx ADDRESS HOST               requests by httpx, over HTTP/1.1 and HTTP/2
    peer.py stuck ADDRESS HOST SIZE          reads one stream of h2 late, others meanwhile
    peer.py unread ADDRESS HOST LIMIT        sends to a server that does not read
    peer.py reset ADDRESS HOST               ends one of two streams, has another ended
    peer.py late ADDRESS HOST                ends a request late

Each prints what it saw as an object of JSON.
"""

import asyncio
import json
import socket
import sys
import urllib.request

import h2.config
import h2.connection
import h2.events
import h2.settings
import httpx

WINDOW = 65_535


def with_httpx(address, host):
    said = {}
    pieces = [bytes([number % 251]) * 9_973 for number in range(100)]
    whole = b"".join(pieces)
    for name, http2 in [("http1", False), ("http2", True)]:
        limits = httpx.Limits(max_connections=1)
        client = httpx.Client(
            base_url=f"http://{address}",
            headers={"host": host},
            http1=not http2,
            http2=http2,
            limits=limits,
            timeout=30,
            trust_env=False,
        )
        with client:
            echo = {"x-app-echo": "1"}
            answer = client.post("/a?b=%20", headers=echo, content=iter(pieces))
            assert (answer.status_code, answer.content == whole) == (200, True), answer
            said[name] = answer.http_version
            for status in [204, 304, 404, 503]:
                headers = {"x-app-status": str(status), "x-app-body": "0"}
                assert client.get("/", headers=headers).status_code == status
            assert client.head("/", headers={"x-app-body": "9"}).headers["content-length"] == "9"
            # Read to a third and left: the next request is not in its way.
            with client.stream("GET", "/", headers={"x-app-body": "3000000"}) as answer:
                chunks = answer.iter_bytes(1000)
                assert len(b"".join(next(chunks) for _ in range(1000))) == 1_000_000
            assert client.get("/").text == "app"
    said["together"] = asyncio.run(together(address, host))
    return said


async def together(address, host):
    """Many requests at once on one connection of HTTP/2; how many came back as they were sent."""
    limits = httpx.Limits(max_connections=1)
    base = f"http://{address}"
    headers = {"host": host, "x-app-echo": "1"}
    async with httpx.AsyncClient(
        base_url=base, headers=headers, http1=False, http2=True, limits=limits, timeout=50, trust_env=False
    ) as client:
        bodies = [str(number).encode() * (number * 37 + 1) for number in range(100)]
        answers = await asyncio.gather(*(client.post("/", content=body) for body in bodies))
        return sum(answer.content == body for answer, body in zip(answers, bodies))


class Connection:
    """One connection of h2 whose windows grow only when told to."""

    def __init__(self, address, host):
        name, port = address.rsplit(":", 1)
        self.host = host
        self.socket = socket.create_connection((name, int(port)), timeout=30)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.streams = {}
        self.goaway = None
        self.closed = False
        self.flush()

    def flush(self):
        self.socket.sendall(self.h2.data_to_send())

    def open(self, headers=(), method="GET", end=True):
        stream = self.h2.get_next_available_stream_id()
        pseudo = [(":method", method), (":scheme", "http"), (":authority", self.host), (":path", "/")]
        self.h2.send_headers(stream, pseudo + list(headers), end_stream=end)
        self.streams[stream] = {"status": 0, "length": 0, "unread": 0, "ended": False, "reset": None}
        self.flush()
        return stream

    def turn(self):
        """Waits for bytes and takes note of what they say."""
        data = self.socket.recv(65_536)
        if not data:
            self.closed = True
            return
        for event in self.h2.receive_data(data):
            stream = self.streams.get(getattr(event, "stream_id", None))
            if isinstance(event, h2.events.ResponseReceived):
                stream["status"] = int(dict(event.headers)[":status"])
            elif isinstance(event, h2.events.DataReceived):
                stream["length"] += len(event.data)
                stream["unread"] += event.flow_controlled_length
                # The connection's window is never in the way, the stream's is.
                self.h2.increment_flow_control_window(event.flow_controlled_length or 1)
            elif isinstance(event, h2.events.StreamEnded):
                stream["ended"] = True
            elif isinstance(event, h2.events.StreamReset):
                stream["reset"] = int(event.error_code)
            elif isinstance(event, h2.events.ConnectionTerminated):
                self.goaway = [int(event.error_code), event.last_stream_id]
        self.flush()

    def until(self, done):
        while not done() and not self.closed:
            self.turn()
        assert done(), (self.streams, self.goaway, self.closed)

    def settle(self):
        """Waits for an answer to a PING: what was sent before it has been seen by the other side."""
        acknowledged = []
        original = self.h2.receive_data

        def watching(data):
            events = original(data)
            acknowledged.extend(e for e in events if isinstance(e, h2.events.PingAckReceived))
            return events

        self.h2.receive_data = watching
        self.h2.ping(b"whatever")
        self.flush()
        self.until(lambda: acknowledged)
        self.h2.receive_data = original

    def read(self, stream):
        """Reads one stream to its end."""
        found = self.streams[stream]
        while not (found["ended"] or found["reset"] is not None):
            if found["unread"]:
                self.h2.increment_flow_control_window(found["unread"], stream)
                found["unread"] = 0
                self.flush()
            self.turn()
        return found


def stuck(address, host, size):
    connection = Connection(address, host)
    late = connection.open([("x-app-body", size)])
    connection.until(lambda: connection.streams[late]["length"] == WINDOW)
    others = [connection.open([("x-app-body", str(number))]) for number in range(50)]
    lengths = [connection.read(other)["length"] for other in others]
    before = connection.streams[late]["length"]
    print(json.dumps({"others": lengths == list(range(50)), "before": before}), flush=True)
    sys.stdin.readline()
    found = connection.read(late)
    return {"late": found["length"], "ended": found["ended"]}


def unread(address, host, limit):
    connection = Connection(address, host)
    stream = connection.open([("x-hold", "1")], method="POST", end=False)
    sent = 0
    while sent < int(limit):
        connection.settle()
        room = min(connection.h2.local_flow_control_window(stream), 16_384)
        if room == 0:
            break
        connection.h2.send_data(stream, b"x" * room)
        connection.flush()
        sent += room
    # Blocked for good, not for the moment: many answers on the same connection later there is no more room.
    others = [connection.read(connection.open())["status"] for _ in range(50)]
    room = connection.h2.local_flow_control_window(stream)
    return {"sent": sent, "others": others == [200] * 50, "room": room}


def reset(address, host):
    connection = Connection(address, host)
    given_up = connection.open([("x-app-body", "3000000")])
    other = connection.open([("x-app-body", "3000000")])
    connection.until(lambda: connection.streams[given_up]["length"] > 0)
    connection.h2.reset_stream(given_up, 8)
    found = connection.read(other)
    broken = connection.read(connection.open([("x-break", "1")]))
    after = connection.read(connection.open())
    return {
        "other": found["length"],
        "broken": broken,
        "after": after["status"],
        "goaway": connection.goaway,
    }


def late(address, host):
    """Ends a request after its response: all announced bytes are there, the end is not."""
    connection = Connection(address, host)
    stream = connection.open([("content-length", "5")], method="POST", end=False)
    connection.h2.send_data(stream, b"hello")
    connection.flush()
    found = connection.read(stream)
    connection.settle()
    before = dict(found)
    connection.h2.end_stream(stream)
    connection.flush()
    return {"status": before["status"], "reset": before["reset"], "after": connection.read(connection.open())["status"]}


KINDS = {"httpx": with_httpx, "stuck": stuck, "unread": unread, "reset": reset, "late": late}
print(json.dumps(KINDS[sys.argv[1]](*sys.argv[2:])), flush=True)
