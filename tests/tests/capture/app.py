"""An application that knows nothing of the mesh: app.py NAME PORT

Answers every request with JSON: its name, what it was asked, the headers it saw. It counts what it was
asked; GET /hits says how often, by path. It listens on all addresses, IPv4 and IPv6. /healthz is 200
with a body and a header, /broken is 500 with both.
"""

import collections
import http.server
import json
import socket
import sys

name, port = sys.argv[1], int(sys.argv[2])
hits = collections.Counter()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
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
