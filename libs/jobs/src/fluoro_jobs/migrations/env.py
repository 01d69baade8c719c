"""Alembic's entry: runs migrations on the connection of `fluoro_jobs.ledger.migrate`."""

from alembic import context

from fluoro_jobs.ledger.schema import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
with context.begin_transaction():
    context.run_migrations()
