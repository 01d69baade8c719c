"""Runs operations on damaged files and judges what became of each."""

import os
import resource
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

from dicom_worker.limits import MIB
from dicom_worker.operations.convert import convert_dicom
from dicom_worker.operations.deidentify import deidentify_dicom
from dicom_worker.operations.import_images import import_images
from dicom_worker.operations.inspect import inspect_dicom
from dicom_worker.operations.render import render_dicom
from dicom_worker.operations.unpack import unpack_archive
from fluoro.v1 import job_pb2
from fluoro.v1.archive_pb2 import UnpackArchive
from fluoro.v1.convert_pb2 import (
    ConvertDicom,
    DicomTarget,
    NiftiTarget,
    TargetTransferSyntax,
)
from fluoro.v1.deidentify_pb2 import DeidentifyDicom
from fluoro.v1.dicom_pb2 import InspectDicom, RenderDicom
from fluoro.v1.photograph_pb2 import ImportImages
from fluoro_jobs.testing import Attempt, operate
from pydicom import dcmread

from fuzzing.files import NAME, NUMBER, mutant, written
from fuzzing.photographs import archive, photograph

PROJECT: Final = "fuzzing"
J2K: Final = TargetTransferSyntax.TARGET_TRANSFER_SYNTAX_JPEG_2000_LOSSLESS


@dataclass(frozen=True, slots=True)
class Target:
    """An operation, a request, and what makes files for it of a seed and a number.

    every: that files of all numbers are for, or of every second, …; some take long.
    """

    operation: Any
    request: Any
    made: Callable[[int, int], bytes] = mutant
    every: int = 1

    def takes(self, number: int) -> bool:
        """Whether a file of that number is for it."""
        return number % self.every == 0


OPERATIONS: Final = {
    "inspect": Target(inspect_dicom, InspectDicom()),
    "render": Target(render_dicom, RenderDicom()),
    "deidentify": Target(deidentify_dicom, DeidentifyDicom(project=PROJECT)),
    "clean": Target(
        deidentify_dicom, DeidentifyDicom(project=PROJECT, clean_pixel_data=True), every=10
    ),
    "mask": Target(
        deidentify_dicom, DeidentifyDicom(project=PROJECT, clean_pixel_data=True), written, every=20
    ),
    "convert": Target(convert_dicom, ConvertDicom(nifti=NiftiTarget())),
    "transcode": Target(convert_dicom, ConvertDicom(dicom=DicomTarget(transfer_syntax=J2K))),
    "photograph": Target(import_images, ImportImages(), photograph),
    "faces": Target(import_images, ImportImages(mask_faces=True), photograph, every=10),
    "unpack": Target(unpack_archive, UnpackArchive(), archive),
}
"""Name → what is tried."""
BATCH: Final = 50
"""Files that one call to a process works on."""
FILE_SECONDS: Final = 60
"""How long an operation may take with a file of at most a few hundred KiB."""
MEMORY_LIMIT_BYTES: Final = 1024 * MIB
"""What a process may have come to. Idle, it has 150 MiB."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault. kind: `untyped`, `hang`, `lost`, `memory`, `identifier` or `log`."""

    kind: str
    number: int
    operation: str
    told: str


