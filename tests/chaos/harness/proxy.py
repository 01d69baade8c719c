"""The network between services and a store: a proxy on loopback, in a thread of its own."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

CHUNK_BYTES: Final = 64 * 1024
CALL_SECONDS: Final = 10
"""How long the thread may take to do what it is told."""
ORPHAN_SECONDS: Final = 20
"""How long the server keeps its end of a dead connection: until its own keepalives would tell."""

ACCEPT_TURNS: Final = 4
"""Of the event loop, from a connection that is accepted to the first step of its handler."""

_ABORT: Final = struct.pack("ii", 1, 0)
"""SO_LINGER of a socket whose close is a reset (socket(7))."""


async def close_listener(listener: asyncio.Server) -> None:
    """Closes it once the handlers of all connections that it accepted have begun.

    asyncio keeps the socket of a connection whose listener is closed sooner, and nobody closes it.
    """
    for listening in listener.sockets:
        asyncio.get_running_loop().remove_reader(listening.fileno())
    for _ in range(ACCEPT_TURNS):
        await asyncio.sleep(0)
    listener.close()


@dataclass(slots=True, eq=False)
class _Link:
    """One connection. dead: what comes in at either end is swallowed, for good."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter | None = None
    dead: bool = False

    def reset(self) -> None:
        """Ends both ends at once, with RST."""
        for end in (self.client, self.server):
            if end is not None:
                with contextlib.suppress(OSError):  # gone already
                    end.get_extra_info("socket").setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, _ABORT
                    )
                end.transport.abort()


class Proxy:
    """Forwards connections to 127.0.0.1:`port` to a server, unless told otherwise.

    Safe to use from any thread.
    """

    def __init__(self, port: int, target: Path | int) -> None:
        """target: where the server is, a Unix socket or a port of 127.0.0.1."""
        self.port = port
        self._target = target
        self._links: set[_Link] = set()
        self._latency_seconds = 0.0
        self._half_open = False
        self._listener: asyncio.Server | None = None
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listens. OSError if the port is taken."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name=f"proxy-{self.port}", daemon=True
        )
        self._thread.start()
        self._do(self._listen())

    def close(self) -> None:
        """Ends everything."""
        if self._thread is not None:
            self._do(self._end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def delay(self, seconds: float) -> None:
        """Delays each piece of data by this time, in either direction; 0 for no delay."""
        self._latency_seconds = seconds

    def half_open(self) -> None:
        """Until `mend`, connections stay and lead nowhere, as behind a forgetful middlebox.

        Those that are open now or come until then stay like that afterwards: nobody tells either
        end.
        """
        self._do(self._half_opened())

    def reset(self) -> None:
        """Ends all connections with RST."""
        self._do(self._reset())

    def refuse(self) -> None:
        """Until `mend`, nobody listens. Ends all connections."""
        self._do(self._refuse())

    def mend(self) -> None:
        """New connections work again."""
        self._half_open = False
        self._latency_seconds = 0
        self._do(self._listen())

    def _do(self, what: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(CALL_SECONDS)

    async def _listen(self) -> None:
        if self._listener is None:
            self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _half_opened(self) -> None:
        self._half_open = True
        for link in self._links:
            link.dead = True
            self._orphan(link)

    async def _reset(self) -> None:
        for link in list(self._links):
            link.reset()

    async def _refuse(self) -> None:
        if self._listener is not None:
            listener, self._listener = self._listener, None
            await close_listener(listener)
        await self._reset()

    async def _end(self) -> None:
        await self._refuse()
        deadline = self._loop.time() + CALL_SECONDS / 2
        while serving := asyncio.all_tasks() - {asyncio.current_task()}:
            if self._loop.time() > deadline:
                break
            # Again and again: a link may get its other end meanwhile.
            await self._reset()
            await asyncio.wait(serving, timeout=0.05)
        await asyncio.sleep(0)  # transports close in the turn after they were told to

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(writer, dead=self._half_open)
        self._links.add(link)
        try:
            if link.dead:
                await self._pump(link, reader, writer)
                return
            server, link.server = await self._connect()
            self._orphan(link)
            await asyncio.gather(
                self._pump(link, reader, link.server), self._pump(link, server, writer)
            )
        except OSError:  # the server is not there: whoever asked hears that the connection is gone
            link.reset()
        finally:
            self._links.discard(link)
            for end in (link.client, link.server):
                if end is not None:
                    end.close()

    def _orphan(self, link: _Link) -> None:
        if link.dead and link.server is not None:
            self._loop.call_later(ORPHAN_SECONDS, link.server.transport.abort)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._target, Path):
            return await asyncio.open_unix_connection(self._target)
        return await asyncio.open_connection("127.0.0.1", self._target)

    async def _pump(
        self, link: _Link, source: asyncio.StreamReader, drain: asyncio.StreamWriter
    ) -> None:
        """Until the source ends; the other end hears of that, unless the link is dead."""
        with contextlib.suppress(ConnectionError):
            while data := await source.read(CHUNK_BYTES):
                if self._latency_seconds:
                    await asyncio.sleep(self._latency_seconds)
                if not link.dead:
                    drain.write(data)
                    await drain.drain()
        if not link.dead:
            drain.close()
