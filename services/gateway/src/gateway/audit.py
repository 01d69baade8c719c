"""Writes down who did what, and serves nothing before that is durable (ADR 0027)."""

import asyncio
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import structlog
from fluoro_jobs.errors import REASONS, FluoroError, Reason
from fluoro_jobs.ledger import audit
from fluoro_jobs.ledger.audit import Entry
from fluoro_jobs.ledger.connection import Ledger, LedgerConnection

from gateway.audit_kinds import Kind
from gateway.identity.principal import Caller, Principal, Role
from gateway.ledger_calls import LedgerCalls
from gateway.together import AT_ONCE, Together

log = structlog.get_logger(__name__)

Args = ParamSpec("Args")
Result = TypeVar("Result")

WRITE_SECONDS: Final = 10
"""How long an answer waits for its row; then it is refused."""
FLUSH_SECONDS: Final = 10
"""How often refusals are written down. Those of one kind share a row."""
MAX_KINDS: Final = 1000
"""Kinds of refusals that are counted apart between two writes; the rest share one kind."""
MAX_UNKNOWN: Final = 10
"""The same of callers who did not prove who they are: anybody can make as many as there may be."""
MAX_LATE: Final = 10_000
"""Rows of calls that were served while the ledger took no writes; further calls are refused."""
LONGEST_TEXT: Final = 100
"""Characters of an address and of a user agent that are kept."""

_THING: Final = re.compile(r"(?:jobs|blobs|tokens)/[0-9a-f-]{36}")
"""What may be written down of a request: a name as this service gives them out, nothing else."""
_NOBODY: Final = Principal(owner="", roles=frozenset(), how="")
_OTHERS: Final = Entry("", "", (), "", "", "E")
"""The shared kind of all refusals beyond MAX_KINDS."""


class Record:
    """What is written down of one call: in the transaction of a change, or else by `served`."""

    __slots__ = ("_audit", "_caller", "_entry", "_is_written", "_kind", "_method", "_things")

    def __init__(self, audit: "Audit", method: str, kind: Kind, caller: Caller) -> None:
        """method: its full name. caller: whom the door has yet to see."""
        self._audit, self._method, self._kind, self._caller = audit, method, kind, caller
        self._entry: Entry | None = None
        self._things: list[str] = []
        self._is_written = False

    @property
    def entry(self) -> Entry:
        """The row of a call that the door let in and that went well, without its thing."""
        # Built late, because the caller is unknown until the door has let it in.
        if self._entry is None:
            principal = self._caller.known or _NOBODY
            self._entry = Entry(
                principal.name or principal.owner,
                principal.how,
                _words(principal.roles),
                principal.owner,
                self._method,
                self._kind.action,
                _plain(self._caller.peer),
                _plain(self._caller.agent),
            )
        return self._entry

    def asked(self, request: Any) -> None:
        """Takes from the request what it is about."""
        if self._kind.field and _THING.fullmatch(name := getattr(request, self._kind.field)):
            self._things = [name]

    def is_about(self, things: Sequence[str]) -> None:
        """What the answer is about, if no transaction wrote it down and the request names nothing.

        Each has a row of its own.
        """
        self._things = list(things)

    def written(self) -> None:
        """A transaction wrote it down."""
        self._is_written, self._things = True, []

    def with_change(
        self,
        function: Callable[Concatenate[LedgerConnection, Args], Result],
        name: Callable[[Result], str] | None = None,
    ) -> Callable[Concatenate[LedgerConnection, Args], Result]:
        """The function, whose change and row are then one transaction.

        name: of what it changed, by its result, "" for nothing; None for what the request names.
        """

        def changed(
            connection: LedgerConnection, /, *args: Args.args, **kwargs: Args.kwargs
        ) -> Result:
            with audit.recorded(connection, self.entry) as things:
                result = function(connection, *args, **kwargs)
                things.extend(self._things if name is None else filter(None, [name(result)]))
            if things:
                self.written()
            else:
                # Nothing was changed: the row is of the call alone, whatever the request names.
                self._things = []
            return result

        return changed

    async def served(self) -> None:
        """Returns once the call is written down. To be awaited before the first byte is sent.

        FluoroError with a reason of LEDGER_OUTAGES, or GATEWAY_BUSY, if it cannot be.
        """
        principal = self._caller.known
        # A call that touches no patient data matters only if an operator makes it for another
        # owner.
        if principal is None or not (self._kind.always or principal.name):
            return
        # A change has written its own row already.
        if self._things or not self._is_written:
            things = self._things or [""]
            entries = [self.entry._replace(thing=thing) for thing in things]
            try:
                await self._audit.write(entries)
            except FluoroError as error:
                # During a failover, jobs can still be read and their rows are written later. Every
                # other call waits for its row.
                is_read_only = error.reason is Reason.LEDGER_READ_ONLY
                if not (is_read_only and self._kind.may_wait and self._audit.write_later(entries)):
                    raise
            self.written()

    def refused(self, error: FluoroError) -> None:
        """Notes how the call ended, unless it was served before that or the caller may retry."""
        # A caller who may retry will do so, and only the last outcome counts.
        if self._is_written or error.may_retry:
            return
        code = REASONS[error.reason].code or "INTERNAL"
        self._audit.note(
            self.entry._replace(outcome=code, reason=str(error.reason)),
            self._things[0] if len(self._things) == 1 else "",
        )


