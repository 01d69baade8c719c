"""Removes rows of the audit that are older than a site has to keep them.

`python -m fluoro_jobs.ledger.purge_audit DAYS`, on a machine that reaches the ledger. It is the one
way past the table's trigger, and writes into the table what it removed.
"""

import os
import sys
from collections.abc import Sequence
from typing import Final

from fluoro_jobs.errors import FluoroError
from fluoro_jobs.ledger import audit
from fluoro_jobs.ledger.connection import Ledger, LedgerConnection

LEAST_DAYS: Final = 30
"""No younger row is removed."""
PIECE: Final = 10_000
"""Rows that a transaction removes, at most."""
METHOD: Final = "fluoro.ledger.PurgeAudit"
"""What its own rows call it."""

# For this transaction alone; the trigger looks at it.
_ALLOW: Final = "SELECT set_config('fluoro.purges_audit', 'on', true)"
# Ids have the time in front, by gateways' clocks, which may be wrong by less than a day.
_PIECE: Final = """
WITH cutoff AS (
  SELECT now() - %(days)s * interval '1 day' AS time,
    (lpad(to_hex((extract(epoch FROM now() - (%(days)s - 1) * interval '1 day') * 1000)::int8),
      12, '0') || repeat('0', 20))::uuid AS id
)
DELETE FROM audit WHERE id = ANY(ARRAY(
  SELECT a.id FROM audit a
  WHERE a.id < (SELECT id FROM cutoff) AND a.time < (SELECT time FROM cutoff)
  ORDER BY a.id LIMIT %(rows)s))
"""


def purge(connection: LedgerConnection, days: int, rows: int = PIECE) -> int:
    """Removes the oldest rows that are older than this, and says so in a row. How many it removed.

    rows: at most so many. To be called until it is 0. ValueError for less than LEAST_DAYS.
    """
    if days < LEAST_DAYS:
        raise ValueError(f"rows of the last {LEAST_DAYS} days stay")
    with connection.transaction():
        connection.execute(_ALLOW)
        removed = connection.execute(_PIECE, {"days": days, "rows": rows}).rowcount
        if removed:
            entry = audit.Entry("ledger", "command", (), "", METHOD, "D", calls=removed)
            audit.add(connection, [entry])
    return removed


def main(arguments: Sequence[str]) -> None:
    """Removes all rows that are older than DAYS. Exits with one line if it cannot."""
    url = os.environ.get("FLUORO_DATABASE_URL")
    given = arguments[0] if len(arguments) == 1 else ""
    days = int(given) if given.isascii() and given.isdigit() else 0
    if not url or days < LEAST_DAYS:
        sys.exit(
            "Usage, with FLUORO_DATABASE_URL set: python -m fluoro_jobs.ledger.purge_audit DAYS, "
            f"at least {LEAST_DAYS}"
        )
    ledger = Ledger(url, max_connections=1)
    total = 0
    try:
        with ledger.connection() as connection:
            while removed := purge(connection, days):
                total += removed
    except FluoroError as error:
        sys.exit(f"{error} {total} rows were removed before; run it again.")
    finally:
        ledger.close()
    sys.stdout.write(f"{total} rows removed\n")


if __name__ == "__main__":
    main(sys.argv[1:])
