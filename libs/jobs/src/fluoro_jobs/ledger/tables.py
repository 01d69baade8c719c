"""The ledger's schema, for migrations.

Hot statements are SQL text beside the code that runs them; ADR 0002 says why.

All times are PostgreSQL's clock. States are the names in `fluoro_jobs.states`.
"""

from typing import Any, Final

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
)
from sqlalchemy import text as sql
from sqlalchemy.dialects.postgresql import ARRAY, BIGINT, BYTEA, JSONB, TIMESTAMP, UUID
from sqlalchemy.dialects.postgresql.base import ischema_names
from sqlalchemy.types import UserDefinedType

from fluoro_jobs.states import JobState, Outcome, TaskState

METADATA: Final = MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "pk": "%(table_name)s_pkey",
    }
)

TIME: Final = TIMESTAMP(timezone=True)


class Xid8(UserDefinedType[str]):
    """PostgreSQL's 64-bit transaction id, which SQLAlchemy does not know."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Its name in SQL."""
        return "xid8"


ischema_names["xid8"] = Xid8


def _one_of(column: str, names: type[JobState | TaskState | Outcome]) -> CheckConstraint:
    return CheckConstraint(
        f"{column} IN ({', '.join(repr(str(name)) for name in names)})", name=column
    )


def _text(name: str) -> Column[str]:
    return Column(name, Text, nullable=False, server_default="")