class Audit:
    """The queue of rows before the ledger. Callers take turns in it."""

    def __init__(self, ledger: Ledger, max_waiting: int) -> None:
        """Made in the event loop that calls come from. ledger: closing it is the caller's.

        max_waiting: calls of one caller that may wait.
        """
        # Threads of its own: answers wait for these rows, whatever callers' reads do meanwhile.
        self._calls = LedgerCalls(ledger, threads=AT_ONCE)
        self._rows: Together[Sequence[Entry], None] = Together(self._calls, _add, max_waiting)
        self._refusals: dict[Entry, Entry] = {}
        self._unknown = 0
        self._late: list[Entry] = []
        self.tasks: list[asyncio.Task[None]] = []
        """What must run for as long as the gateway does."""

    def start(self) -> None:
        """Writes refusals down from now on."""
        self.tasks.append(asyncio.create_task(self._flush_often(), name="audit"))

    async def close(self) -> None:
        """Writes down what is left, if the ledger takes it."""
        # Stopped before the last flush, or two flushes would write the same rows.
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self._flush()
        if self._refusals or self._late:
            log.error("audit_rows_lost", kinds=len(self._refusals), calls=len(self._late))
        await asyncio.to_thread(self._calls.close)

    async def write(self, entries: Sequence[Entry]) -> None:
        """Returns once the rows are durable. FluoroError if they cannot be made so."""
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                await self._rows.of(entries[0].principal, entries)
        except TimeoutError:
            raise FluoroError(
                Reason.LEDGER_UNAVAILABLE,
                "The ledger did not take the row for the audit in time. Try again.",
            ) from None

    def write_later(self, entries: Sequence[Entry]) -> bool:
        """Keeps rows until the ledger takes writes again. False if too many wait."""
        if len(self._late) + len(entries) > MAX_LATE:
            return False
        self._late += entries
        return True

    def note(self, entry: Entry, thing: str) -> None:
        """Keeps a refusal, to be written with how many there were of its kind.

        Nobody waits for the row, as nothing was served. thing: what it was about.
        """
        # A port is another one for each connection.
        key = entry._replace(peer=entry.peer.rpartition(":")[0] or entry.peer)
        is_unknown = not entry.principal
        if is_unknown:
            # Who is nobody may say anything, and call anything.
            key = key._replace(agent="", method="", action="E")
        if key not in self._refusals and not self._has_place(is_unknown):
            # It counts with the others, so no refusal is missing from the sum.
            key, thing = _OTHERS._replace(outcome=key.outcome), ""
        found = self._refusals.get(key)
        if found is None:
            self._refusals[key] = key._replace(thing=thing)
        else:
            # The kind was refused for several things, so its row names none.
            thing = thing if thing == found.thing else ""
            self._refusals[key] = found._replace(calls=found.calls + 1, thing=thing)

    def _has_place(self, is_unknown: bool) -> bool:
        self._unknown += is_unknown
        return len(self._refusals) < MAX_KINDS and not (is_unknown and self._unknown > MAX_UNKNOWN)

    async def _flush_often(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self._flush()

    async def _flush(self) -> None:
        # Taken out before they are written: what is refused meanwhile counts towards the next row.
        refusals, self._refusals, self._unknown = self._refusals, {}, 0
        late, self._late = self._late, []
        if not refusals and not late:
            return
        try:
            await self._calls.run(audit.add, [*late, *refusals.values()])
        except Exception as error:  # noqa: BLE001 - they wait for the next time, whatever it is
            log.warning(
                "audit_rows_wait",
                kinds=len(refusals),
                calls=len(late),
                exception=type(error).__name__,
            )
            # Older rows go first, so that the audit keeps the order of the calls.
            self._late = late + self._late
            for key, entry in self._refusals.items():
                before = refusals.get(key)
                # The same kind may have come again while the write failed.
                calls = entry.calls + (before.calls if before else 0)
                refusals[key] = entry._replace(calls=calls)
            self._refusals = refusals


@lru_cache(maxsize=64)
def _words(roles: frozenset[Role]) -> tuple[str, ...]:
    return tuple(sorted(roles))


def _plain(text: str) -> str:
    """Bounded, and of printable ASCII: the caller's side wrote it."""
    return text[:LONGEST_TEXT] if text.isascii() and text.isprintable() else ""


def _add(connection: LedgerConnection, calls: Sequence[tuple[str, Sequence[Entry]]]) -> list[None]:
    audit.add(connection, [entry for _, entries in calls for entry in entries])
    return [None] * len(calls)
