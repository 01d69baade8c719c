"""How many bytes each owner has stored, kept by triggers."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import BIGINT

revision = "0011"
down_revision = "0010"

_ROOM = "ALTER TABLE stored_bytes SET (fillfactor = 50)"
# Writers of one owner would wait for each other's commits if it had one row. Its rows are locked
# at the end of the only statement of a transaction that changes blobs, and in order of owners.
_COUNT = """
CREATE FUNCTION blobs_are_counted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO stored_bytes AS s (owner, slot, bytes)
  SELECT owner, pg_backend_pid() & 15,
    sum(size_bytes) * CASE TG_OP WHEN 'DELETE' THEN -1 ELSE 1 END
  FROM changed GROUP BY owner ORDER BY owner
  ON CONFLICT (owner, slot) DO UPDATE SET bytes = s.bytes + excluded.bytes;
  RETURN NULL;
END $$
"""
_ADDED = """
CREATE TRIGGER blobs_are_counted AFTER INSERT ON blobs REFERENCING NEW TABLE AS changed
  FOR EACH STATEMENT EXECUTE FUNCTION blobs_are_counted()
"""
_REMOVED = """
CREATE TRIGGER removed_blobs_are_counted AFTER DELETE ON blobs REFERENCING OLD TABLE AS changed
  FOR EACH STATEMENT EXECUTE FUNCTION blobs_are_counted()
"""
# Whoever writes blobs waits from the first trigger on, so each is counted once.
_SO_FAR = """
INSERT INTO stored_bytes (owner, slot, bytes) SELECT owner, 0, sum(size_bytes) FROM blobs
GROUP BY owner
"""


def upgrade() -> None:
    op.create_table(
        "stored_bytes",
        sa.Column("owner", sa.Text),
        sa.Column("slot", sa.SmallInteger, comment="of the backend that counted"),
        sa.Column("bytes", BIGINT, nullable=False, comment="the sum over the slots counts"),
        sa.PrimaryKeyConstraint("owner", "slot", name="stored_bytes_pkey"),
    )
    for statement in (_ROOM, _COUNT, _ADDED, _REMOVED, _SO_FAR):
        op.get_bind().exec_driver_sql(statement)