JOBS: Final = Table(
    "jobs",
    METADATA,
    Column("id", UUID, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("request_id", Text, comment="chosen by the caller; null when none was"),
    Column(
        "request_sha256", BYTEA, comment="of the canonical request, to tell a repeat from a reuse"
    ),
    Column("inputs", ARRAY(UUID), nullable=False),
    Column("labels", JSONB, nullable=False, server_default="{}"),
    Column("priority", SmallInteger, nullable=False, server_default="0"),
    Column("state", Text, nullable=False),
    _text("reason"),
    _text("message"),
    Column(
        "last_sequence",
        BIGINT,
        nullable=False,
        comment="of events; also the version that every transition checks and bumps",
    ),
    Column("create_time", TIME, nullable=False, server_default=sql("now()")),
    Column("schedule_time", TIME),
    Column("expire_time", TIME),
    Column("start_time", TIME),
    Column("end_time", TIME),
    _one_of("state", JobState),
    Index(
        "jobs_owner_request_id_key",
        "owner",
        "request_id",
        unique=True,
        postgresql_where=sql("request_id IS NOT NULL"),
    ),
    Index(None, "owner", "id"),
    Index("jobs_expire_idx", "expire_time", postgresql_where=sql("end_time IS NULL")),
)

STEPS: Final = Table(
    "steps",
    METADATA,
    Column("job_id", UUID, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("ordinal", SmallInteger, primary_key=True),
    Column("name", Text, nullable=False),
    Column(
        "operation", Text, nullable=False, comment="field of the oneof fluoro.v1.Step.operation"
    ),
    Column("request", BYTEA, nullable=False, comment="the operation message"),
    Column("after", ARRAY(SmallInteger), nullable=False, comment="ordinals"),
    Column("max_attempts", SmallInteger, nullable=False),
    Column("initial_backoff_seconds", Float, nullable=False),
    Column("max_backoff_seconds", Float, nullable=False),
    Column("timeout_seconds", Float, nullable=False, comment="of one attempt"),
    Column("fans_out", Boolean, nullable=False, comment="inputs are split over tasks"),
    Column("requires_all", Boolean, nullable=False, comment="a failed item fails the step"),
    Column("state", Text, nullable=False),
    _text("reason"),
    _text("message"),
    _one_of("state", JobState),
)

TASKS: Final = Table(
    "tasks",
    METADATA,
    Column("id", UUID, primary_key=True),
    Column("job_id", UUID, nullable=False),
    Column("step", SmallInteger, nullable=False),
    Column("shard", SmallInteger, nullable=False),
    Column("queue", Text, nullable=False),
    Column("task_name", Text, nullable=False),
    Column("owner", Text, nullable=False, comment="of the job, for fair share"),
    Column("state", Text, nullable=False),
    Column("first_input", Integer, nullable=False, comment="number of its first input"),
    Column("input_count", Integer, nullable=False),
    Column(
        "attempt",
        SmallInteger,
        nullable=False,
        server_default="0",
        comment="claims so far; the fencing token",
    ),
    Column(
        "allowed",
        SmallInteger,
        nullable=False,
        comment="claims it may have without a result; more after a retry",
    ),
    Column(
        "item_counts",
        ARRAY(Integer),
        comment="total, succeeded, skipped, failed, once it has a result",
    ),
    Column(
        "returned",
        SmallInteger,
        nullable=False,
        server_default="0",
        comment="claims that a store's fault ended, which cost nothing",
    ),
    Column(
        "result",
        BYTEA,
        comment="the result message; a step's result is its tasks' results, joined in order of shard",
    ),
    Column("run_after", TIME, nullable=False, server_default=sql("now()")),
    Column(
        "dispatch_order",
        TIME,
        nullable=False,
        comment="accept time less a minute per point of priority: ageing that needs no upkeep",
    ),
    Column("queued_time", TIME),
    Column("lease_expire_time", TIME),
    Column("worker_id", UUID),
    ForeignKeyConstraint(["job_id", "step"], ["steps.job_id", "steps.ordinal"], ondelete="CASCADE"),
    _one_of("state", TaskState),
    Index(None, "job_id", "step"),
    Index(
        "tasks_ready_idx",
        "queue",
        "owner",
        "dispatch_order",
        postgresql_where=sql("state = 'READY'"),
    ),
    Index(
        "tasks_in_flight_idx",
        "queue",
        "owner",
        "state",
        postgresql_where=sql("state IN ('QUEUED', 'RUNNING')"),
    ),
    Index("tasks_lease_idx", "lease_expire_time", postgresql_where=sql("state = 'RUNNING'")),
)

ATTEMPTS: Final = Table(
    "attempts",
    METADATA,
    Column("task_id", UUID, ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True),
    Column("number", SmallInteger, primary_key=True),
    Column("worker", Text, nullable=False, comment="name of the worker process, host:pid"),
    Column("start_time", TIME, nullable=False, server_default=sql("now()")),
    Column("end_time", TIME),
    Column("outcome", Text),
    _text("reason"),
    _text("message"),
    _one_of("outcome", Outcome),
)

ITEMS: Final = Table(
    "items",
    METADATA,
    Column("job_id", UUID, primary_key=True),
    Column("step", SmallInteger, primary_key=True),
    Column("input", Integer, primary_key=True),
    Column("shard", SmallInteger, nullable=False),
    Column("state", SmallInteger, nullable=False, comment="number in fluoro.v1.Item.State"),
    _text("reason"),
    _text("message"),
    ForeignKeyConstraint(["job_id", "step"], ["steps.job_id", "steps.ordinal"], ondelete="CASCADE"),
)

BLOBS: Final = Table(
    "blobs",
    METADATA,
    Column("id", UUID, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("size_bytes", BIGINT, nullable=False),
    Column("sha256", BYTEA, nullable=False),
    Column("media_type", Text, nullable=False),
    Column("uploaded", Boolean, nullable=False, comment="by a client; otherwise an artifact"),
    Column("create_time", TIME, nullable=False, server_default=sql("now()")),
    Index("blobs_upload_key", "owner", "sha256", unique=True, postgresql_where=sql("uploaded")),
)

ARTIFACTS: Final = Table(
    "artifacts",
    METADATA,
    Column("job_id", UUID, primary_key=True),
    Column("step", SmallInteger, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("shard", SmallInteger, nullable=False),
    Column("role", Text, nullable=False),
    Column("input", Integer),
    Column("blob_id", UUID, ForeignKey("blobs.id"), nullable=False),
    ForeignKeyConstraint(["job_id", "step"], ["steps.job_id", "steps.ordinal"], ondelete="CASCADE"),
)

EVENTS: Final = Table(
    "events",
    METADATA,
    Column("job_id", UUID, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("sequence", BIGINT, primary_key=True),
    Column("time", TIME, nullable=False, server_default=sql("now()")),
    Column("step", SmallInteger, comment="null when the job itself changed"),
    Column("shard", SmallInteger, comment="null unless a task changed"),
    Column("attempt", SmallInteger),
    Column("state", Text, nullable=False),
    _text("reason"),
    _text("message"),
    Column("item_counts", ARRAY(Integer), comment="total, succeeded, skipped, failed"),
    Column("owner", Text, nullable=False, comment="of the job, for those who watch all of theirs"),
    Column(
        "transaction_id",
        Xid8,
        nullable=False,
        server_default=sql("pg_current_xact_id()"),
        comment="which wrote it: below a snapshot's xmin nothing comes any more",
    ),
    Index(None, "owner", "transaction_id"),
)

OWNER_LIMITS: Final = Table(
    "owner_limits",
    METADATA,
    Column("owner", Text, primary_key=True),
    Column(
        "max_tasks",
        Integer,
        nullable=False,
        comment="most tasks of the owner that are queued or running at once, over all queues",
    ),
    CheckConstraint("max_tasks >= 0", name="max_tasks"),
)

WORKERS: Final = Table(
    "workers",
    METADATA,
    Column("id", UUID, primary_key=True),
    Column("name", Text, nullable=False, comment="host:pid"),
    Column("queue", Text, nullable=False),
    Column("slots", SmallInteger, nullable=False),
    Column("version", Text, nullable=False),
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
