"""A thread for Python work that would hold the event loop up.

One for all of it: every thread that computes takes its turn of Python's interpreter lock before the
loop gets it again.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

from fluoro_jobs.errors import FluoroError, Reason

Args = ParamSpec("Args")
Result = TypeVar("Result")

MAX_WAITING_BYTES: Final = 64 * 2**20
"""Most bytes of requests that wait for the thread."""

_THREAD: Final = ThreadPoolExecutor(1, thread_name_prefix="heavy")


class Heavy:
    """Functions that run one after the other in a thread."""

    def __init__(self) -> None:
        self._waiting_bytes = 0

    async def run(
        self,
        size_bytes: int,
        function: Callable[Args, Result],
        *args: Args.args,
        **kwargs: Args.kwargs,
    ) -> Result:
        """`function(*args)`, and whatever it raises. size_bytes: what of a caller waits meanwhile.

        FluoroError GATEWAY_BUSY if too much does.
        """
        # One alone may wait always, however large it is.
        if self._waiting_bytes and self._waiting_bytes + size_bytes > MAX_WAITING_BYTES:
            raise FluoroError(
                Reason.GATEWAY_BUSY, "Too many large requests wait in this gateway. Try again."
            )
        self._waiting_bytes += size_bytes
        try:
            return await asyncio.get_running_loop().run_in_executor(
                _THREAD, lambda: function(*args, **kwargs)
            )
        finally:
            self._waiting_bytes -= size_bytes
