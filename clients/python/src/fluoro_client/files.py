"""Which files a command reads, and where it puts what it downloads."""

import mimetypes
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fluoro.v1 import blob_service_pb2, job_pb2, job_service_pb2

Target = tuple[blob_service_pb2.Blob | job_pb2.Artifact, Path]
"""What to download, and to where."""

_SUFFIXES: Final = {"application/dicom": ".dcm", "application/x-npy": ".npy"}
"""Suffixes that mimetypes does not know."""


class BadPathError(Exception):
    """There is nothing to read at a path, or a server's file name would leave its folder."""


def find_files(paths: Sequence[Path]) -> list[Path]:
    """The files at these paths.

    A folder stands for all files below it, in order of name, without hidden ones.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            below = [
                file
                for file in sorted(path.rglob("*"))
                if file.is_file() and not _is_hidden(file.relative_to(path))
            ]
            if not below:
                raise BadPathError(f"There is no file in {path}.")
            found += below
        elif path.is_file():
            found.append(path)
        elif path.exists():
            raise BadPathError(
                f"{path} is a pipe or a device. Files are read twice; store it first."
            )
        else:
            raise BadPathError(f"There is no {path}.")
    return found


def target_of_blob(blob: blob_service_pb2.Blob, folder: Path) -> Target:
    """A blob goes to `folder/{uuid}{suffix}`."""
    suffix = _SUFFIXES.get(blob.media_type) or mimetypes.guess_extension(blob.media_type) or ""
    return blob, folder / _plain(blob.name.removeprefix("blobs/") + suffix)


def target_of(found: job_service_pb2.StepArtifact, folder: Path) -> Target:
    """An artifact of a job goes to `folder/{step}/{artifact}`."""
    return found.artifact, folder / _plain(found.step) / _plain(found.artifact.name)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _plain(name: str) -> str:
    """The name, if it is one and no path."""
    if name in {"", ".", ".."} or Path(name).name != name:
        raise BadPathError(f"The server named a file {name!r}, which is not a plain file name.")
    return name


def check_place(folder: Path) -> None:
    """OSError unless there can be files in this folder. Leaves nothing behind."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        path.rmdir()
