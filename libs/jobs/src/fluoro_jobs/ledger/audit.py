"""Who did what to which job or blob. Rows are added and never changed; a purge removes old ones.

A change and its row are one transaction (`recorded`). What is only read is written down by `add`
before its answer leaves (ADR 0027).
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple
from uuid import UUID

from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger.connection import LedgerConnection

ACCEPTED: Final = "OK"
"""The outcome of a call that was not refused; others are names of gRPC codes."""

# A write that is repeated after a lost connection must not add the same rows again.
_ADD: Final = """
INSERT INTO audit (id, principal, how, roles, owner, method, action, thing, peer, agent, outcome,
  reason, calls)
SELECT id, principal, how, roles, owner, method, action, thing, peer, agent, outcome, reason, calls
FROM json_to_recordset(%s::json) u(id uuid, principal text, how text, roles text[], owner text,
  method text, action text, thing text, peer text, agent text, outcome text, reason text, calls int)
ON CONFLICT DO NOTHING
"""


class Entry(NamedTuple):
    """A row. None of its texts is a patient's.

    principal, how, roles: who called, "" for nobody known; the source that vouched; what they may.
    owner: whose jobs and blobs it was about. method: full name of the call. action: C, R, U, D or E
    (create, read, update, delete, execute; DICOM PS3.15 A.5.1). thing: name of the job, blob or
    token; "" for none or several. peer, agent: address and user agent as the caller's side gave
    them. outcome: ACCEPTED or a gRPC code. reason: of a refusal. calls: how many this row is about.
    """

    principal: str
    how: str
    roles: tuple[str, ...]
    owner: str
    method: str
    action: str
    peer: str = ""
    agent: str = ""
    thing: str = ""
    outcome: str = ACCEPTED
    reason: str = ""
    calls: int = 1

    def caller(self) -> dict[str, str | tuple[str, ...]]:
        """What a submit's row takes from here; the rest it has itself."""
        # A submit has neither outcome nor thing yet: its statement decides which jobs are new, and
        # writes rows for these alone.
        return {
            "principal": self.principal,
            "how": self.how,
            "roles": self.roles,
            "method": self.method,
            "peer": self.peer,
            "agent": self.agent,
        }


def add(connection: LedgerConnection, entries: Sequence[Entry]) -> None:
    """Writes them down in one statement, with PostgreSQL's time."""
    rows = [{"id": str(new_id()), **entry._asdict()} for entry in entries]
    connection.execute(_ADD, (json.dumps(rows),))


@contextmanager
def recorded(
    connection: LedgerConnection, entry: Entry | None, thing: str = ""
) -> Iterator[list[str]]:
    """What the block changes and the row that records it are one transaction.

    thing: name of what it changes. Otherwise the block puts names into the list that this yields,
    and each has a row. entry: None for no rows, as of a caller that is no gateway. A block that
    raises leaves nothing.
    """
    things: list[str] = []
    if entry is None:
        yield things
        return
    with connection.transaction():
        yield things
        # One transaction for both: a change without its row would be a gap in the audit, a row
        # without its change a false one.
        if named := [entry._replace(thing=each) for each in things or [thing] if each]:
            add(connection, named)


def job_name(job: UUID) -> str:
    """What a row calls a job."""
    return f"jobs/{job}"
