"""Writes the tables in docs/ from the code that they describe: `make docs`.

A test compares the committed files with what this gives.
"""
# ruff: noqa: INP001 - a script, not a package

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from dicom_worker.deidentify.settings import DeidentifySettings
from dicom_worker.pixels.decoders import CODECS, Codec
from fluoro_jobs.advice import ADVICE
from fluoro_jobs.errors import REASONS, Reason
from fluoro_jobs.operations import OPERATIONS
from fluoro_jobs.worker.settings import WorkerSettings
from fluoro_local.settings import LocalSettings
from fluoro_telemetry import document
from gateway.settings import Settings as GatewaySettings
from ml_worker.settings import ModelSettings
from pydantic import BaseModel
from pydantic_settings import BaseSettings
from pydicom.uid import UID, AllTransferSyntaxes
from scheduler.settings import Settings as SchedulerSettings

DOCS: Final = Path(__file__).parent
MARK: Final = "<!-- Written by `make docs` from the code; edit it there. -->"

SETTINGS: Final[dict[str, type[BaseSettings]]] = {
    "gateway": GatewaySettings,
    "Every worker": WorkerSettings,
    "dicom-worker besides": DeidentifySettings,
    "ml-worker besides": ModelSettings,
    "scheduler": SchedulerSettings,
    "make up": LocalSettings,
}
"""Headings of settings.md and the class that each is about."""

LIMITS: Final = {
    "minimum": "≥ ",
    "exclusiveMinimum": "> ",
    "maximum": "≤ ",
    "exclusiveMaximum": "< ",
}
"""Keys of JSON Schema, and how they are shown."""

ERRORS_HEAD: Final = """\
# Reasons

Whatever goes wrong has one of these reasons. A refused request carries it in `google.rpc.ErrorInfo`
(domain `fluoro`), with the gRPC code beside it. Jobs, steps, attempts and items carry it in their
field `reason`. Programs branch on the reason, people read the message.
Reasons are part of the API: they are added, never renamed.

*May be retried*: of a request, the same call may succeed a little later, unchanged. Of jobs, Fluoro
itself tries the task again, as far as its `retry_policy` goes; the code that raises it can know
better. Clients repeat calls by themselves that end UNAVAILABLE, or RESOURCE_EXHAUSTED with
RetryInfo.

gRPC refuses some calls before Fluoro sees them, without a reason: messages over twice the limit
and metadata over 8 KiB are `RESOURCE_EXHAUSTED`. What comes while too many calls wait is
`CANCELLED` and may be retried ([limits](limits.md)). Frames and headers that no gRPC client sends
are `INTERNAL`, as its protocol has it."""

METRICS_HEAD: Final = """\
# Metrics

Every service serves these at `/metrics` in Prometheus' format, each the ones that happen in it.
Labels hold values of small closed sets: no job, owner, host or patient."""

SETTINGS_HEAD: Final = """\
# Settings

Environment variables, read once at start. A value that is missing or not accepted stops the start
with a message that names it."""


STEPS_HEAD: Final = """\
# What a step can do

Each row is an operation: a field of `Step` in `protos/fluoro/v1/job.proto`. The comment of its
message says what it promises. A step works on artifacts of a role that its operation reads, left by
the nearest steps before it, or on the job's inputs (role `input`);
[ADR 0015](adr/0015-inputs-of-steps.md) says how. An operation that reads no role reads the results
of the steps it comes after."""

CONFORMANCE_HEAD: Final = """\
# Conformance

What dicom-worker reads, and what it refuses. `make dicom-report` says of each file of two public
sets whether it comes out right, and by whose opinion, or why it is refused
(`test_each_small_public_file_is_right_by_an_oracle_or_refused_with_a_reason` is a short form).

## Transfer Syntaxes

Each has one decoder, whose values reach models and screens. The second one is asked where a frame
looks wrong: where its code stream holds more than its picture, or its last row is the grey that
libjpeg fills up with. If it does not agree, the item fails with `PIXELS_UNDECODABLE`.
GDCM decodes no lossy JPEG of 12 bits, so there it never agrees. The decoder and its version are in
the certificate of the pixels."""

