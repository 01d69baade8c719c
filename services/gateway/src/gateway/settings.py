"""Every setting of the gateway, from environment variables prefixed FLUORO_."""

import ipaddress
from typing import Annotated, Final, Literal

from fluoro_blobs.store import REQUEST_SECONDS
from fluoro_jobs.ids import OWNER
from fluoro_jobs.ledger.connection import STATEMENT_SECONDS
from fluoro_jobs.outbound import Outbound
from fluoro_jobs.redis_url import FORMS, RedisUrl
from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from gateway.limits.owners import MOST_OPEN_JOBS, OwnerLimits

Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]

SOURCE: Final = "(mtls|tokens|jwt|none|trusted-metadata)"
"""Ways in which callers may prove who they are."""

ROLES: Final = "(viewer|submitter|operator|worker)"
BINDING: Final = rf"({OWNER}|\*)={ROLES}(\+{ROLES})*"
"""Roles of one owner, or of all."""


class Settings(BaseSettings):
    """Settings of one gateway process. Refused at start when one is missing or out of range."""

    model_config = SettingsConfigDict(env_prefix="FLUORO_", frozen=True, extra="ignore")

    database_url: str = Field(
        min_length=1,
        description="The ledger: postgresql://user:password@host/database; with a standby: "
        "postgresql://user:password@host-1,host-2/database?target_session_attrs=read-write.",
    )
    redis_url: RedisUrl = Field(
        description=f"Wake-ups and live progress: {FORMS}. May be down; nothing is lost."
    )
    blob_url: str = Field(
        min_length=1, description="The blob store: file:///path or s3://bucket/prefix."
    )
    grpc_host: str = Field(default="0.0.0.0", description="Address the gRPC server listens on.")  # noqa: S104 - a pod has one address and it is not known before
    grpc_port: Port = Field(
        default=50051, description="Port of the gRPC server; 0 takes a free one."
    )
    tls_certificate_file: str = Field(
        default="",
        description=(
            "Certificate of the gateway and those up to its authority, PEM. Empty serves without "
            "encryption. Read anew when it is replaced."
        ),
    )
    tls_key_file: str = Field(
        default="", validate_default=True, description="Key of the certificate, PEM, no password."
    )
    tls_client_ca_file: str = Field(
        default="",
        validate_default=True,
        description="Authorities of callers, PEM. With it every caller needs a certificate of one.",
    )
    http_host: str = Field(
        default="0.0.0.0",  # noqa: S104 - as above
        description="Address of /metrics, /healthz and /readyz.",
    )
    http_port: Port = Field(
        default=9090, description="Port of /metrics, /healthz and /readyz; 0 takes a free one."
    )
    identity: str = Field(
        default="none",
        pattern=f"^{SOURCE}(,{SOURCE})*$",
        validate_default=True,
        description=(
            "How callers prove who they are; several, with commas between, are asked in turn. "
            "trusted-metadata believes the metadata fluoro-owner: for meshes whose proxy sets "
            "it. none believes it too and allows everything, on loopback alone. See identity.md."
        ),
    )
    single_owner: str = Field(
        default="",
        pattern=f"^({OWNER})?$",
        description=(
            "With trusted-metadata or none: owner of calls without the metadata fluoro-owner, "
            "where there is one user. Empty refuses them with OWNER_MISSING."
        ),
    )
    pipelines_folder: str = Field(
        default="",
        description=(
            "Folder with pipelines of the operator, *.yaml, beside those that ship. Read at the "
            "start; a file that cannot be used stops it."
        ),
    )
    role_bindings: str = Field(
        default="",
        pattern=f"^({BINDING}(,{BINDING})*)?$",
        description=(
            "Roles of owners who prove who they are: OWNER=ROLE+ROLE,OWNER=ROLE. The owner * "
            "stands for all of them. Roles: viewer, submitter, operator, worker."
        ),
    )
    token_cache_seconds: Annotated[float, Field(gt=0, le=300)] = Field(
        default=10,
        description=(
            "With tokens: how long what the ledger said of a token is good. A revoked one is "
            "taken for so long."
        ),
    )
    mtls_trust_domain: str = Field(
        default="",
        description=(
            "With mtls: whose SPIFFE IDs name owners, and nothing else does. Empty takes the "
            "certificate's common name."
        ),
    )
    jwt_issuer: str = Field(
        default="",
        validate_default=True,
        description="With jwt: the claim iss, character by character.",
    )
    jwt_audience: str = Field(
        default="",
        validate_default=True,
        description="With jwt: what the claim aud must be or contain.",
    )
    jwt_keys: str = Field(
        default="",
        description=(
            "URL or file of the issuer's keys, a JWKS. Empty asks the issuer: "
            ".well-known/openid-configuration."
        ),
    )
    jwt_ca_file: str = Field(
        default="",
        description="Authorities for the connection to the issuer, PEM. Empty takes the system's.",
    )
    jwt_fetch_token_file: str = Field(
        default="",
        description="File with a bearer token for the issuer itself, as Kubernetes wants one.",
    )
    jwt_refresh_seconds: Seconds = Field(
        default=300,
        description="How often the issuer's keys are fetched. They are kept while it is away.",
    )
    jwt_owner_claim: str = Field(
        default="sub", min_length=1, description="Claim that is the owner, or a path with dots."
    )
    jwt_roles_claim: str = Field(
        default="roles",
        min_length=1,
        description="Claim with roles, or a path with dots: realm_access.roles.",
    )
    reflection: bool = Field(
        default=True,
        description="Whether anyone may ask the gateway for its API (gRPC reflection).",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="Least severe level that is logged."
    )
    log_format: Literal["json", "console"] = Field(
        default="json", description="json for machines, console for people."
    )
    shutdown_grace_seconds: Seconds = Field(
        default=30,
        description="How long calls in flight may go on after SIGTERM. Keep below the pod's grace.",
    )
    max_message_bytes: Count = Field(
        default=4 * 2**20,
        description="Largest request message; one above it is refused with MESSAGE_TOO_LARGE.",
    )
    blob_request_seconds: Seconds = Field(
        default=REQUEST_SECONDS,
        description=(
            "For one request to a bucket. A call of the blob store, of whichever "
            "kind, is given up after 2.5 times as long."
        ),
    )
    max_blob_bytes: Count = Field(
        default=16 * 2**30,
        description="Largest blob that may be uploaded; above it, BLOB_TOO_LARGE.",
    )
    import_sources: str = Field(
        default="",
        description=(
            "Servers and buckets that callers may have blobs fetched from (ImportBlob): "
            "https://host, https://host:port or s3://bucket/prefix, with commas between them. "
            "Buckets are read with the gateway's AWS_… variables."
        ),
    )
    import_networks: str = Field(
        default="",
        description=(
            "Networks that names of those servers may lead to though they are not public: "
            "10.1.0.0/16, with commas between them."
        ),
    )
    max_uploads: Count = Field(
        default=64, description="Uploads under way at one time; more are refused with UPLOADS_BUSY."
    )
    upload_memory_bytes: Count = Field(
        default=128 * 2**20,
        description=(
            "Memory for parts of uploads over 256 KiB: each takes 2 MiB of it with a folder "
            "(4 MiB after its first 32 MiB, if three quarters are free), 10 MiB with a bucket. "
            "Others wait."
        ),
    )
    upload_owner_share: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.5, description="Share of either that the uploads of one owner may take."
    )
    upload_idle_seconds: Seconds = Field(
        default=30,
        description=(
            "Silence of a caller, and the wait for memory, after which an upload is "
            "ended with UPLOAD_TOO_SLOW or UPLOADS_BUSY."
        ),
    )
    upload_min_bytes_per_second: Count = Field(
        default=16 * 2**10,
        description=(
            "Least average rate of an upload, after the first upload_idle_seconds of "
            "waiting for its caller, and of a source that is imported."
        ),
    )
    upload_keep_seconds: Annotated[float, Field(ge=3600)] = Field(
        default=24 * 3600,
        description=(
            "How long an upload that broke off can be gone on with; after that its "
            "bytes are deleted."
        ),
    )
    max_downloads: Count = Field(
        default=64,
        description=(
            "Downloads under way at one time, of one owner the same share; more "
            "wait: GATEWAY_BUSY after 30 s."
        ),
    )
    download_stall_seconds: Seconds = Field(
        default=30,
        description=(
            "How long a caller may read nothing of a download before it ends with "
            "DOWNLOAD_TOO_SLOW; resume it."
        ),
    )
    collect_interval_seconds: Annotated[float, Field(ge=0)] = Field(
        default=60,
        description=(
            "How often a page of up to 1000 blobs is looked through for those "
            "without a record; 0 collects nothing."
        ),
    )
    collect_after_seconds: Annotated[float, Field(ge=8 * 3600)] = Field(
        default=24 * 3600,
        description=(
            "Age at which bytes without a record are deleted; an attempt may take 6 "
            "h to record them."
        ),
    )
    collect_seen_seconds: Annotated[float, Field(ge=0)] = Field(
        default=8 * 3600,
        description=(
            "How long a gateway itself has seen bytes without a record before it "
            "deletes them, whatever age clocks say."
        ),
    )
    owner_calls_per_second: Annotated[float, Field(ge=0, le=1e6)] = Field(
        default=0,
        description=(
            "Calls that an owner may begin, over all gateways; 0 for no limit. It may save up 5 s "
            "of them. More are refused with RATE_LIMITED."
        ),
    )
    owner_jobs_per_second: Annotated[float, Field(ge=0, le=1e6)] = Field(
        default=0, description="The same of jobs that an owner submits, one by one or in batches."
    )
    owner_max_calls: Annotated[int, Field(ge=0)] = Field(
        default=8192,
        description=(
            "Calls of an owner under way in a gateway, watches and waits aside; more are refused "
            "with TOO_MANY_CALLS. 0 for no limit."
        ),
    )
    owner_max_streams: Annotated[int, Field(ge=0)] = Field(
        default=20_000,
        description="The same of watches and waits: WatchJob, WatchJobs, RunJob, WaitJob.",
    )
    owner_max_open_jobs: Annotated[int, Field(ge=0, le=MOST_OPEN_JOBS)] = Field(
        default=0,
        description=(
            "Jobs of an owner that have not ended, over all gateways; more are refused with "
            "JOB_QUOTA_EXCEEDED. 0 for no limit."
        ),
    )
    owner_max_stored_bytes: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description=(
            "Bytes of an owner's blobs, over all gateways; uploads of more are refused with "
            "BYTE_QUOTA_EXCEEDED. 0 for no limit."
        ),
    )
    owner_limits_file: str = Field(
        default="",
        description=(
            "TOML file with other limits for some owners, by name. Read anew when it changes. See "
            "limits.md."
        ),
    )
    call_timeout_seconds: Seconds = Field(
        default=60,
        description=(
            "How long a call may take that brings no deadline: then CALL_TIMEOUT. Not of streams "
            "and WaitJob."
        ),
    )
    max_pending_requests: Count = Field(
        default=256,
        description=(
            "Calls of one method that may wait to begin; more of an owner who has more than its "
            "share of them are refused with TOO_MANY_CALLS. See limits.md."
        ),
    )
    max_streams_per_connection: Count = Field(
        default=1024,
        description=(
            "Calls under way over one connection, watches and waits with them. A client keeps "
            "more to itself until one ends. See limits.md."
        ),
    )
    max_connection_age_seconds: Annotated[float, Field(ge=0)] = Field(
        default=0,
        description=(
            "Age at which a connection is asked to reconnect, so that load spreads "
            "over new gateways; 0 keeps it for ever."
        ),
    )
    keepalive_seconds: Seconds = Field(
        default=60, description="Silence after which the server pings a connection."
    )
    keepalive_timeout_seconds: Seconds = Field(
        default=20,
        description="How long a ping may stay unanswered before the connection is dropped.",
    )
    ledger_threads: Count = Field(
        default=8,
        description="Callers' reads and changes of the ledger at one time, a connection each.",
    )
    ledger_waiting_calls: Count = Field(
        default=4096,
        description=(
            "Calls of one owner that may wait for one of these; more are refused "
            "with GATEWAY_BUSY at once."
        ),
    )
    ledger_statement_seconds: Seconds = Field(
        default=STATEMENT_SECONDS,
        description=(
            "Deadline of a statement; PostgreSQL that does not answer by then is taken to be away."
        ),
    )
    submit_timeout_seconds: Seconds = Field(
        default=20,
        description=(
            "How long a submit may wait for its commit before it is refused with "
            "LEDGER_UNAVAILABLE."
        ),
    )
    submit_queue_jobs: Count = Field(
        default=20_000,
        description=(
            "Submits that may wait for their commit before others are refused with GATEWAY_BUSY."
        ),
    )
    submit_queue_bytes: Count = Field(
        default=64 * 2**20,
        description="What the rows of those may weigh together, in bytes of JSON.",
    )
    health_check_interval_seconds: Seconds = Field(
        default=2, description="How often the ledger is checked for the gRPC health service."
    )
    liveness_seconds: Seconds = Field(
        default=60,
        description="How long the event loop may stand still before /healthz answers 503.",
    )
    watch_ring_events: Count = Field(
        default=1024,
        description=(
            "Events that may wait in memory for one watcher; what is more, it reads "
            "from the ledger at its own pace."
        ),
    )
    watch_stall_seconds: Seconds = Field(
        default=30,
        description=(
            "How long a caller may take no message while its watch lags (see "
            "watch_ring_events) before it ends: WATCH_TOO_SLOW."
        ),
    )
    watch_bookmark_interval_seconds: Seconds = Field(
        default=15, description="Silence after which a watch gets a bookmark."
    )
    watch_poll_interval_seconds: Seconds = Field(
        default=1, description="How often the ledger is read for watchers while Redis is down."
    )
    watch_safety_interval_seconds: Seconds = Field(
        default=10,
        description=(
            "How often the ledger is read for watchers while Redis is up: bounds the "
            "delay that a lost wake-up can cause."
        ),
    )

    @property
    def owner_limits(self) -> OwnerLimits:
        """Of owners whom the file of limits does not name."""
        return OwnerLimits(
            **{name: getattr(self, f"owner_{name}") for name in OwnerLimits.model_fields}
        )

    @property
    def import_source_list(self) -> list[str]:
        """Those of import_sources."""
        return _split(self.import_sources)

    @property
    def import_network_list(self) -> list[str]:
        """Those of import_networks."""
        return _split(self.import_networks)

    @field_validator("import_sources")
    @classmethod
    def _can_be_imported(cls, value: str, info: ValidationInfo) -> str:
        buckets = [each for each in _split(value) if each.startswith("s3://")]
        Outbound([each for each in _split(value) if each not in buckets])
        own = str(info.data.get("blob_url", "")).rstrip("/") + "/"
        for each in buckets:
            listed = each.rstrip("/") + "/"
            if listed == "s3://" or listed.startswith("s3:///"):
                raise ValueError(f"{each} names no bucket")
            # What is in there belongs to owners, whom nobody would ask.
            if listed.startswith(own) or own.startswith(listed):
                raise ValueError(f"{each} is where blobs lie (FLUORO_BLOB_URL)")
        return value

    @field_validator("import_networks")
    @classmethod
    def _are_networks(cls, value: str) -> str:
        Outbound([], _split(value))
        return value

    @field_validator("jwt_issuer", "jwt_audience")
    @classmethod
    def _is_given_with_jwt(cls, value: str, info: ValidationInfo) -> str:
        if not value and "jwt" in str(info.data.get("identity", "")).split(","):
            raise ValueError("jwt needs it")
        return value

    @field_validator("tls_key_file", "tls_client_ca_file")
    @classmethod
    def _is_whole(cls, value: str, info: ValidationInfo) -> str:
        certificate = bool(info.data.get("tls_certificate_file"))
        if info.field_name == "tls_key_file" and bool(value) != certificate:
            raise ValueError("FLUORO_TLS_CERTIFICATE_FILE needs it, and it needs that")
        if info.field_name == "tls_client_ca_file" and value and not certificate:
            raise ValueError("needs FLUORO_TLS_CERTIFICATE_FILE")
        return value

    @field_validator("identity")
    @classmethod
    def _can_be_had(cls, identity: str, info: ValidationInfo) -> str:
        host = str(info.data.get("grpc_host", ""))
        if "none" in identity.split(",") and not _is_loopback(host):
            raise ValueError(
                f"none lets everyone in who reaches {host}. Name another source (docs/identity.md),"
                " or set FLUORO_GRPC_HOST to 127.0.0.1."
            )
        if "mtls" in identity.split(",") and not info.data.get("tls_client_ca_file"):
            raise ValueError("mtls needs FLUORO_TLS_CLIENT_CA_FILE")
        return identity


def _split(value: str) -> list[str]:
    return [each.strip() for each in value.split(",") if each.strip()]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
