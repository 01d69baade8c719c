"""Young rows of audit stay, whoever asks: the database looks at each row that is to be deleted."""

from alembic import op

revision = "0015"
down_revision = "0014"

# 30 days: `purge_audit.LEAST_DAYS`.
_KEPT = """
CREATE FUNCTION young_audit_is_kept() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog AS $$
BEGIN
  IF OLD.time > now() - interval '30 days' THEN
    RAISE EXCEPTION 'rows of audit stay for 30 days';
  END IF;
  RETURN OLD;
END $$
"""
_TRIGGER = """
CREATE TRIGGER young_audit_is_kept BEFORE DELETE ON audit
  FOR EACH ROW EXECUTE FUNCTION young_audit_is_kept()
"""


def upgrade() -> None:
    run = op.get_bind().exec_driver_sql
    run(_KEPT)
    run(_TRIGGER)
    # No session brings a `now()` of its own.
    run("ALTER FUNCTION audit_is_kept() SET search_path = pg_catalog")
