"""Removes rows of the audit that are older than a site has to keep them.

`python -m fluoro_jobs.ledger.purge_audit DAYS`, on a machine that reaches the ledger. It is the one
way past the table's trigger, and writes into the table what it removed.
"""

import os
import re
import sys
from collections.abc import Sequence
from typing import Final, NamedTuple
from uuid import UUID

from fluoro_jobs.errors import FluoroError
from fluoro_jobs.ledger import audit
from fluoro_jobs.ledger.connection import Ledger, LedgerConnection

LEAST_DAYS: Final = 30
"""No younger row is removed."""
MOST_DAYS: Final = 36_500
"""No site keeps rows for longer."""
PIECE: Final = 10_000
"""Rows that a transaction removes, at most."""
FIRST: Final = UUID(int=0)
"""Before the id of any row."""
METHOD: Final = "fluoro.ledger.PurgeAudit"
"""What its own rows call it."""

# For this transaction alone; the trigger looks at it. Purges take turns: one that waited for the
# rows of another would find them gone, and take that for the end.
_ALLOW: Final = """
SELECT set_config('fluoro.purges_audit', 'on', true),
  pg_advisory_xact_lock(hashtextextended('fluoro purge audit', 0))
"""
# Ids have the time in front, by gateways' clocks, which may be wrong by less than a day.
_PIECE: Final = """
WITH cutoff AS (
  SELECT now() - %(days)s * interval '1 day' AS time,
    (lpad(to_hex((greatest(extract(epoch FROM now() - (%(days)s - 1) * interval '1 day'), 0)
      * 1000)::int8), 12, '0') || repeat('0', 20))::uuid AS id
), gone AS (
  DELETE FROM audit WHERE id = ANY(ARRAY(
    SELECT a.id FROM audit a
    WHERE a.id > %(after)s AND a.id < (SELECT id FROM cutoff) AND a.time < (SELECT time FROM cutoff)
    ORDER BY a.id LIMIT %(rows)s))
  RETURNING id
)
SELECT count(*), (SELECT id FROM gone ORDER BY id DESC LIMIT 1) FROM gone
"""


class Purged(NamedTuple):
    """How many rows are gone, and the last of them; None for none."""

    rows: int
    last: UUID | None


def purge(
    connection: LedgerConnection, days: int, rows: int = PIECE, after: UUID = FIRST
) -> Purged:
    """Removes the oldest rows that are older than this, and says so in a row.

    rows: at most so many. To be called until none is removed, each time after the last one:
    otherwise it would walk over all that an earlier call removed and an old snapshot keeps.
    ValueError for less than LEAST_DAYS or more than MOST_DAYS.
    """
    # A typing mistake must not delete the audit of a month.
    if not LEAST_DAYS <= days <= MOST_DAYS:
        raise ValueError(f"at least {LEAST_DAYS} days, and at most {MOST_DAYS}")
    with connection.transaction():
        connection.execute(_ALLOW)
        given = {"days": days, "rows": rows, "after": after}
        row = connection.execute(_PIECE, given).fetchone()
        assert row is not None
        purged = Purged(*row)
        # A purge of nothing leaves no row, or every nightly run would.
        if purged.rows:
            entry = audit.Entry("ledger", "command", (), "", METHOD, "D", calls=purged.rows)
            audit.add(connection, [entry])
    return purged


def main(arguments: Sequence[str]) -> None:
    """Removes all rows that are older than DAYS. Exits with one line if it cannot."""
    url = os.environ.get("FLUORO_DATABASE_URL")
    given = arguments[0] if len(arguments) == 1 else ""
    days = int(given) if re.fullmatch(r"[0-9]{1,9}", given) else 0
    if not url or not LEAST_DAYS <= days <= MOST_DAYS:
        sys.exit(
            "Usage, with FLUORO_DATABASE_URL set: python -m fluoro_jobs.ledger.purge_audit DAYS, "
            f"{LEAST_DAYS} to {MOST_DAYS}"
        )
    ledger = Ledger(url, max_connections=1)
    total, last = 0, FIRST
    try:
        with ledger.connection() as connection:
            while (purged := purge(connection, days, after=last)).last is not None:
                total, last = total + purged.rows, purged.last
    # What earlier pieces removed is gone and on record. Running it again goes on from there.
    except FluoroError as error:
        sys.exit(f"{error} {total} rows were removed before; run it again.")
    finally:
        ledger.close()
    sys.stdout.write(f"{total} rows removed\n")


if __name__ == "__main__":
    main(sys.argv[1:])
