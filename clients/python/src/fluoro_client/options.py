"""What the command line says, in types that cost nothing to import."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final

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


class ExportName(StrEnum):
    """Forms in which the audit is exported."""

    FHIR = "fhir"
    DICOM = "dicom"


class RoleName(StrEnum):
    """Roles, as words of the command line; `fluoro.v1.Role` without its prefix."""

    VIEWER = "viewer"
    SUBMITTER = "submitter"
    OPERATOR = "operator"
    WORKER = "worker"


class Shell(StrEnum):
    """Shells with completion."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


class Exit(IntEnum):
    """Exit codes of the `fluoro` command. They are an interface: scripts branch on them."""

    OK = 0
    JOB_FAILED = 1
    USAGE = 2
    REFUSED = 3
    UNREACHABLE = 4
    LOCAL = 5
    INTERRUPTED = 130


MEANINGS: Final[Mapping[Exit, str]] = {
    Exit.OK: "ok; a job that partially succeeded is ok",
    Exit.JOB_FAILED: "the watched job failed or was cancelled; the doctor found a fault",
    Exit.USAGE: "usage: an unknown option, argument or profile",
    Exit.REFUSED: "refused by the server; the reason is one of `docs/errors.md`",
    Exit.UNREACHABLE: "no server reached, or no answer in time",
    Exit.LOCAL: "trouble here: a file, the configuration, a token command",
    Exit.INTERRUPTED: "interrupted; a watched job goes on",
}
"""What each exit code means: the one table, which help and documentation show."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Options that every command has, "" where they were not given.

    endpoint: `host:port`. owner: the caller's identity, "" sends none. profile: a name in the
    configuration file. same_place: words that make another command reach what this one did.
    """

    endpoint: str
    owner: str
    output: Output
    profile: str
    same_place: Sequence[str] = ()
