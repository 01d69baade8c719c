"""Settings every worker has, from the environment."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from fluoro_jobs.redis_url import FORMS, RedisUrl


class WorkerSettings(BaseSettings):
    """Read once at start, from FLUORO_… variables."""

    model_config = SettingsConfigDict(env_prefix="FLUORO_", frozen=True, extra="ignore")

    database_url: str = Field(
        description="The ledger: postgresql://user:password@host/database; with a standby: "
        "postgresql://user:password@host-1,host-2/database?target_session_attrs=read-write."
    )
    redis_url: RedisUrl = Field(description=f"Celery's broker and the wake-ups: {FORMS}.")
    blob_url: str = Field(description="The blob store: file:///folder or s3://bucket/prefix.")
    http_host: str = Field("0.0.0.0", description="Address of /metrics, /healthz and /readyz.")  # noqa: S104 - a pod's own address
    http_port: int = Field(
        9090,
        ge=0,
        le=65535,
        description="Port of /metrics, /healthz and /readyz; 0 takes a free one.",
    )
    slots: int = Field(
        2, ge=1, le=256, description="Tasks run at once by this process; ml-worker's default is 16."
    )
    scratch_folder: Path | None = Field(
        None, description="Where attempts keep their files; unset: the system's temporary folder."
    )
    max_memory_per_child_kib: int = Field(
        1_500_000,
        ge=0,
        description=(
            "A pool child is replaced after the task in which it grew beyond this, "
            "KiB; 0: never. Prefork pools only."
        ),
    )
    child_memory_limit_kib: int = Field(
        4_000_000,
        ge=0,
        description=(
            "Memory a pool child may have at once, KiB (RLIMIT_DATA): an item that asks for "
            "more fails; 0: no limit. Prefork pools only."
        ),
    )
    shutdown_grace_seconds: int = Field(
        60,
        ge=1,
        description=(
            "After SIGTERM: how long running tasks may finish; then they are handed "
            "back. Shorter than the pod's grace period."
        ),
    )
    deaf_after_seconds: float = Field(
        90,
        gt=0,
        description="A worker beside whose free slot one message has waited this long, or one of "
        "whose slots is taken for this long by what is over, hands back what runs, and ends with "
        "exit code 1. Longer than a pool child may take to start (60 s).",
    )
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR.")
    log_format: str = Field(
        "json", pattern="^(json|console)$", description="json, or console for people."
    )
