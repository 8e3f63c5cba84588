"""Both ends of plain connections, for what the mesh must know nothing of.

serve NAME PORT...      says "NAME" to every TCP connection, echoes what it says in lines; echoes UDP
original PORT...        the same, but says where the connection was going, as the kernel has it
ask HOST PORT [LINE]    prints the first line of the other end, and the echo of LINE
udp HOST PORT LINE      prints the echo
hold HOST PORT          prints the first line, then the echo of each line of standard input
"""

import socket
import socketserver
import struct
import sys
import threading

SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h; the same number in ip6_tables.h


def original(connection):
    if connection.family == socket.AF_INET:
        raw = connection.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16)
        return socket.inet_ntoa(raw[4:8]), struct.unpack("!H", raw[2:4])[0]
    raw = connection.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, 28)
    return socket.inet_ntop(socket.AF_INET6, raw[8:24]), struct.unpack("!H", raw[2:4])[0]


def handler(greeting):
    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            self.wfile.write(f"{greeting(self.connection)}\n".encode())
            for line in self.rfile:
                self.wfile.write(line)

    return Handler


class Udp(socketserver.BaseRequestHandler):
    def handle(self):
        data, reply = self.request
        reply.sendto(data, self.client_address)


def serve(greeting, ports):
    # A client that breaks off is no news.
    socketserver.BaseServer.handle_error = lambda *_: None
    servers = []
    for family in (socket.AF_INET, socket.AF_INET6):
        for port in ports:
            for kind, handling in (
                (socketserver.ThreadingTCPServer, handler(greeting)),
                (socketserver.ThreadingUDPServer, Udp),
            ):
                server = kind(("", port), handling, bind_and_activate=False)
                server.address_family, server.daemon_threads = family, True
                server.allow_reuse_address = True
                server.socket = socket.socket(family, server.socket_type)
                if family == socket.AF_INET6:
                    server.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                server.server_bind()
                server.server_activate()
                servers.append(server)
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print("listening", flush=True)
    threading.Event().wait()


def words(connection):
    address, port = original(connection)
    return f"{connection.getsockname()[1]} {address} {port}"


command, *args = sys.argv[1:]
if command == "serve":
    serve(lambda _: args[0], [int(port) for port in args[1:]])
elif command == "original":
    serve(words, [int(port) for port in args])
elif command == "udp":
    infos = socket.getaddrinfo(args[0], int(args[1]), type=socket.SOCK_DGRAM)
    with socket.socket(infos[0][0], socket.SOCK_DGRAM) as sender:
        sender.settimeout(10)
        sender.connect(infos[0][4])
        sender.send(args[2].encode())
        print(sender.recv(1000).decode())
else:
    with socket.create_connection((args[0], int(args[1])), timeout=20) as connection:
        lines = connection.makefile("rw")
        print(lines.readline().strip(), flush=True)
        for line in sys.stdin if command == "hold" else args[2:]:
            lines.write(line.strip() + "\n")
            lines.flush()
            print(lines.readline().strip(), flush=True)
