"""A server and a client of gRPC, as grpcio has them, that know nothing of a mesh.

    peer.py serve NAME                         listens on a free port and prints it; a line for each call
    peer.py call ADDRESS AUTHORITY             makes the calls of a JSON list on standard input, and prints
                                               what came of each

Messages are bytes: generic handlers need no generated code.
"""

import json
import sys
import threading
from concurrent import futures

import grpc

SERVICE = "shop.Orders"


def echo(request, context):
    context.set_trailing_metadata((("x-served", "yes"),))
    return request


def count(request, context):
    for number in range(int(request)):
        yield str(number).encode()


def total(requests, context):
    return str(sum(int(request) for request in requests)).encode()


def talk(requests, context):
    for request in requests:
        yield request.upper()


def fail(request, context):
    code, _, details = request.decode().partition(" ")
    context.abort(getattr(grpc.StatusCode, code), details)


seen = {}
lock = threading.Lock()


def flaky(request, context):
    """Fails the first call of each request."""
    with lock:
        seen[request] = seen.get(request, 0) + 1
        first = seen[request] == 1
    if first:
        context.abort(grpc.StatusCode.UNAVAILABLE, "not this time")
    return request


def time_left(request, context):
    left = context.time_remaining()
    return b"none" if left is None else str(left).encode()


def hang(request, context):
    ended = threading.Event()
    context.add_callback(ended.set)
    ended.wait()
    return b"too late"


def who(request, context):
    return sys.argv[2].encode()


def endless(request, context):
    """Answers what there is at once, and never ends by itself."""
    ended = threading.Event()
    context.add_callback(ended.set)
    yield next(request) if hasattr(request, "__next__") else request
    ended.wait()
    print("cut off", flush=True)


UNARY, STREAM = False, True
METHODS = {
    "Echo": (UNARY, UNARY, echo),
    "Count": (UNARY, STREAM, count),
    "Sum": (STREAM, UNARY, total),
    "Talk": (STREAM, STREAM, talk),
    "Fail": (UNARY, UNARY, fail),
    "Flaky": (UNARY, UNARY, flaky),
    "TimeLeft": (UNARY, UNARY, time_left),
    "Hang": (UNARY, UNARY, hang),
    "Who": (UNARY, UNARY, who),
    "Endless": (UNARY, STREAM, endless),
    "EndlessTalk": (STREAM, STREAM, endless),
}


def noted(name, behaviour):
    def noting(request, context):
        print(name, flush=True)
        return behaviour(request, context)

    return noting


def serve():
    makers = {
        (UNARY, UNARY): grpc.unary_unary_rpc_method_handler,
        (UNARY, STREAM): grpc.unary_stream_rpc_method_handler,
        (STREAM, UNARY): grpc.stream_unary_rpc_method_handler,
        (STREAM, STREAM): grpc.stream_stream_rpc_method_handler,
    }
    handlers = {
        name: makers[request, response](noted(name, behaviour))
        for name, (request, response, behaviour) in METHODS.items()
    }
    server = grpc.server(futures.ThreadPoolExecutor(16))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print("port", port, flush=True)
    server.wait_for_termination()


def call(channel, step):
    name = step["method"]
    request, response, _ = METHODS.get(name, (UNARY, UNARY, None))
    makers = {
        (UNARY, UNARY): channel.unary_unary,
        (UNARY, STREAM): channel.unary_stream,
        (STREAM, UNARY): channel.stream_unary,
        (STREAM, STREAM): channel.stream_stream,
    }
    method = makers[request, response](f"/{SERVICE}/{name}")
    messages = [message.encode() for message in step["messages"]]
    over = threading.Event()

    def sent():
        yield from messages
        if step.get("open"):
            over.wait()

    payload = sent() if request is STREAM else messages[0]
    timeout = step.get("timeout", 20)
    answer, code, details, trailing = [], grpc.StatusCode.OK, "", ()
    try:
        if response is STREAM:
            running = method(payload, timeout=timeout)
            for message in running:
                answer.append(message)
                if len(answer) == step.get("cancel after"):
                    running.cancel()
        else:
            message, running = method.with_call(payload, timeout=timeout)
            answer.append(message)
        trailing = running.trailing_metadata()
    except grpc.RpcError as error:
        code, details, trailing = error.code(), error.details(), error.trailing_metadata()
    finally:
        over.set()
    return {
        "code": code.name,
        "details": details,
        "messages": [message.decode() for message in answer],
        "trailing": {key: value for key, value in trailing or () if isinstance(value, str)},
    }


def calls(address, authority):
    options = [
        ("grpc.default_authority", authority),
        # What is repeated, the mesh repeats.
        ("grpc.enable_retries", 0),
        ("grpc.enable_http_proxy", 0),
    ]
    with grpc.insecure_channel(address, options) as channel:
        print(json.dumps([call(channel, step) for step in json.load(sys.stdin)]))


if sys.argv[1] == "serve":
    serve()
else:
    calls(*sys.argv[2:])
