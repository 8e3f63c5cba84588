"""An application that knows nothing of the mesh: app.py NAME PORT

Answers every request with JSON: its name, what it was asked, the headers it saw. It counts what it was
asked; GET /hits says how often, by path. It listens on all addresses, IPv4 and IPv6. /healthz is 200
with a body and a header, /broken is 500 with both. Asked for an upgrade to `echo` it sends back line by
line; at the line `die` it breaks off, at `fin` it ends its side and listens on.
"""

import collections
import http.server
import json
import os
import socket
import struct
import sys

name, port = sys.argv[1], int(sys.argv[2])
hits = collections.Counter()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def echo(self):
        self.send_response(101)
        self.send_header("connection", "upgrade")
        self.send_header("upgrade", "echo")
        self.end_headers()
        self.close_connection = True
        for line in self.rfile:
            if line == b"fin\n":
                return self.listen_on()
            if line == b"die\n":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                # Without the orderly end that the server would send first.
                os.close(self.connection.detach())
                return
            self.wfile.write(line)
            self.wfile.flush()

    def listen_on(self):
        self.connection.shutdown(socket.SHUT_WR)
        try:
            while line := self.rfile.readline():
                hits[line.decode().strip()] += 1
            hits["ended"] += 1
        except ConnectionError:
            hits["broken"] += 1

    def answer(self):
        if self.headers.get("upgrade") == "echo":
            return self.echo()
        if self.path == "/hits":
            body = json.dumps(hits).encode()
        else:
            hits[f"{self.command} {self.path}"] += 1
            length = int(self.headers.get("content-length") or 0)
            said = self.rfile.read(length).decode()
            headers = {key.lower(): value for key, value in self.headers.items()}
            body = json.dumps({"app": name, "path": self.path, "headers": headers, "body": said}).encode()
        self.send_response(500 if self.path == "/broken" else 200)
        self.send_header("x-app", name)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_POST = do_HEAD = do_PUT = answer

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True

    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


server = Server(("::", port), Handler)
print("listening", flush=True)
server.serve_forever()
