"""What operators do, written down before it happens. Rows are added and never changed."""

from typing import Final, NamedTuple

from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger.connection import LedgerConnection

_ADD: Final = """
INSERT INTO audit (id, principal, how, owner, method, peer) VALUES (%s, %s, %s, %s, %s, %s)
"""


class Action(NamedTuple):
    """An operator's call.

    principal: who makes it. how: the source that vouches for it. owner: whose jobs and blobs it is
    about. method: its full name. peer: the address it came from. None of them is a patient's.
    """

    principal: str
    how: str
    owner: str
    method: str
    peer: str


def add(connection: LedgerConnection, action: Action) -> None:
    """Writes it down, with PostgreSQL's time."""
    connection.execute(_ADD, (new_id(), *action))
