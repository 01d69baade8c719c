"""Settings of the scheduler, from the environment."""

from fluoro_jobs.redis_url import FORMS, RedisUrl
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Read once at start, from FLUORO_… variables."""

    model_config = SettingsConfigDict(env_prefix="FLUORO_", frozen=True, extra="ignore")

    database_url: str = Field(
        description="The ledger: postgresql://user:password@host/database; with a standby: "
        "postgresql://user:password@host-1,host-2/database?target_session_attrs=read-write."
    )
    redis_url: RedisUrl = Field(description=f"Celery's broker and the wake-ups: {FORMS}.")
    http_host: str = Field(
        "0.0.0.0",  # noqa: S104 - a pod's own address
        description="Address of /metrics, /healthz and /readyz.",
    )
    http_port: int = Field(
        9090,
        ge=0,
        le=65535,
        description="Port of /metrics, /healthz and /readyz; 0 takes a free one.",
    )
    sweep_interval_seconds: float = Field(
        1,
        gt=0,
        description="How often leases are swept, lost messages found and ready tasks dispatched.",
    )
    liveness_seconds: float = Field(
        60,
        gt=0,
        description="How long the main thread may stand still before /healthz answers 503.",
    )
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR.")
    log_format: str = Field(
        "json", pattern="^(json|console)$", description="json, or console for people."
    )
