"""The ledger's schema, for migrations.

Hot statements are SQL text beside the code that runs them; ADR 0002 says why.

All times are PostgreSQL's clock. States are the names in `fluoro_jobs.states`.
"""

from collections.abc import Iterable
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

from fluoro_jobs.states import TASK_ENDS, JobState, OpenState, Outcome

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
_COUNTED_UPLOAD: Final = sql("blob_id IS NULL AND (signed OR NOT expired)")


class Xid8(UserDefinedType[str]):
    """PostgreSQL's 64-bit transaction id, which SQLAlchemy does not know."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Its name in SQL."""
        return "xid8"


ischema_names["xid8"] = Xid8


def _one_of(column: str, names: Iterable[str]) -> CheckConstraint:
    return CheckConstraint(
        f"{column} IN ({', '.join(repr(str(name)) for name in names)})", name=column
    )


def _count(name: str, comment: str | None = None) -> Column[int]:
    return Column(name, Integer, nullable=False, server_default="0", comment=comment)


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
    Column("input_count", Integer, nullable=False),
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
    Column("pipeline", Text, comment="that its steps were made from; null for none"),
    Column("pipeline_version", Integer),
    _one_of("state", JobState),
    Index(
        "jobs_owner_request_id_key",
        "owner",
        "request_id",
        unique=True,
        postgresql_where=sql("request_id IS NOT NULL"),
    ),
    Index(None, "owner", "id"),
    Index("jobs_open_idx", "owner", "id", postgresql_where=sql("end_time IS NULL")),
    Index("jobs_end_idx", "owner", "end_time", "id", postgresql_where=sql("end_time IS NOT NULL")),
    Index("jobs_expire_idx", "expire_time", postgresql_where=sql("end_time IS NULL")),
)

