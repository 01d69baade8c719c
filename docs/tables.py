"""Writes the tables in docs/ from the code that they describe: `make docs`.

A test compares the committed files with what this gives.
"""
# ruff: noqa: INP001 - a script, not a package

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from dicom_worker.convert.encoding import TARGETS
from dicom_worker.deidentify.settings import DeidentifySettings
from dicom_worker.dicomweb.settings import DicomwebSettings
from dicom_worker.pixels.decoders import CODECS, Codec
from dicom_worker.pixels.presets import PRESETS
from export_worker.settings import ReportSettings
from fluoro.v1.dicom_pb2 import WindowPreset
from fluoro_jobs.advice import ADVICE
from fluoro_jobs.errors import REASONS, Reason
from fluoro_jobs.operations import OPERATIONS
from fluoro_jobs.worker.settings import WorkerSettings
from fluoro_local.settings import LocalSettings
from fluoro_telemetry import document
from gateway.settings import Settings as GatewaySettings
from ml_worker.inference.settings import InferenceSettings
from ml_worker.settings import ModelSettings
from pydantic import BaseModel
from pydantic_settings import BaseSettings
from pydicom.uid import UID, AllTransferSyntaxes
from scheduler.settings import Settings as SchedulerSettings

DOCS: Final = Path(__file__).parent
TESTS: Final = DOCS.parent / "services" / "dicom-worker" / "tests"
MARK: Final = "<!-- Written by `make docs` from the code; edit it there. -->"

