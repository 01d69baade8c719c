"""Service tokens: what they are good for. The ledger has the SHA-256 of each, never the token.

`python -m fluoro_jobs.ledger.tokens OWNER ROLE… ` makes the first one, with which an operator makes
the others.
"""

import hashlib
import os
import secrets
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from psycopg.rows import TupleRow

from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger.audit import Entry, recorded
from fluoro_jobs.ledger.connection import Ledger, LedgerConnection

PREFIX: Final = "fluoro_"
"""What every service token begins with, for programs that look for secrets where none belong."""

ROLES: Final = ("viewer", "submitter", "operator", "worker")

DEFAULT_DAYS: Final = 90
LONGEST_DAYS: Final = 366

_COLUMNS: Final = "id, owner, roles, display_name, creator, create_time, expire_time, revoke_time"
# PostgreSQL's clock decides whether the time is good, as it does when the token is used.
_CREATE: Final = f"""
INSERT INTO tokens (id, sha256, owner, roles, display_name, creator, expire_time)
SELECT %(id)s, %(sha256)s, %(owner)s, %(roles)s, %(display_name)s, %(creator)s, e.at
FROM (SELECT coalesce(%(expire_time)s::timestamptz, now() + %(default)s * interval '1 day')) e(at)
WHERE e.at > now() AND e.at <= now() + %(longest)s * interval '1 day'
RETURNING {_COLUMNS}
"""
_FIND: Final = """
SELECT owner, roles, revoke_time IS NOT NULL, extract(epoch FROM expire_time - now())::float8
FROM tokens WHERE sha256 = %s
"""
# Revoked twice, it keeps the first time: that is when it stopped being good.
_REVOKE: Final = f"""
UPDATE tokens SET revoke_time = coalesce(revoke_time, now()) WHERE id = %s RETURNING {_COLUMNS}
"""
_ALL: Final = f"SELECT {_COLUMNS} FROM tokens WHERE id < %s ORDER BY id DESC LIMIT %s"
_OF_OWNER: Final = (
    f"SELECT {_COLUMNS} FROM tokens WHERE owner = %s AND id < %s ORDER BY id DESC LIMIT %s"
)
_LAST_ID: Final = UUID(int=2**128 - 1)


class Token(NamedTuple):
    """What is known of a token, without the token."""

    id: UUID
    owner: str
    roles: list[str]
    display_name: str
    creator: str
    create_time: datetime
    expire_time: datetime
    revoke_time: datetime | None


class Found(NamedTuple):
    """What a caller's token is good for. seconds: until it expires; negative if it has."""

    owner: str
    roles: list[str]
    revoked: bool
    seconds: float


def digest(token: str) -> bytes:
    """What the ledger has of a token. It has 256 random bits: a slow hash would protect no more."""
    # Looked up by digest, so that no comparison of secrets takes a time that tells something.
    return hashlib.sha256(token.encode()).digest()


def create(
    connection: LedgerConnection,
    owner: str,
    roles: Sequence[str],
    *,
    creator: str,
    display_name: str = "",
    expire_time: datetime | None = None,
) -> tuple[Token, str]:
    """A new token's record, and the token, which nobody sees again.

    expire_time: None for DEFAULT_DAYS from now. FluoroError INVALID_ARGUMENT if it has passed or is
    more than LONGEST_DAYS away.
    """
    secret = PREFIX + secrets.token_urlsafe(32)
    row = connection.execute(
        _CREATE,
        {
            "id": new_id(),
            "sha256": digest(secret),
            "owner": owner,
            "roles": list(roles),
            "display_name": display_name,
            "creator": creator,
            "expire_time": expire_time,
            "default": DEFAULT_DAYS,
            "longest": LONGEST_DAYS,
        },
    ).fetchone()
    if row is None:
        raise FluoroError(
            Reason.INVALID_ARGUMENT,
            f"token.expire_time: Must be after now and within {LONGEST_DAYS} days.",
        )
    return _token(row), secret


def find(connection: LedgerConnection, sha256: bytes) -> Found | None:
    """What the token of this digest is good for. None if there is none."""
    row = connection.execute(_FIND, (sha256,)).fetchone()
    return None if row is None else Found(*row)


def revoke(connection: LedgerConnection, token_id: UUID) -> Token:
    """Revokes it, unless it is already. FluoroError TOKEN_NOT_FOUND."""
    row = connection.execute(_REVOKE, (token_id,)).fetchone()
    # A revoked token stays on record, so only a wrong name comes here.
    if row is None:
        raise FluoroError(Reason.TOKEN_NOT_FOUND, f"tokens/{token_id} does not exist.")
    return _token(row)


def page(
    connection: LedgerConnection, owner: str, size: int, before: UUID | None = None
) -> list[Token]:
    """The newest before an id. owner: only this one's; "" for all."""
    before = before or _LAST_ID
    rows = (
        connection.execute(_OF_OWNER, (owner, before, size))
        if owner
        else connection.execute(_ALL, (before, size))
    )
    return [_token(row) for row in rows.fetchall()]


def _token(row: TupleRow) -> Token:
    return Token(*row)


def main(arguments: Sequence[str]) -> None:
    """Prints a new token for OWNER with the ROLEs. Exits with one line if it cannot."""
    url = os.environ.get("FLUORO_DATABASE_URL")
    owner, *roles = arguments or [""]
    if not url or not owner or not roles or not set(roles) <= set(ROLES):
        sys.exit(
            "Usage, with FLUORO_DATABASE_URL set: python -m fluoro_jobs.ledger.tokens OWNER "
            f"{'|'.join(ROLES)}…"
        )
    ledger = Ledger(url, max_connections=1)
    try:
        entry = Entry("ledger", "command", (), owner, "fluoro.ledger.CreateToken", "C")
        # The row of the audit is in the same transaction: no token exists that nobody is on record
        # for.
        with ledger.connection() as connection, recorded(connection, entry) as things:
            token, secret = create(connection, owner, roles, creator="ledger")
            things.append(f"tokens/{token.id}")
    except FluoroError as error:
        sys.exit(str(error))
    finally:
        ledger.close()
    # To standard error, so that standard output has the secret alone and can go into a file.
    sys.stderr.write(f"tokens/{token.id}, until {token.expire_time:%Y-%m-%d}. Shown once:\n")
    sys.stdout.write(f"{secret}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
