"""The demonstration: a whole Fluoro runs one pipeline and leaves the results in a folder."""

import asyncio
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Final
from zipfile import ZipFile, is_zipfile

from fluoro.v1 import job_pb2
from fluoro_client.aio import AsyncClient
from fluoro_client.display import follow
from rich.console import Console

from fluoro_local.errors import StartError
from fluoro_local.folders import prepare
from fluoro_local.supervisor import Supervisor

OWNER: Final = "demo"
"""Owner of the demonstration's jobs."""
SHIPPED: Final = ("CT_small.dcm", "MR_small.dcm")
"""The input when none is given: files of the pydicom wheel.

The model is made for CT, so the MR shows a skipped item.
"""
PIPELINE: Final = "ct-tissue"
"""What runs when none is named."""
PAINTED: Final = {
    "histopathology": ("ml_worker.painting", "slide"),
    "burn-classify": ("ml_worker.painting", "burns"),
    **dict.fromkeys(
        (
            "binary-classify",
            "full-classify",
            "batch-skin-check",
            "dermoscopy",
            "comparison",
            "visualization",
        ),
        ("ml_worker.painting", "lesions"),
    ),
    "mr-brain-mask": ("dicom_worker.studies.painting", "head"),
}
"""Pipelines whose input, when none is given, is painted, by which module, and what it calls it."""
PAINTING_SECONDS: Final = 120
ZIP: Final = "application/zip"
RESULTS: Final = {
    "report": "report",
    "preview": "preview",
    "overlay": "overlay",
    "heat-map": "heat-map",
    "result": "result",
    "instance": "instance",
    "volume": "volume",
    "deidentification-report": "deidentification-report",
}
"""Roles of the artifacts that are fetched, and how their files are called."""
CHECK_SECONDS: Final = 0.25
"""Interval between looks at the services while the job runs."""


def dicom_files(source: Path | None) -> list[Path]:
    """The file, the files of the folder, or without a source those of the pydicom wheel.

    Raises StartError if there are none.
    """
    if source is None:
        folder = Path(str(files("pydicom") / "data" / "test_files"))
        return [folder / name for name in SHIPPED]
    if source.is_file():
        return [source]
    found = sorted(path for path in source.rglob("*") if path.is_file())
    if not found:
        raise StartError(f"There is no file in {source}. Name a DICOM file, or a folder with some.")
    return found


def painted(painter: str, what: str, folder: Path) -> list[Path]:
    """Files that a worker's painter writes into the folder. StartError if it cannot."""
    # An earlier demonstration may have left the input of another pipeline.
    for old in folder.glob("painted-*"):
        old.unlink()
    command = [sys.executable, "-m", painter, what, str(folder)]
    try:
        subprocess.run(command, check=True, timeout=PAINTING_SECONDS, capture_output=True)
    except subprocess.SubprocessError as error:
        raise StartError("The pictures of the demonstration could not be painted.") from error
    return sorted(folder.glob("painted-*"))


def demo(
    source: Path | None, data: Path, out: Path, console: Console, pipeline: str = PIPELINE
) -> bool:
    """Run it and stop everything again; whether the job has a result.

    Raises StartError when Fluoro cannot run here, FluoroApiError if there is no such pipeline.
    """
    began = time.monotonic()
    prepare(out)
    if source is None and pipeline in PAINTED:
        inputs = painted(*PAINTED[pipeline], out)
    else:
        inputs = dicom_files(source)
    console.print(f"Starting Fluoro in {data}")
    with Supervisor(
        data, tell=lambda sentence: console.print(f"  {sentence}", style="dim")
    ) as fluoro:
        console.print(f"Ready after {time.monotonic() - began:.1f} s on {fluoro.endpoint}")
        job, written = asyncio.run(
            _run(fluoro, lambda client: _client(client, pipeline, inputs, out, console))
        )
    for path in written:
        console.print(f"  {path}")
    verdict = job_pb2.Job.State.Name(job.state).removeprefix("STATE_")
    seconds = (job.end_time.ToNanoseconds() - job.create_time.ToNanoseconds()) / 1e9
    console.print(f"{job.name} {verdict} in {seconds:.1f} s", style="bold")
    if job.state != job_pb2.Job.STATE_SUCCEEDED:
        console.print(f"{job.reason}: {job.message}", style="red")
    for sentence in _failures(job, inputs):
        console.print(f"  {sentence}", markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"The whole demonstration took {time.monotonic() - began:.1f} s; "
        "everything it started has ended."
    )
    return job.state in {job_pb2.Job.STATE_SUCCEEDED, job_pb2.Job.STATE_PARTIALLY_SUCCEEDED}


