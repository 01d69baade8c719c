"""All of the ledger's schema: the tables of `tables.py`, and those of worker processes."""

from typing import Final

from sqlalchemy import Boolean, Column, Float, ForeignKey, Index, SmallInteger, Table, Text
from sqlalchemy import text as sql
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA, UUID

from fluoro_jobs.ledger.tables import METADATA, TIME

__all__ = ["METADATA", "MODELS", "WORKERS"]

WORKERS: Final = Table(
    "workers",
    METADATA,
    Column("id", UUID, primary_key=True),
    Column("name", Text, nullable=False, comment="host:pid"),
    Column("queue", Text, nullable=False),
    Column("slots", SmallInteger, nullable=False),
    Column("version", Text, nullable=False),
    Column(
        "operations",
        ARRAY(Text),
        nullable=False,
        server_default="{}",
        comment="Celery task names that it runs",
    ),
    Column(
        "task_seconds",
        Float,
        nullable=False,
        server_default="0",
        comment="how long one ran lately, on average",
    ),
    Column("start_time", TIME, nullable=False, server_default=sql("now()")),
    Column("expire_time", TIME, nullable=False, comment="renewed by the heartbeat"),
    Index(None, "queue"),
)

MODELS: Final = Table(
    "models",
    METADATA,
    Column("worker_id", UUID, ForeignKey("workers.id", ondelete="CASCADE"), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("version", Text, primary_key=True),
    Column("ready", Boolean, nullable=False, comment="whether the worker serves it"),
    Column("digest", BYTEA, nullable=False, comment="SHA-256 of about and card"),
    Column("about", BYTEA, nullable=False, comment="a fluoro.v1.Model as the worker has it"),
    Column("card", Text, nullable=False, comment="its card, in Markdown"),
    Index(None, "name"),
)
"""What worker processes report of their models."""