@dataclass(slots=True)
class Report:
    """What became of the files: (operation, outcome) → files, and faults."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    def add(self, other: "Report") -> None:
        """Adds another report's numbers to this one's."""
        self.outcomes.update(other.outcomes)
        self.findings += other.findings


class Hang(BaseException):
    """An operation took longer than FILE_SECONDS. Nothing catches it on the way."""


def operate_on(numbers: Sequence[int], seed: int, processes: int) -> Report:
    """Every operation on each of these files."""
    batches = [numbers[at : at + BATCH] for at in range(0, len(numbers), BATCH)]
    report = Report()
    with tempfile.TemporaryDirectory(prefix="fluoro-fuzz-") as folder:
        keys = Path(folder) / "keys"
        keys.mkdir()
        (keys / PROJECT).write_bytes(b"of the fuzzer alone, and 32 bytes or more")
        left = dict(enumerate(batches))
        while left:
            # A process that dies takes its pool with it: what it was at is found one by one.
            with ProcessPoolExecutor(
                processes, get_context("spawn"), initializer=_prepare, initargs=(str(keys),)
            ) as pool:
                work = partial(_batch, seed=seed, folder=folder)
                tasks = {at: pool.submit(work, batch) for at, batch in left.items()}
                broken = 0
                for at, task in tasks.items():
                    try:
                        report.add(task.result())
                        del left[at]
                    except BrokenProcessPool:
                        broken = broken or at + 1
            if broken:
                batch = left.pop(broken - 1)
                report.findings.append(Finding("lost", batch[0], "", f"or in {len(batch)} from it"))
    return report


def _prepare(keys: str) -> None:
    os.environ["FLUORO_DEIDENTIFY_KEYS_FOLDER"] = keys


def _batch(numbers: Sequence[int], seed: int, folder: str) -> Report:
    report = Report()
    for number in numbers:
        for name, target in OPERATIONS.items():
            if not target.takes(number):
                continue
            data = target.made(seed, number)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                outcome, finding = judged(name, data, number, Path(scratch))
            report.outcomes[name, outcome] += 1
            report.findings += finding
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if peak > MEMORY_LIMIT_BYTES:
        told = f"{peak // MIB} MiB after {len(numbers)} files"
        report.findings.append(Finding("memory", numbers[0], "", told))
    return report


def judged(name: str, data: bytes, number: int, folder: Path) -> tuple[str, list[Finding]]:
    """State and reason of the item, and what is wrong with that."""
    target = OPERATIONS[name]
    try:
        with deadline():
            _, attempt = operate(target.operation, target.request, folder, [data])
    except Hang:
        return "HANG", [Finding("hang", number, name, f"{FILE_SECONDS} s")]
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        return "RAISED", [Finding("untyped", number, name, type(error).__qualname__)]
    item = attempt.context.items[0]
    state = job_pb2.Item.State.Name(item.state).removeprefix("STATE_")
    findings = []
    if item.reason == "INTERNAL" or (item.state != item.STATE_SUCCEEDED and not item.reason):
        findings.append(Finding("untyped", number, name, item.message))
    if state == "SUCCEEDED" and (told := LEFT.get(name, nothing)(data, attempt)):
        findings.append(Finding("identifier", number, name, told))
    return f"{state} {item.reason}".strip(), findings


@contextmanager
def deadline() -> Iterator[None]:
    """Raises Hang in here after FILE_SECONDS."""

    def ring(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(FILE_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


def nothing(_source: bytes, _attempt: Attempt) -> str:
    """Of an operation that promises nothing."""
    return ""


def beside_pixels(_source: bytes, attempt: Attempt) -> str:
    """What of the patient is in any artifact of a photograph."""
    made = b"".join(attempt.read(name) for name in attempt.context.artifacts)
    return ", ".join(part for part in NAME.split("^") if part.encode() in made)


def left_of(source: bytes, attempt: Attempt) -> str:
    """What of the patient is still in the clean file of an attempt."""
    return identified(source, attempt.read("instance-0000.dcm"))


def identified(source: bytes, clean: bytes) -> str:
    """What of the patient is still in a clean file; "" if nothing is.

    Only what an independent reader takes for name and ID in the source counts: a mutation may have
    made another attribute of them.
    """
    try:
        before = dcmread(BytesIO(source), force=True)
        name, number = str(before.get("PatientName", "")), str(before.get("PatientID", ""))
    except Exception:  # noqa: BLE001 - pydicom cannot read it, and we could
        return ""
    parts = [*NAME.split("^")] if name == NAME else []
    parts += [NUMBER] if number == NUMBER else []
    return ", ".join(part for part in parts if part.lower().encode() in clean.lower())


LEFT: Final = {
    "deidentify": left_of,
    "clean": left_of,
    "mask": left_of,
    "photograph": beside_pixels,
    "faces": beside_pixels,
}
"""Name of an operation → what finds the patient in that which it left."""
