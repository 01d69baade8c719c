"""Tells a server that is away from an instance on which it fails."""

from types import TracebackType
from typing import Final

from fluoro_jobs.errors import FluoroError, Reason

SILENT: Final = 2
"""Instances in a row without an answer: then it is the server, and not the instance."""


class Silence:
    """The body of it is one instance.

    One that gets no answer fails alone. With the next one that gets none, the attempt ends.
    """

    def __init__(self) -> None:
        self._in_a_row = 0
        self._last: FluoroError | None = None
        self._answered = False

    def __enter__(self) -> None:
        """Begins an instance."""

    def __exit__(
        self, kind: object, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """FluoroError PACS_UNAVAILABLE that no other attempt may mend, in place of one that may."""
        if not isinstance(error, FluoroError) or error.reason is not Reason.PACS_UNAVAILABLE:
            self._in_a_row, self._answered = 0, True
            return
        self._in_a_row, self._last = self._in_a_row + 1, error
        if self._in_a_row < SILENT:
            raise FluoroError(error.reason, error.message, retryable=False) from error

    def check(self) -> None:
        """Raises the last error if the server answered for no instance at all."""
        if self._last and not self._answered:
            raise self._last
