"""NATS' own client, given the server's URL and on standard input an object of

    subject, count, size   publishes `count` messages of `size` bytes on one connection, subscribed on another
    requests               then makes so many requests, answered by the other connection

Prints {"received": how many came in order, "bytes": their sum, "answers": replies that were right}.
"""

import asyncio
import json
import sys

import nats


async def main():
    order = json.load(sys.stdin)
    subject, count, size = order["subject"], order["count"], order["size"]
    first = await nats.connect(sys.argv[1], allow_reconnect=False, connect_timeout=20)
    second = await nats.connect(sys.argv[1], allow_reconnect=False, connect_timeout=20)

    async def double(message):
        await message.respond(message.data * 2)

    messages = await first.subscribe(subject, pending_bytes_limit=1 << 30)
    await first.subscribe(subject + ".double", cb=double)
    # The server has both once it answers.
    await first.flush(20)

    async def publish():
        for number in range(count):
            await second.publish(subject, str(number).encode().ljust(size, b"."))
        await second.flush(20)

    publishing = asyncio.create_task(publish())
    received = total = answers = 0
    for number in range(count):
        message = await messages.next_msg(20)
        received += message.data.rstrip(b".") == str(number).encode()
        total += len(message.data)
    await publishing
    for number in range(order["requests"]):
        reply = await second.request(subject + ".double", str(number).encode(), timeout=20)
        answers += reply.data == str(number).encode() * 2
    await first.close()
    await second.close()
    print(json.dumps({"received": received, "bytes": total, "answers": answers}), flush=True)


asyncio.run(main())