def _failures(job: job_pb2.Job, inputs: Sequence[Path]) -> list[str]:
    """Each file that failed, once, with the reason."""
    failed = [
        item for step in job.steps for item in step.items if item.state == job_pb2.Item.STATE_FAILED
    ]
    return list(
        dict.fromkeys(f"{_source(item, inputs)}: {item.reason}: {item.message}" for item in failed)
    )


def _source(item: job_pb2.Item, inputs: Sequence[Path]) -> str:
    """The file that an item comes from, and what it is called where it is not the file itself."""
    if item.input < 0:
        return item.key
    file = str(inputs[item.input])
    return file if item.key in {"", str(item.input)} else f"{file} ({item.key})"


async def _run(
    fluoro: Supervisor, talk: Callable[[AsyncClient], Awaitable[tuple[job_pb2.Job, list[Path]]]]
) -> tuple[job_pb2.Job, list[Path]]:
    """What a client brings home, while the services are looked after."""

    async def connected() -> tuple[job_pb2.Job, list[Path]]:
        async with AsyncClient(fluoro.endpoint, owner=OWNER) as client:
            return await talk(client)

    work = asyncio.create_task(connected())
    try:
        while not work.done():
            fluoro.check()
            await asyncio.wait([work], timeout=CHECK_SECONDS)
    finally:
        work.cancel()
        await asyncio.wait([work])
    return work.result()


async def _client(
    client: AsyncClient, pipeline: str, inputs: Sequence[Path], out: Path, console: Console
) -> tuple[job_pb2.Job, list[Path]]:
    """The job as it ended, and the files written."""
    chosen = await client.pipeline(pipeline)
    earlier = len([job async for job in client.list()])
    if earlier:
        console.print(f"Jobs from earlier runs, still there: {earlier}")
    if ZIP in chosen.accepts and not all(is_zipfile(path) for path in inputs):
        blobs = [await client.upload(_zipped(inputs), media_type=ZIP)]
        console.print(f"Uploaded {len(inputs)} files in an archive")
    else:
        kind = next(iter(chosen.accepts), "")
        blobs = [await client.upload(path, media_type=kind) for path in inputs]
        console.print(f"Uploaded {len(blobs)} files")
    job = await client.submit({"inputs": [blob.name for blob in blobs]}, pipeline=pipeline)
    job = await follow(client, job.name, console)
    return job, await _fetch(client, job, out)


def _zipped(paths: Sequence[Path]) -> bytes:
    archive = BytesIO()
    with ZipFile(archive, "w") as files_in_it:
        for number, path in enumerate(paths):
            files_in_it.write(path, f"{number}{path.suffix}")
    return archive.getvalue()


async def _fetch(client: AsyncClient, job: job_pb2.Job, out: Path) -> list[Path]:
    """Download the results into `out`.

    `preview.png` is the first of its kind, `preview-2.png` the second.
    """
    return [await client.download(artifact, out / name) for artifact, name in _named(job.steps)]


def _named(steps: Iterable[job_pb2.Step]) -> list[tuple[job_pb2.Artifact, str]]:
    """Each artifact that people look at, with its file name."""
    seen: Counter[str] = Counter()
    named = []
    for artifact in (
        artifact for step in steps for artifact in step.artifacts if artifact.role in RESULTS
    ):
        stem, suffix = RESULTS[artifact.role], Path(artifact.name).suffix
        seen[stem] += 1
        named.append(
            (artifact, f"{stem}{suffix}" if seen[stem] == 1 else f"{stem}-{seen[stem]}{suffix}")
        )
    return named
