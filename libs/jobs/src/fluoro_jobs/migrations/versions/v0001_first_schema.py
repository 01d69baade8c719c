"""The first schema."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from fluoro_jobs.ledger.tables import Xid8

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "blobs",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BIGINT(), nullable=False),
        sa.Column("sha256", postgresql.BYTEA(), nullable=False),
        sa.Column("media_type", sa.Text(), nullable=False),
        sa.Column(
            "uploaded", sa.Boolean(), nullable=False, comment="by a client; otherwise an artifact"
        ),
        sa.Column(
            "create_time",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("blobs_pkey")),
    )
    op.create_index(
        "blobs_upload_key",
        "blobs",
        ["owner", "sha256"],
        unique=True,
        postgresql_where=sa.text("uploaded"),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column(
            "request_id",
            sa.Text(),
            nullable=True,
            comment="chosen by the caller; null when none was",
        ),
        sa.Column(
            "request_sha256",
            postgresql.BYTEA(),
            nullable=True,
            comment="of the canonical request, to tell a repeat from a reuse",
        ),
        sa.Column("inputs", postgresql.ARRAY(sa.UUID()), nullable=False),
        sa.Column(
            "labels", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False
        ),
        sa.Column("priority", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("message", sa.Text(), server_default="", nullable=False),
        sa.Column(
            "last_sequence",
            sa.BIGINT(),
            nullable=False,
            comment="of events; also the version that every transition checks and bumps",
        ),
        sa.Column(
            "create_time",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("schedule_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("expire_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("start_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("end_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint(
            (
                "state IN ('PENDING', 'RUNNING', 'SUCCEEDED', 'PARTIALLY_SUCCEEDED', 'FAILED', "
                "'CANCELLED')"
            ),
            name=op.f("jobs_state_check"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("jobs_pkey")),
    )
    op.create_index(
        "jobs_expire_idx",
        "jobs",
        ["expire_time"],
        unique=False,
        postgresql_where=sa.text("end_time IS NULL"),
    )
    op.create_index(op.f("jobs_owner_id_idx"), "jobs", ["owner", "id"], unique=False)
    op.create_index(
        "jobs_owner_request_id_key",
        "jobs",
        ["owner", "request_id"],
        unique=True,
        postgresql_where=sa.text("request_id IS NOT NULL"),
    )
    op.create_table(
        "owner_limits",
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column(
            "max_tasks",
            sa.Integer(),
            nullable=False,
            comment="most tasks of the owner that are queued or running at once, over all queues",
        ),
        sa.CheckConstraint("max_tasks >= 0", name=op.f("owner_limits_max_tasks_check")),
        sa.PrimaryKeyConstraint("owner", name=op.f("owner_limits_pkey")),
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False, comment="host:pid"),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("slots", sa.SmallInteger(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column(
            "task_seconds",
            sa.Float(),
            server_default="0",
            nullable=False,
            comment="how long one ran lately, on average",
        ),
        sa.Column(
            "start_time",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column(
            "expire_time",
            postgresql.TIMESTAMP(timezone=True),
            nullable=False,
            comment="renewed by the heartbeat",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("workers_pkey")),
    )
    op.create_index(op.f("workers_queue_idx"), "workers", ["queue"], unique=False)
    op.create_table(
        "events",
        sa.Column("job_id", sa.UUID(), nullable=False),
        sa.Column("sequence", sa.BIGINT(), nullable=False),
        sa.Column(
            "time",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column(
            "step", sa.SmallInteger(), nullable=True, comment="null when the job itself changed"
        ),
        sa.Column("shard", sa.SmallInteger(), nullable=True, comment="null unless a task changed"),
        sa.Column("attempt", sa.SmallInteger(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("message", sa.Text(), server_default="", nullable=False),
        sa.Column(
            "item_counts",
            postgresql.ARRAY(sa.Integer()),
            nullable=True,
            comment="total, succeeded, skipped, failed",
        ),
        sa.Column(
            "owner",
            sa.Text(),
            nullable=False,
            comment="of the job, for those who watch all of theirs",
        ),
        sa.Column(
            "transaction_id",
            Xid8(),
            server_default=sa.text("pg_current_xact_id()"),
            nullable=False,
            comment="which wrote it: below a snapshot's xmin nothing comes any more",
        ),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("events_job_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "sequence", name=op.f("events_pkey")),
    )
    op.create_index(
        op.f("events_owner_transaction_id_idx"), "events", ["owner", "transaction_id"], unique=False
    )
    op.create_table(
        "steps",
        sa.Column("job_id", sa.UUID(), nullable=False),
        sa.Column("ordinal", sa.SmallInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column(
            "operation",
            sa.Text(),
            nullable=False,
            comment="field of the oneof fluoro.v1.Step.operation",
        ),
        sa.Column("request", postgresql.BYTEA(), nullable=False, comment="the operation message"),
        sa.Column("after", postgresql.ARRAY(sa.SmallInteger()), nullable=False, comment="ordinals"),
        sa.Column("max_attempts", sa.SmallInteger(), nullable=False),
        sa.Column("initial_backoff_seconds", sa.Float(), nullable=False),
        sa.Column("max_backoff_seconds", sa.Float(), nullable=False),
        sa.Column("timeout_seconds", sa.Float(), nullable=False, comment="of one attempt"),
        sa.Column("fans_out", sa.Boolean(), nullable=False, comment="inputs are split over tasks"),
        sa.Column(
            "requires_all", sa.Boolean(), nullable=False, comment="a failed item fails the step"
        ),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("message", sa.Text(), server_default="", nullable=False),
        sa.CheckConstraint(
            (
                "state IN ('PENDING', 'RUNNING', 'SUCCEEDED', 'PARTIALLY_SUCCEEDED', 'FAILED', "
                "'CANCELLED')"
            ),
            name=op.f("steps_state_check"),
        ),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("steps_job_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "ordinal", name=op.f("steps_pkey")),
    )
    op.create_table(
        "artifacts",
        sa.Column("job_id", sa.UUID(), nullable=False),
        sa.Column("step", sa.SmallInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("shard", sa.SmallInteger(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("input", sa.Integer(), nullable=True),
        sa.Column("blob_id", sa.UUID(), nullable=False),
        sa.ForeignKeyConstraint(["blob_id"], ["blobs.id"], name=op.f("artifacts_blob_id_fkey")),
        sa.ForeignKeyConstraint(
            ["job_id", "step"],
            ["steps.job_id", "steps.ordinal"],
            name=op.f("artifacts_job_id_step_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("job_id", "step", "name", name=op.f("artifacts_pkey")),
    )
    op.create_table(
        "items",
        sa.Column("job_id", sa.UUID(), nullable=False),
        sa.Column("step", sa.SmallInteger(), nullable=False),
        sa.Column("input", sa.Integer(), nullable=False),
        sa.Column("shard", sa.SmallInteger(), nullable=False),
        sa.Column(
            "state", sa.SmallInteger(), nullable=False, comment="number in fluoro.v1.Item.State"
        ),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("message", sa.Text(), server_default="", nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id", "step"],
            ["steps.job_id", "steps.ordinal"],
            name=op.f("items_job_id_step_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("job_id", "step", "input", name=op.f("items_pkey")),
    )
    op.create_table(
        "tasks",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("job_id", sa.UUID(), nullable=False),
        sa.Column("step", sa.SmallInteger(), nullable=False),
        sa.Column("shard", sa.SmallInteger(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("task_name", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False, comment="of the job, for fair share"),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("first_input", sa.Integer(), nullable=False, comment="number of its first input"),
        sa.Column("input_count", sa.Integer(), nullable=False),
        sa.Column(
            "attempt",
            sa.SmallInteger(),
            server_default="0",
            nullable=False,
            comment="claims so far; the fencing token",
        ),
        sa.Column(
            "allowed",
            sa.SmallInteger(),
            nullable=False,
            comment="claims it may have without a result; more after a retry",
        ),
        sa.Column(
            "item_counts",
            postgresql.ARRAY(sa.Integer()),
            nullable=True,
            comment="total, succeeded, skipped, failed, once it has a result",
        ),
        sa.Column(
            "result",
            postgresql.BYTEA(),
            nullable=True,
            comment=(
                "the result message; a step's result is its tasks' results, joined in "
                "order of shard"
            ),
        ),
        sa.Column(
            "run_after",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column(
            "dispatch_order",
            postgresql.TIMESTAMP(timezone=True),
            nullable=False,
            comment="accept time less a minute per point of priority: ageing that needs no upkeep",
        ),
        sa.Column("queued_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("lease_expire_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("worker_id", sa.UUID(), nullable=True),
        sa.CheckConstraint(
            (
                "state IN ('BLOCKED', 'READY', 'QUEUED', 'RUNNING', 'SUCCEEDED', 'FAILED', "
                "'CANCELLED')"
            ),
            name=op.f("tasks_state_check"),
        ),
        sa.ForeignKeyConstraint(
            ["job_id", "step"],
            ["steps.job_id", "steps.ordinal"],
            name=op.f("tasks_job_id_step_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("tasks_pkey")),
    )
    op.create_index(
        "tasks_in_flight_idx",
        "tasks",
        ["queue", "owner", "state"],
        unique=False,
        postgresql_where=sa.text("state IN ('QUEUED', 'RUNNING')"),
    )
    op.create_index(op.f("tasks_job_id_step_idx"), "tasks", ["job_id", "step"], unique=False)
    op.create_index(
        "tasks_lease_idx",
        "tasks",
        ["lease_expire_time"],
        unique=False,
        postgresql_where=sa.text("state = 'RUNNING'"),
    )
    op.create_index(
        "tasks_ready_idx",
        "tasks",
        ["queue", "owner", "dispatch_order"],
        unique=False,
        postgresql_where=sa.text("state = 'READY'"),
    )
    op.create_table(
        "attempts",
        sa.Column("task_id", sa.UUID(), nullable=False),
        sa.Column("number", sa.SmallInteger(), nullable=False),
        sa.Column(
            "worker", sa.Text(), nullable=False, comment="name of the worker process, host:pid"
        ),
        sa.Column(
            "start_time",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("end_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("message", sa.Text(), server_default="", nullable=False),
        sa.CheckConstraint(
            "outcome IN ('SUCCEEDED', 'FAILED', 'LOST', 'CANCELLED', 'RELEASED')",
            name=op.f("attempts_outcome_check"),
        ),
        sa.ForeignKeyConstraint(
            ["task_id"], ["tasks.id"], name=op.f("attempts_task_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("task_id", "number", name=op.f("attempts_pkey")),
    )
    # ### end Alembic commands ###
    for table in (
        "jobs",
        "steps",
        "tasks",
    ):  # room for updates within the page (HOT): these rows change a few times each
        op.execute(f"ALTER TABLE {table} SET (fillfactor = 70)")
