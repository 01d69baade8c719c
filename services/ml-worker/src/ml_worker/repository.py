"""Folders of models, `{name}/{version}/` with model.toml, model.onnx, CARD.md: reads and compares.

A folder is read whole, hashed, and only then looked at, so nothing is used that was not hashed.
"""

import errno
import hashlib
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from fluoro.v1.model_pb2 import Model as ModelProto
from pydantic import ValidationError

from ml_worker.manifest import Manifest, ModelRefusedError

MANIFEST: Final = "model.toml"
CARD: Final = "CARD.md"
MAX_MANIFEST_BYTES: Final = 2 * 2**20
"""What it says of a model goes into one answer of the API, which has 4 MiB."""
MAX_CARD_BYTES: Final = 64 * 2**10
MAX_MODEL_BYTES: Final = 4 * 2**30
"""Most bytes of all files of a model together."""
MAX_VERSIONS: Final = 64
"""Most versions of models that a worker takes; each is open, and its state told."""
MAX_LOOKED_AT: Final = 10_000
"""Most entries of a folder that a look goes through."""

OF_ONE_MODEL: Final = frozenset(
    (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP)
)
"""Errors of one file, as of a link that leads to itself. Others are of the disk, or the share."""

Found = TypeVar("Found")
Otherwise = TypeVar("Otherwise")

Print = tuple[tuple[str, int, int, int], ...]
"""What tells that files have changed: name, inode, size and time of change (ns) of each."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model as its folder has it.

    files: the bytes of each that the manifest lists; their hashes are right.
    """

    manifest: Manifest
    manifest_sha256: bytes
    card: str
    files: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Place:
    """A folder that claims to be a model, and how its files looked."""

    folder: Path
    print: Print

    @property
    def key(self) -> tuple[str, str]:
        """Name and version, as the path has them."""
        return self.folder.parent.name, self.folder.name


def places(folder: Path) -> list[Place]:
    """The model folders below this one, in the order of their paths.

    One that may not be read says so when it is loaded. OSError if the whole cannot be read, or
    holds too much to be looked through.
    """
    found: list[Place] = []
    looked_at = 0
    for name in sorted(folder.iterdir()):
        if name.name.startswith(".") or not name.is_dir():
            continue
        # Such as the `lost+found` of a volume.
        for version in _readable(name, _entries, ()):
            looked_at += 1
            if looked_at > MAX_LOOKED_AT:
                raise OSError(f"There are more than {MAX_LOOKED_AT} entries in the models folder.")
            # A name with a dot in front is being written.
            if not version.name.startswith(".") and _readable(version, _claims, otherwise=True):
                found.append(Place(version, _readable(version, fingerprint, ())))
    return found


def _entries(folder: Path) -> Sequence[Path]:
    return sorted(folder.iterdir())


def _claims(version: Path) -> bool:
    """Whether it calls itself a model."""
    return (version / MANIFEST).is_file()


def _readable(path: Path, look: Callable[[Path], Found], otherwise: Otherwise) -> Found | Otherwise:
    try:
        return look(path)
    except OSError as error:
        if error.errno not in OF_ONE_MODEL:
            raise
        return otherwise


def fingerprint(folder: Path) -> Print:
    """How the files of a folder look, without reading them."""
    # One may be a link to nothing, or be replaced just now; the next look sees what came of it.
    found = ((file.name, _readable(file, Path.stat, None)) for file in sorted(folder.iterdir()))
    return tuple(
        (name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in found if stat
    )


def read_model(folder: Path) -> ModelFiles:
    """Reads `{name}/{version}`.

    ModelRefusedError if anything in it is missing, too large, or not as the manifest says.
    """
    text = _read(folder, MANIFEST, MAX_MANIFEST_BYTES)
    manifest = _manifest(text)
    if (folder.parent.name, folder.name) != (manifest.name, manifest.version):
        raise ModelRefusedError(
            ModelProto.PROBLEM_MANIFEST_INVALID,
            f"model.toml calls itself {manifest.name}/{manifest.version}. "
            "The folder must have the same name.",
        )
    card = _read(folder, CARD, MAX_CARD_BYTES)
    files, left = {}, MAX_MODEL_BYTES
    for name, sha256 in manifest.files.items():
        data = _read(folder, name, left)
        left -= len(data)
        if (found := hashlib.sha256(data).hexdigest()) != sha256:
            raise ModelRefusedError(
                ModelProto.PROBLEM_FILE_MISMATCH,
                f"{name} has SHA-256 {found}, model.toml says {sha256}. Put the right file there.",
            )
        files[name] = data
    return ModelFiles(
        manifest,
        hashlib.sha256(text).digest(),
        card.decode("utf-8", errors="replace"),
        files,
    )


def _manifest(text: bytes) -> Manifest:
    try:
        return Manifest.model_validate(tomllib.loads(text.decode("utf-8")))
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, one['loc'])) or 'model.toml'}: {one['msg']}"
            for one in error.errors(include_url=False, include_input=False)[:5]
        ]
        raise ModelRefusedError(
            ModelProto.PROBLEM_MANIFEST_INVALID,
            f"model.toml is not a manifest. {'; '.join(problems)}.",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelRefusedError(
            ModelProto.PROBLEM_MANIFEST_INVALID, f"model.toml is not a manifest: {error}."
        ) from error


def _read(folder: Path, name: str, most: int) -> bytes:
    path = folder / name
    try:
        # Nothing else is opened: a pipe would wait for a writer.
        if not path.is_file():
            raise FileNotFoundError
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise ModelRefusedError(
                    ModelProto.PROBLEM_FILES_MISSING,
                    f"{name} is larger than the {most} bytes it may have.",
                )
            # A file that grows meanwhile is not read on; its hash tells.
            return file.read(size)
    except OSError as error:
        raise ModelRefusedError(
            ModelProto.PROBLEM_FILES_MISSING,
            f"{name} cannot be read ({type(error).__name__}). Put it into the model's folder.",
        ) from error


def newest(versions: Iterable[str]) -> str | None:
    """The newest of these versions, None if there is none."""
    return max(versions, key=lambda one: tuple(map(int, one.split("."))), default=None)
