"""The sync client: AsyncClient on one background event loop.

Methods are made from AsyncClient's, so the two cannot drift apart.
"""

import asyncio
import functools
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar

import grpc

from fluoro_client.aio import AsyncClient
from fluoro_client.credentials import Tls, Token

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_END: Final = object()
"""What follows the last item of an iterator."""


def _call(
    method: Callable[Concatenate[AsyncClient, Parameters], Coroutine[Any, Any, Result]],
) -> "Callable[Concatenate[Client, Parameters], Result]":
    """A method that waits for what `method` returns."""

    @functools.wraps(method)
    def call(client: "Client", /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        return client._run(method(client._async, *args, **kwargs))  # noqa: SLF001 - these are Client's methods

    return call


def _iterate(
    method: Callable[Concatenate[AsyncClient, Parameters], AsyncGenerator[Result, None]],
) -> "Callable[Concatenate[Client, Parameters], Generator[Result, None, None]]":
    """A method that yields what `method` yields."""

    @functools.wraps(method)
    def iterate(
        client: "Client", /, *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> Generator[Result, None, None]:
        return client._drain(method(client._async, *args, **kwargs))  # noqa: SLF001 - these are Client's methods

    return iterate


class Client:
    """A connection to Fluoro for one owner, for code without an event loop.

    Parameters and methods are AsyncClient's.

    Safe to use from several threads. Close it, best with `with`: it holds a thread. Do not carry it
    over a fork.
    """

    submit = _call(AsyncClient.submit)
    submit_many = _call(AsyncClient.submit_many)
    run = _call(AsyncClient.run)
    pipeline = _call(AsyncClient.pipeline)
    pipelines = _iterate(AsyncClient.pipelines)
    models = _iterate(AsyncClient.models)
    model = _call(AsyncClient.model)
    get = _call(AsyncClient.get)
    list = _iterate(AsyncClient.list)
    list_inputs = _iterate(AsyncClient.list_inputs)
    list_tasks = _iterate(AsyncClient.list_tasks)
    list_items = _iterate(AsyncClient.list_items)
    list_artifacts = _iterate(AsyncClient.list_artifacts)
    result = _call(AsyncClient.result)
    wait = _call(AsyncClient.wait)
    explain = _call(AsyncClient.explain)
    cancel = _call(AsyncClient.cancel)
    cancel_matching = _call(AsyncClient.cancel_matching)
    count = _call(AsyncClient.count)
    delete = _call(AsyncClient.delete)
    retry = _call(AsyncClient.retry)
    create_token = _call(AsyncClient.create_token)
    list_tokens = _iterate(AsyncClient.list_tokens)
    revoke_token = _call(AsyncClient.revoke_token)
    diagnose = _call(AsyncClient.diagnose)
    retry_matching = _call(AsyncClient.retry_matching)
    watch = _iterate(AsyncClient.watch)
    watch_jobs = _iterate(AsyncClient.watch_jobs)
    upload = _call(AsyncClient.upload)
    upload_directly = _call(AsyncClient.upload_directly)
    import_blob = _call(AsyncClient.import_blob)
    get_blob = _call(AsyncClient.get_blob)
    download = _call(AsyncClient.download)
    audit_events = _iterate(AsyncClient.audit_events)

    def __init__(
        self,
        endpoint: str,
        *,
        owner: str = "",
        deadline_seconds: float = 30,
        patience_seconds: float = 120,
        credentials: grpc.ChannelCredentials | None = None,
        tls: Tls | None = None,
        token: Token | None = None,
    ) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="fluoro-client", daemon=True
        )
        self._thread.start()

        async def connect() -> AsyncClient:
            return AsyncClient(
                endpoint,
                owner=owner,
                deadline_seconds=deadline_seconds,
                patience_seconds=patience_seconds,
                credentials=credentials,
                tls=tls,
                token=token,
            )

        try:
            self._async = self._run(connect())
        except BaseException:
            self._stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends every call that is still running, the connection and the thread. May be repeated."""
        if not self._loop.is_closed():
            self._run(self._async.close())
            self._stop()

    def _stop(self) -> None:
        self._run(self._loop.shutdown_asyncgens())
        self._run(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            # Ctrl-C in the caller's thread must not leave the call running in ours.
            future.cancel()
            raise

    def _drain(self, items: AsyncGenerator[Result, None]) -> Generator[Result, None, None]:
        turn = asyncio.Lock()

        async def step() -> Result | object:
            async with turn:
                return await anext(items, _END)

        async def close() -> None:
            # A step that was interrupted may still be unwinding.
            async with turn:
                await items.aclose()

        try:
            while (item := self._run(step())) is not _END:
                yield item  # type: ignore[misc]  # everything but _END is a Result
        finally:
            self._run(close())
