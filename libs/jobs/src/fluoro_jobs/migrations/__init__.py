"""Alembic migrations of the ledger, applied by `python -m fluoro_jobs.ledger.migrate`."""
