"""All of the ledger's schema: the tables of `tables.py`, and that of worker processes."""

from typing import Final

from sqlalchemy import Column, Float, Index, SmallInteger, Table, Text
from sqlalchemy import text as sql
from sqlalchemy.dialects.postgresql import ARRAY, UUID

from fluoro_jobs.ledger.tables import METADATA, TIME

__all__ = ["METADATA", "WORKERS"]

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
