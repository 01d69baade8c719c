"""What goes into an archive: files that steps left, and the tables that describe them."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from fluoro.v1 import job_pb2
from fluoro.v1.export_pb2 import Provenance
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.worker.context import StepContext
from google.protobuf.json_format import MessageToDict

from export_worker.wording import job_time
from export_worker.zipped import Member

FORMAT: Final = "fluoro-archive-1"
"""Of manifest.json; another number says that readers must look again."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A file that goes in. artifact: what it is; path: in the archive."""

    step: str
    artifact: job_pb2.Artifact
    path: str


def stored(
    files: Sequence[Packed], context: StepContext, reader: ThreadPoolExecutor
) -> Iterator[Member]:
    """The files, read when their turn comes."""
    for done, file in enumerate(files):
        context.progress("pack", done, len(files))
        artifact = file.artifact
        chunks = ahead(proved(artifact, context), reader)
        yield Member(file.path, artifact.media_type, artifact.size_bytes, chunks)


def ahead(chunks: Iterator[memoryview], reader: ThreadPoolExecutor) -> Iterator[memoryview]:
    """The chunks, of which the next is read and hashed by the reader while one is packed.

    The store refuses to be read by the thread that it writes in.
    """
    following = reader.submit(next, chunks, None)
    while (chunk := following.result()) is not None:
        following = reader.submit(next, chunks, None)
        yield chunk


def proved(artifact: job_pb2.Artifact, context: StepContext) -> Iterator[memoryview]:
    """Its bytes. FluoroError INTERNAL, after the last, if they are not those that were left."""
    digest = hashlib.sha256()
    for part in context.parts(artifact.blob):
        digest.update(part)
        yield part
    # The bytes are in the archive by now. The attempt fails, and the archive is dropped with it.
    if digest.digest() != artifact.sha256:
        raise FluoroError(
            Reason.INTERNAL,
            "A stored file has other bytes than its step left. Check the blob store.",
        )


def manifest(
    files: Sequence[Packed], own: Sequence[tuple[str, str, bytes]], made: Provenance
) -> bytes:
    """`manifest.json`: what each file is, what step left it, and where all of it comes from."""
    entries: list[Mapping[str, Any]] = [
        {"path": path, "mediaType": media_type, "sizeBytes": len(data), "sha256": hexadecimal(data)}
        for path, media_type, data in own
    ]
    entries += [
        {
            "path": file.path,
            "mediaType": file.artifact.media_type,
            "sizeBytes": file.artifact.size_bytes,
            "sha256": file.artifact.sha256.hex(),
            "step": file.step,
            "name": file.artifact.name,
            "role": file.artifact.role,
            "item": file.artifact.key,
            # Input 0 is one like the others, so absence is asked for.
            "input": file.artifact.input if file.artifact.HasField("input") else None,
        }
        for file in files
    ]
    whole = {
        "format": FORMAT,
        "job": made.job,
        # The time of the job and not the clock's, so that another attempt writes the same bytes.
        "jobTime": job_time(made.job).isoformat(timespec="seconds"),
        "provenance": {
            "inputs": [
                {"input": one.input, "sizeBytes": one.size_bytes, "sha256": one.sha256.hex()}
                for one in made.inputs
            ],
            "runs": [MessageToDict(run) for run in made.runs],
            "models": [
                {"name": model.name, "version": model.version, "sha256": model.sha256.hex()}
                for model in made.models
            ],
            "writerVersion": made.writer_version,
        },
        "files": entries,
    }
    return json.dumps(whole, indent=1).encode() + b"\n"


def sums(files: Sequence[Packed], own: Sequence[tuple[str, str, bytes]]) -> bytes:
    """`SHA256SUMS` as `sha256sum --check` reads it, of all files but itself."""
    # Two spaces: that is how sha256sum separates them.
    lines = [f"{hexadecimal(data)}  {path}" for path, _, data in own]
    lines += [f"{file.artifact.sha256.hex()}  {file.path}" for file in files]
    return "".join(f"{line}\n" for line in lines).encode()


def hexadecimal(data: bytes) -> str:
    """SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()