JOB_INPUTS: Final = Table(
    "job_inputs",
    METADATA,
    Column("job_id", UUID, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("blob_id", UUID, nullable=False),
    Index(None, "blob_id"),
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
    Column("queue", Text, nullable=False),
    Column("task_name", Text, nullable=False, comment="Celery's, of the operation"),
    Column("request", BYTEA, nullable=False, comment="the operation message"),
    Column("after", ARRAY(SmallInteger), nullable=False, comment="ordinals"),
    Column("max_attempts", SmallInteger, nullable=False),
    Column("initial_backoff_seconds", Float, nullable=False),
    Column("max_backoff_seconds", Float, nullable=False),
    Column("timeout_seconds", Float, nullable=False, comment="of one attempt"),
    Column(
        "sources",
        JSONB(none_as_null=True),
        comment="of its inputs: [[ordinal of a step or null for the job, role, "
        "grouped by the parent of the key], ...]; null for the inputs of the job, empty for none",
    ),
    Column("inputs_per_task", Integer, nullable=False, comment="0 for one task with all of them"),
    Column("requires_all", Boolean, nullable=False, comment="a failed item fails the step"),
    Column("allow_identifiable", Boolean, nullable=False, server_default="false"),
    Column("state", Text, nullable=False),
    _text("reason"),
    _text("message"),
    _count("input_count"),
    _count("task_count"),
    _count("ended_tasks"),
    _count("failed_tasks"),
    _count("lost_inputs", "of its failed tasks"),
    _count("items_total", "of its tasks that have a result, as the next three"),
    _count("items_succeeded"),
    _count("items_skipped"),
    _count("items_failed"),
    _one_of("state", JobState),
)

STEP_INPUTS: Final = Table(
    "step_inputs",
    METADATA,
    Column("job_id", UUID, primary_key=True),
    Column("step", SmallInteger, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("key", Text, nullable=False),
    Column("input", Integer, comment="number of the job's input that it comes from, if it is one"),
    Column("parts", JSONB, nullable=False, comment="[[blob, role, name, media type, step], ...]"),
    ForeignKeyConstraint(["job_id", "step"], ["steps.job_id", "steps.ordinal"], ondelete="CASCADE"),
)
"""Of steps with sources; the inputs of all others are those of the job."""

TASKS: Final = Table(
    "tasks",
    METADATA,
    Column("id", UUID, primary_key=True),
    Column("job_id", UUID, nullable=False),
    Column("step", SmallInteger, nullable=False),
    Column("shard", SmallInteger, nullable=False),
    Column("first_input", Integer, nullable=False, comment="number of its first input"),
    Column("input_count", Integer, nullable=False),
    Column("state", Text, nullable=False, comment="how it ended; OPEN while it is in open_tasks"),
    Column(
        "attempt",
        Integer,
        nullable=False,
        server_default="0",
        comment="claims so far; while it is open, open_tasks knows",
    ),
    Column(
        "allowed",
        Integer,
        nullable=False,
        comment="claims it may have without a result; more after a retry",
    ),
    Column(
        "returned",
        Integer,
        nullable=False,
        server_default="0",
        comment="claims that a store's fault ended, which cost nothing",
    ),
    Column(
        "item_counts",
        ARRAY(Integer),
        comment="total, succeeded, skipped, failed, once it has a result",
    ),
    Column(
        "result",
        BYTEA,
        comment="the result message; "
        "a step's result is its tasks' results, joined in order of shard",
    ),
    Column("result_blob", UUID, comment="the blob that the result is in, if it is large"),
    ForeignKeyConstraint(["job_id", "step"], ["steps.job_id", "steps.ordinal"], ondelete="CASCADE"),
    _one_of("state", ("OPEN", *TASK_ENDS)),
    Index("tasks_job_id_step_shard_key", "job_id", "step", "shard", unique=True),
    Index(None, "result_blob", postgresql_where=sql("result_blob IS NOT NULL")),
)
"""What a task is and how it ended. Written when it is made, when it ends, and when it fails."""

OPEN_TASKS: Final = Table(
    "open_tasks",
    METADATA,
    Column("task_id", UUID, primary_key=True),
    Column("job_id", UUID, nullable=False),
    Column("queue", Text, nullable=False),
    Column("owner", Text, nullable=False, comment="of the job, for fair share"),
    Column("task_name", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column(
        "attempt",
        Integer,
        nullable=False,
        server_default="0",
        comment="claims so far; the fencing token",
    ),
    Column("priority", SmallInteger, nullable=False, comment="of the job"),
    Column("due_time", TIME, nullable=False, comment="not to be dispatched before"),
    Column("order_time", TIME, nullable=False, comment="its first due_time, which gives its place"),
    Column(
        "dispatch_order",
        TIME,
        comment="order_time less a minute per point of priority: ageing that needs no upkeep; "
        "set while READY",
    ),
    Column("queued_time", TIME, comment="set while QUEUED or RUNNING"),
    Column("worker_id", UUID),
    Column("lease_expire_time", TIME),
    _one_of("state", OpenState),
    CheckConstraint("(state = 'READY') = (dispatch_order IS NOT NULL)", name="ready"),
    CheckConstraint("(state IN ('QUEUED', 'RUNNING')) = (queued_time IS NOT NULL)", name="queued"),
    # None of them looks at the state: a claim and the renewal of a lease change no column that an
    # index looks at, and so are HOT.
    Index(
        "open_tasks_ready_idx",
        "queue",
        "task_name",
        "owner",
        "dispatch_order",
        postgresql_where=sql("dispatch_order IS NOT NULL"),
    ),
    Index(
        "open_tasks_in_flight_idx",
        "queue",
        "owner",
        postgresql_where=sql("queued_time IS NOT NULL"),
    ),
    Index(
        "open_tasks_waiting_idx",
        "queue",
        "due_time",
        postgresql_where=sql("dispatch_order IS NULL AND queued_time IS NULL"),
    ),
)
"""Tasks that have not ended: all that changes often. Small, whatever the ledger has seen."""

ATTEMPTS: Final = Table(
    "attempts",
    METADATA,
    Column("task_id", UUID, primary_key=True),
    Column("number", Integer, primary_key=True),
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
    Column("number", Integer, primary_key=True, comment="of the step's input"),
    Column("shard", SmallInteger, nullable=False),
    Column("key", Text, nullable=False, comment="of the step's input"),
    Column("input", Integer, comment="number of the job's input that it comes from, if it is one"),
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

STORED_BYTES: Final = Table(
    "stored_bytes",
    METADATA,
    Column("owner", Text, primary_key=True),
    Column("slot", SmallInteger, primary_key=True, comment="of the backend that counted"),
    Column("bytes", BIGINT, nullable=False, comment="the sum over the slots counts"),
)
"""What blobs take, of each owner. Triggers of blobs keep it."""

UPLOADS: Final = Table(
    "uploads",
    METADATA,
    Column("owner", Text, primary_key=True),
    Column("id", UUID, primary_key=True, comment="chosen by the owner"),
    Column("key", UUID, nullable=False, comment="ours, under which the store has the bytes"),
    Column("size_bytes", BIGINT, nullable=False),
    Column("sha256", BYTEA, nullable=False),
    Column("media_type", Text, nullable=False),
    Column(
        "starts",
        ARRAY(BIGINT),
        nullable=False,
        server_default=sql("'{}'"),
        comment="the byte at which each stream began, the newest last",
    ),
    Column("blob_id", UUID, comment="null until all bytes are there"),
    Column(
        "expired",
        Boolean,
        nullable=False,
        server_default=sql("false"),
        comment="its bytes are being deleted",
    ),
    Column("signed", Boolean, nullable=False, server_default=sql("false"), comment="has a URL"),
    Column("update_time", TIME, nullable=False, server_default=sql("now()")),
    Index("uploads_update_time_idx", "update_time"),
    Index("uploads_open_idx", "owner", postgresql_where=_COUNTED_UPLOAD),
)
"""Uploads that may go on after a broken connection."""

ARTIFACTS: Final = Table(
    "artifacts",
    METADATA,
    Column("job_id", UUID, primary_key=True),
    Column("step", SmallInteger, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("shard", SmallInteger, nullable=False),
    Column("position", Integer, nullable=False, comment="among the artifacts of its task"),
    Column("role", Text, nullable=False),
    Column("key", Text, nullable=False, comment="of the item it belongs to; empty for none"),
    Column("input", Integer, comment="number of the job's input that it comes from, if it is one"),
    Column("blob_id", UUID, ForeignKey("blobs.id"), nullable=False),
    ForeignKeyConstraint(["job_id", "step"], ["steps.job_id", "steps.ordinal"], ondelete="CASCADE"),
    Index(None, "blob_id"),
)

EVENTS: Final = Table(
    "events",
    METADATA,
    Column("job_id", UUID, primary_key=True),
    Column("sequence", BIGINT, primary_key=True),
    Column("time", TIME, nullable=False, server_default=sql("now()")),
    Column("step", SmallInteger, comment="null when the job itself changed"),
    Column("shard", SmallInteger, comment="null unless a task changed"),
    Column("attempt", Integer),
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
    # For who reads the events of all owners. A BRIN knows no xid8.
    Index(
        "events_transaction_id_idx",
        sql("((transaction_id::text)::bigint)"),
        postgresql_using="brin",
    ),
)
"""No foreign key: every event is written together with an update of its job."""

OWNERS: Final = Table(
    "owners",
    METADATA,
    Column("owner", Text, primary_key=True),
    Column(
        "max_tasks",
        Integer,
        comment="most tasks of the owner that are queued or running at once, over all queues; "
        "null for no limit",
    ),
    Column("create_time", TIME, nullable=False, server_default=sql("now()")),
    CheckConstraint("max_tasks >= 0", name="max_tasks"),
)

TOKENS: Final = Table(
    "tokens",
    METADATA,
    Column("id", UUID, primary_key=True),
    Column("sha256", BYTEA, nullable=False, comment="of the token, which is kept nowhere"),
    Column("owner", Text, nullable=False),
    Column("roles", ARRAY(Text), nullable=False),
    _text("display_name"),
    Column("creator", Text, nullable=False, comment="the operator who made it"),
    Column("create_time", TIME, nullable=False, server_default=sql("now()")),
    Column("expire_time", TIME, nullable=False),
    Column("revoke_time", TIME),
    Index("tokens_sha256_key", "sha256", unique=True),
    Index("tokens_owner_id_idx", "owner", "id"),
)

AUDIT: Final = Table(
    "audit",
    METADATA,
    Column("id", UUID, primary_key=True),
    Column("time", TIME, nullable=False, server_default=sql("now()")),
    Column(
        "principal", Text, nullable=False, comment="who made the call; empty if nobody known did"
    ),
    Column("how", Text, nullable=False, comment="the source that vouched for it"),
    Column("owner", Text, nullable=False, comment="whose jobs and blobs the call was about"),
    Column("method", Text, nullable=False, comment="full name of the call"),
    Column("peer", Text, nullable=False, comment="the address it came from"),
    Column(
        "roles",
        ARRAY(Text),
        nullable=False,
        server_default=sql("'{}'"),
        comment="what they might do",
    ),
    Column(
        "action",
        Text,
        nullable=False,
        server_default=sql("''"),
        comment="C, R, U, D or E, as in DICOM PS3.15",
    ),
    Column(
        "thing",
        Text,
        nullable=False,
        server_default=sql("''"),
        comment="name of the job, blob or token; empty for none or several",
    ),
    Column(
        "agent",
        Text,
        nullable=False,
        server_default=sql("''"),
        comment="the user agent, as the caller gave it",
    ),
    Column(
        "outcome",
        Text,
        nullable=False,
        server_default=sql("'OK'"),
        comment="OK or a gRPC code",
    ),
    Column("reason", Text, nullable=False, server_default=sql("''"), comment="of a refusal"),
    Column(
        "calls",
        Integer,
        nullable=False,
        server_default=sql("1"),
        comment="how many calls this row is about; refusals of one kind share one",
    ),
    Index(None, "owner", "id"),
    Index(None, "thing", "id", postgresql_where=sql("thing <> ''")),
)
"""Who did what. A trigger refuses every change but a new row, and the purge of old ones."""