CONFORMANCE_RULES: Final = """\
## Where file and code stream differ

- Size and number of samples must be equal, else `PIXELS_UNDECODABLE`.
- Precision, and in JPEG 2000 the sign, are those of the code stream. Bits Stored and Pixel
  Representation must be able to hold each value, else `PIXELS_UNDECODABLE`. JPEG and JPEG-LS know
  no sign: a signed image has two's complement of the code stream's precision, and with a precision
  below Bits Stored no value may have the highest bit of it.
- Where High Bit is not Bits Stored - 1 and the code stream has bits for it, its samples are whole
  pixel cells.
- The colour space is that of JPEG's own markers (Adobe, JFIF, names of components), then
  Photometric Interpretation. YBR is turned into RGB; YBR_FULL of more than 8 bits is refused.
- A code stream without its end marker, and one of JPEG 2000 whose tile-parts do not fill it, is
  `PIXELS_UNDECODABLE`.

## Files that are not Part 10

- Without preamble and prefix, a file is read if it starts with File Meta Information.
- Without that too, it is read if it starts with group 0008: explicit or implicit VR and the byte
  order are seen in the first elements. Such a file is uncompressed, or it is refused.
- SOP Class UID, SOP Instance UID, and with File Meta Information a Transfer Syntax UID, are
  required of every file."""


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    columns = list(head)
    cells = [
        columns,
        ["---"] * len(columns),
        *([cell.replace("|", "\\|") for cell in row] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def errors() -> Iterator[str]:
    """errors.md: reasons that can answer a request, and those of jobs alone."""
    yield ERRORS_HEAD
    yield "## Of requests, and of the work behind them"
    head = ("reason", "gRPC code", "what it means", "what to do", "may be retried")
    yield table(head, _reasons(of_requests=True))
    yield "## Of jobs, steps, attempts and items alone"
    yield table([each for each in head if each != "gRPC code"], _reasons(of_requests=False))


def _reasons(*, of_requests: bool) -> Iterator[list[str]]:
    for reason in Reason:
        spec = REASONS[reason]
        if bool(spec.code) == of_requests:
            yield [
                f"`{reason}`",
                *([f"`{spec.code}`"] if spec.code else []),
                spec.meaning,
                ADVICE[reason],
                "yes" if spec.retryable or spec.code == "UNAVAILABLE" else "no",
            ]


def metrics() -> Iterator[str]:
    """metrics.md."""
    yield METRICS_HEAD
    yield document.markdown()


def settings() -> Iterator[str]:
    """settings.md: a table per class."""
    yield SETTINGS_HEAD
    for heading, model in SETTINGS.items():
        yield f"## {heading}"
        yield table(("variable", "accepts", "default", "meaning"), _settings_rows(model))


def _settings_rows(model: type[BaseSettings]) -> Iterator[list[str]]:
    prefix = model.model_config.get("env_prefix", "")
    for name, schema in model.model_json_schema()["properties"].items():
        yield [
            f"`{(prefix + name).upper()}`",
            _accepted(schema),
            _default(model, name),
            schema["description"],
        ]


def _accepted(schema: dict[str, Any]) -> str:
    """Type and bounds in words: `integer ≥ 1 ≤ 256`."""
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(
            _accepted(option) for option in schema["anyOf"] if option["type"] != "null"
        )
    kind = {"string": "text"}.get(schema["type"], schema["type"])
    if schema.get("format", "").endswith("path"):
        kind = "folder"
    limits = [f"{sign}{schema[key]}" for key, sign in LIMITS.items() if key in schema]
    matching = [f"matching `{schema['pattern']}`"] if "pattern" in schema else []
    return " ".join([kind, *limits, *matching])


def _default(model: type[BaseModel], name: str) -> str:
    field = model.model_fields[name]
    if field.is_required():
        return "**required**"
    if field.default is None:
        return "unset"
    if isinstance(field.default, Path):  # of a checkout: nobody else's paths belong in here
        return f"`{field.default.relative_to(DOCS.parent)}`"
    return f"`{field.default}`"


def steps() -> Iterator[str]:
    """steps.md: the table of operations."""
    yield STEPS_HEAD
    head = ("operation", "message", "queue", "Celery task", "reads", "leaves", "fans out", "groups")
    yield table(head, _steps_rows())


def _steps_rows() -> Iterator[list[str]]:
    for operation in OPERATIONS:
        yield [
            f"`{operation.field}`",
            f"`{operation.request.DESCRIPTOR.name}`",
            f"`{operation.queue}`",
            f"`{operation.task_name}`",
            ", ".join(f"`{role}`" for role in operation.reads) or "results",
            ", ".join(f"`{role}`" for role in operation.leaves),
            "yes" if operation.fans_out else "no",
            "yes" if operation.groups else "no",
        ]


def conformance() -> Iterator[str]:
    """conformance.md: every Transfer Syntax that PS3.6 has, and who decodes it."""
    yield CONFORMANCE_HEAD
    read = sorted((UID(uid).name, uid, codec) for uid, codec in CODECS.items())
    head = ("Transfer Syntax", "UID", "decoder", "second decoder", "values")
    yield table(head, (_codec_row(name, uid, codec) for name, uid, codec in read))
    yield "These are refused with `TRANSFER_SYNTAX_UNSUPPORTED`, video among them:"
    yield table(
        ("Transfer Syntax", "UID"),
        sorted([UID(uid).name, f"`{uid}`"] for uid in AllTransferSyntaxes if uid not in CODECS),
    )
    yield CONFORMANCE_RULES


def _codec_row(name: str, uid: str, codec: Codec) -> list[str]:
    second = str(codec.second) if codec.second else ""
    return [name, f"`{uid}`", str(codec.decoder), second, "exact" if codec.lossless else "lossy"]


def documents() -> dict[Path, str]:
    """Every generated file and its text."""
    parts = {
        "conformance.md": conformance(),
        "errors.md": errors(),
        "metrics.md": metrics(),
        "settings.md": settings(),
        "steps.md": steps(),
    }
    return {DOCS / name: "\n\n".join([MARK, *text]) + "\n" for name, text in parts.items()}


if __name__ == "__main__":
    for path, text in documents().items():
        path.write_text(text)
