"""What the command line says, in types that cost nothing to import."""

from dataclasses import dataclass
from enum import IntEnum, StrEnum

DEFAULT_ENDPOINT = "localhost:50051"


class Output(StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"


class StateName(StrEnum):
    """States of a job, as words of the command line; `Job.State` without its prefix."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    PARTIALLY_SUCCEEDED = "partially-succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class OrderName(StrEnum):
    """Orders of a list of jobs, as the API names them."""

    NEWEST = "create_time desc"
    OLDEST = "create_time"
    ENDED_LAST = "end_time desc"
    ENDED_FIRST = "end_time"


class RoleName(StrEnum):
    """Roles, as words of the command line; `fluoro.v1.Role` without its prefix."""

    VIEWER = "viewer"
    SUBMITTER = "submitter"
    OPERATOR = "operator"
    WORKER = "worker"


class Exit(IntEnum):
    """Exit codes of the `fluoro` command. They are an interface: scripts branch on them."""

    OK = 0
    JOB_FAILED = 1
    USAGE = 2
    REFUSED = 3
    UNREACHABLE = 4
    LOCAL = 5
    INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Settings:
    """Options that every command has.

    endpoint: `host:port`. owner: the caller's identity, "" sends none.
    """

    endpoint: str
    owner: str
    output: Output
