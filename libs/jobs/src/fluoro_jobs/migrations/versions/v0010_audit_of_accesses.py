"""Every access has a row in audit, and what is offered as a search has an index."""

from alembic import op

revision = "0010"
down_revision = "0009"

_COLUMNS = """
ALTER TABLE audit
  ADD roles text[] NOT NULL DEFAULT '{}', ADD action text NOT NULL DEFAULT '',
  ADD thing text NOT NULL DEFAULT '', ADD agent text NOT NULL DEFAULT '',
  ADD outcome text NOT NULL DEFAULT 'OK', ADD reason text NOT NULL DEFAULT '',
  ADD calls integer NOT NULL DEFAULT 1
"""

# The setting is one transaction's, and only the purge makes it.
_KEPT = """
CREATE OR REPLACE FUNCTION audit_is_kept() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'DELETE' AND current_setting('fluoro.purges_audit', true) = 'on' THEN
    RETURN NULL;
  END IF;
  RAISE EXCEPTION 'rows of audit are added and never changed';
END $$
"""

_COMMENTS = {
    "principal": "who made the call; empty if nobody known did",
    "roles": "what they might do",
    "method": "full name of the call",
    "action": "C, R, U, D or E, as in DICOM PS3.15",
    "thing": "name of the job, blob or token; empty for none or several",
    "agent": "the user agent, as the caller gave it",
    "outcome": "OK or a gRPC code",
    "reason": "of a refusal",
    "calls": "how many calls this row is about; refusals of one kind share one",
}


def upgrade() -> None:
    run = op.get_bind().exec_driver_sql
    run(_COLUMNS)
    run(_KEPT)
    op.create_index("audit_owner_id_idx", "audit", ["owner", "id"])
    op.create_index("audit_thing_id_idx", "audit", ["thing", "id"], postgresql_where="thing <> ''")
    for column, comment in _COMMENTS.items():
        run(f"COMMENT ON COLUMN audit.{column} IS '{comment}'")