SETTINGS: Final[dict[str, type[BaseSettings]]] = {
    "gateway": GatewaySettings,
    "Every worker": WorkerSettings,
    "dicom-worker besides": DeidentifySettings,
    "dicom-worker, for DICOMweb": DicomwebSettings,
    "ml-worker besides": ModelSettings,
    "ml-worker, for inference over gRPC": InferenceSettings,
    "export-worker besides": ReportSettings,
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
[ADR 0015](adr/0015-inputs-of-steps.md) says how. An operation that reads no role either
reads the results of the steps it comes after, or works on nothing of the job."""

CONFORMANCE_HEAD: Final = """\
# Conformance

What dicom-worker reads, and what it refuses. `make dicom-report` says of each file of two public
sets whether it comes out right, and by whose opinion, or why it is refused
(`test_each_small_public_file_is_right_by_an_oracle_or_refused_with_a_reason` is a short form).

## Transfer Syntaxes

Each has one decoder, whose values reach models and screens. The second one is asked where a frame
looks wrong: where its code stream holds more than its picture, its last block ends in the grey
that libjpeg fills up with, 64 zeros follow each other in a JPEG of 8 bits, or the samples of a
lossless JPEG do not take exactly the bytes of its scan. If it does not agree, the item fails
with `PIXELS_UNDECODABLE`. GDCM decodes no lossy JPEG of 12 bits, so there it never agrees. The
decoder and its version are in the certificate of the pixels."""

CONFORMANCE_WRITTEN: Final = """\
ConvertDicom writes these; [conversion.md](conversion.md) says of which images, and how it is proved
that no value changed:"""

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
- A frame of several code streams, and native pixel data that goes on after the last frame with
  anything but zeros, is `PIXELS_UNDECODABLE`: there are more frames, rows or columns than the
  header says. An element that is there twice is `DICOM_INVALID`, because toolkits differ in which
  one they take.

## Files that are not Part 10

- Without preamble and prefix, a file is read if it starts with File Meta Information.
- Without that too, it is read if it starts with group 0008: explicit or implicit VR and the byte
  order are seen in the first elements. Such a file is uncompressed, or it is refused.
- SOP Class UID, SOP Instance UID, and with File Meta Information a Transfer Syntax UID, are
  required of every file."""

CONFORMANCE_TRAPS: Final = """\
## Traps

Bugs that somebody had in production, and the tests that rehearse them here:"""


RENDERING_HEAD: Final = """\
# Pictures of DICOM images

How RenderDicom makes pictures and arrays, and what a request can choose. The fields are in
[the reference](api/dicom.md).

## The order

1. Stored values: the bits from High Bit down, as many as Bits Stored, sign-extended where Pixel
   Representation is 1 (PS3.5 8.1.1). Whatever lies in the other bits is no pixel.
2. Modality LUT, or Rescale Slope and Intercept of the frame (PS3.3 C.11.1). These are the values of
   the array, unless SUV are asked for. A slope of 0 is refused, except for a frame of one value.
3. VOI: the window of the request, or the chosen one of the file, or the file's VOI LUT, or its
   first window (LINEAR, LINEAR_EXACT or SIGMOID, PS3.3 C.11.2). Without any of these, the range of
   the values of the first frame that is shown, padding aside; later frames keep it.
4. Inversion, once, where Photometric Interpretation is MONOCHROME1 or Presentation LUT Shape is
   INVERSE. The array is never inverted.
5. Overlays, if asked for, in white.

A frame's own functional groups win over the shared ones, and these over the top of the data set
(PS3.3 C.7.6.16). Colour has no VOI: YBR becomes RGB, and more than 8 bits are cut to 8 in pictures
alone; a palette (a segmented one too) becomes RGB, of 8 bits if its entries hold no more: those of
16 bits often have the same byte twice, or 0 in the lower one. Whether the first input of a table is
signed follows from the values that it is for, whatever its VR says (PS3.3 C.11.2.1.1). In big
endian files, a pixel cell of 32 bits is read as one number of four bytes, as pydicom does; DCMTK
swaps the bytes of 16-bit words.

## Windows by name

For CT in Hounsfield units. Other images keep their own window."""

RENDERING_RULES: Final = """\
## Windows of the file

`file_window` takes one by its index, from 0, or by its explanation: Window Center & Width
Explanation, or LUT Explanation of a VOI LUT. Case does not matter. A file without it fails with
`CHOICE_UNAVAILABLE`.

## Standardized uptake values

`VALUES_SUV_BODY_WEIGHT` makes the array, and its certificate's unit, `{SUVbw}g/ml`. In this order:

- A Real World Value Mapping of the file to that unit, if it is linear and covers all values of the
  frame.
- Units GML with SUV Type BW or none: the modality values.
- Units BQML: activity · weight / dose. Decay Correction ADMIN takes the dose as it is; START decays
  it from the injection to the start of the scan, which is Series Time. Corrected Image must have
  ATTN and DECY.

Whatever lacks an attribute is refused with `CHOICE_UNAVAILABLE`, never guessed. So is a Series Time
after Acquisition Time (of a later reconstruction), an injection that was not within a day before
the scan or has a time zone, and a dose below 100 kBq, which is in another unit.

## Overlays

Planes of groups 6000 to 601E with a bitmap of their own, also over several frames, or in unused
bits of the pixel cells (retired, and uncompressed only). Without `overlays` they are not even read.

## Pictures"""

PICTURES: Final = (
    ("preview-KEY.png", "preview", "the first frame of `frames`, one pixel per stored pixel"),
    ("thumbnail-KEY.png", "thumbnail", "the same, its longest side at most `thumbnail_px`"),
    ("frame-N-KEY.png", "frame", "each frame of `frames`, N being its number from 1"),
    (
        "animation-KEY.webp",
        "animation",
        "up to 500 frames, 131 million pixels, evenly spaced",
    ),
    ("contact-sheet-KEY.png", "contact-sheet", "a series, in the order of its planes in space"),
    ("pixels-KEY.npy", "pixels", "all frames, for models"),
)
"""Artifacts of RenderDicom: name, role, what it is."""

RENDERING_MEMORY: Final = """\
Pictures may be PNG, JPEG or WebP, animations lossy WebP or GIF with 256 colours a frame. A contact
sheet of images without a place in space is in the order of Instance Number.

Frames pass one by one: memory is that of a few frames, whatever their number. Pixels that are not
square are not resampled, and ICC profiles are not applied."""


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
        kind = "file" if schema["format"].startswith("file") else "folder"
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
            ", ".join(f"`{role}`" for role in operation.reads)
            or ("results" if operation.reads_results else "nothing"),
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
    yield CONFORMANCE_WRITTEN
    written = (
        [UID(each.syntax).name, f"`{each.syntax}`", "lossy" if each.method else "exact"]
        for each in TARGETS.values()
    )
    yield table(("Transfer Syntax", "UID", "values"), sorted(written))
    yield CONFORMANCE_RULES
    yield CONFORMANCE_TRAPS
    yield table(("what goes wrong elsewhere", "tests"), traps())


def traps() -> Iterator[list[str]]:
    """What a test module of dicom-worker says of itself, without what it imports."""
    module = ast.parse((TESTS / "test_traps.py").read_text())
    [found] = (
        each.value
        for each in module.body
        if isinstance(each, ast.AnnAssign) and ast.unparse(each.target) == "TRAPS" and each.value
    )
    for trap, tests in ast.literal_eval(found).items():
        yield [trap, ", ".join(f"`test_{name}`" for name in tests.split())]


def _codec_row(name: str, uid: str, codec: Codec) -> list[str]:
    second = str(codec.second) if codec.second else ""
    return [name, f"`{uid}`", str(codec.decoder), second, "exact" if codec.lossless else "lossy"]


def rendering() -> Iterator[str]:
    """rendering.md: how pictures are made, and the windows by name."""
    yield RENDERING_HEAD
    yield table(
        ("preset", "center", "width", "source"),
        (
            [
                f"`{WindowPreset.Name(preset)}`",
                f"{found.window.center:g}",
                f"{found.window.width:g}",
                found.source,
            ]
            for preset, found in PRESETS.items()
        ),
    )
    yield RENDERING_RULES
    head = ("artifact", "role", "what it is")
    yield table(head, ([f"`{name}`", f"`{role}`", what] for name, role, what in PICTURES))
    yield RENDERING_MEMORY


def documents() -> dict[Path, str]:
    """Every generated file and its text."""
    parts = {
        "conformance.md": conformance(),
        "errors.md": errors(),
        "metrics.md": metrics(),
        "rendering.md": rendering(),
        "settings.md": settings(),
        "steps.md": steps(),
    }
    return {DOCS / name: "\n\n".join([MARK, *text]) + "\n" for name, text in parts.items()}


if __name__ == "__main__":
    for path, text in documents().items():
        path.write_text(text)
