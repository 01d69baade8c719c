"""A gateway in memory whose jobs wait for the test, the `fluoro` command, and a relay to cut."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fluoro_client.testing import FakeGateway

COMMAND = str(Path(sys.executable).with_name("fluoro"))


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
        # asyncio forgets a connection whose listener is closed before its handler has begun.
        for listening in self._server.sockets:
            asyncio.get_running_loop().remove_reader(listening.fileno())
        for _turn in range(4):
            await asyncio.sleep(0)
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
        self._writers.add(writer)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers.add(far_writer)
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


class Command:
    """A running `fluoro`.

    Its pipes are read in threads: asyncio's own child processes are closed by whoever collects
    garbage next.
    """

    def __init__(self, words, stdin, env):
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [COMMAND, *words], env=env, stdin=stdin, stdout=pipe, stderr=pipe, bufsize=0
        )

    async def line(self):
        return await asyncio.wait_for(asyncio.to_thread(self.process.stdout.readline), 20)

    async def end(self, data=None):
        out, err = await asyncio.to_thread(self.process.communicate, data, 60)
        return self.process.returncode, out, err


@pytest.fixture
def fluoro(gateway):
    started = []

    def start(*words, stdin=subprocess.DEVNULL, **environment):
        env = {
            "PATH": os.environ["PATH"],
            "FLUORO_ENDPOINT": gateway.endpoint,
            "FLUORO_OWNER": "ada",
            **environment,
        }
        started.append(Command(words, stdin, env))
        return started[-1]

    async def run(*words, input=None, **environment):
        code, out, err = await start(*words, stdin=subprocess.PIPE, **environment).end(
            (input or "").encode()
        )
        assert b"Traceback" not in err
        return code, out.decode(), err.decode()

    run.start = start
    yield run
    for command in started:
        with command.process:
            command.process.kill()
