"""A gateway in memory whose jobs wait for the test, and a relay in front of it that can be cut."""

import asyncio
from collections.abc import Iterator

import pytest
from fluoro_client.testing import FakeGateway


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with FakeGateway(hold=True, single_owner="ada") as gateway:
        yield gateway


class Relay:
    """A TCP relay in front of a gateway whose connections can be cut without a word of HTTP/2."""

    def __init__(self, port):
        self._target = port
        self._writers = set()
        self._left = None
        self.port = 0

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()
        self.cut()
        await self._server.wait_closed()

    def cut(self):
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def cut_after(self, count):
        """Cuts once when so many bytes more have gone through."""
        self._left = count

    async def _relay(self, reader, writer):
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers |= {writer, far_writer}
        await asyncio.gather(
            self._copy(reader, far_writer), self._copy(far_reader, writer), return_exceptions=True
        )
        writer.close()
        far_writer.close()

    async def _copy(self, reader, writer):
        while data := await reader.read(65536):
            if self._left is not None and (left := self._left - len(data)) < 0:
                self._left = None
                self.cut()
                return
            if self._left is not None:
                self._left = left
            writer.write(data)
            await writer.drain()
        writer.close()


@pytest.fixture
async def relay(gateway):
    async with Relay(int(gateway.endpoint.rpartition(":")[2])) as relay:
        yield relay
