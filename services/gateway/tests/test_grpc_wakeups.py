"""What grpcio has to say to an event loop that was busy is heard in one turn."""

import asyncio
import fcntl
import socket
import struct
import termios
from concurrent.futures import ThreadPoolExecutor

import grpc
import grpc.aio
from gateway.grpc_wakeups import taken_together

PATIENCE_SECONDS = 20
CALLS = 300
MANY = 150
"""Wake-ups; grpcio's socket has room for some 200."""


class Echo(grpc.GenericRpcHandler):
    def service(self, _details: object) -> object:
        return grpc.unary_unary_rpc_method_handler(lambda request, _context: request)


def waiting(wakeups: socket.socket) -> int:
    return int(struct.unpack("i", fcntl.ioctl(wakeups, termios.FIONREAD, bytes(4)))[0])


async def test_a_turn_takes_all_wake_ups_that_piled_up() -> None:
    loop = asyncio.get_running_loop()
    server = grpc.server(ThreadPoolExecutor(2), handlers=[Echo()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await channel.channel_ready()
        (wakeups,) = taken_together(loop)
        assert not taken_together(loop), "once is enough"
        method = channel.unary_unary("/a/b")
        calls = [asyncio.ensure_future(method(b"")) for _ in range(CALLS)]
        await asyncio.sleep(0)
        deadline = loop.time() + PATIENCE_SECONDS
        while waiting(wakeups) < MANY:  # the loop stands still meanwhile
            assert loop.time() < deadline
        for _ in range(2):
            await asyncio.sleep(0)
        assert waiting(wakeups) < MANY / 2
        assert await asyncio.gather(*calls) == [b""] * CALLS
    server.stop(0).wait(PATIENCE_SECONDS)
