"""Models from a bucket: copied into a folder of this machine, and served from there.

Each version is copied whole into a folder of its own. Then a link with its name points there, in
one step, so nobody sees half a version:

    {cache}/{name}/{version} -> ../.copies/{what the bucket had}
"""

import hashlib
import re
import shutil
import threading
import time
import tomllib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final
from uuid import uuid4

import structlog
from fluoro_blobs import BlobStoreError
from fluoro_blobs.foreign import ForeignPrefix, FoundObject

from ml_worker.manifest import FILE, NAME, VERSION
from ml_worker.repository import (
    CARD,
    MANIFEST,
    MAX_CARD_BYTES,
    MAX_LOOKED_AT,
    MAX_MANIFEST_BYTES,
    MAX_MODEL_BYTES,
    MAX_VERSIONS,
)

log = structlog.get_logger(__name__)

REQUEST_SECONDS: Final = 10
"""Time limit of one request, which is tried again for as long."""
FIRST_SECONDS: Final = 60
"""How long a worker that starts waits for its first copy; later ones are found while it runs."""
KEPT_SECONDS: Final = 7200
"""How long a copy stays that no link points to. Another worker may still make or read it."""
COPIES: Final = ".copies"

Key = tuple[str, str]
"""Name and version."""
Objects = Mapping[str, FoundObject]
"""The files of one version by their names."""


class TooMuchError(Exception):
    """The bucket holds more than a worker takes."""


class Bucket:
    """Keeps a folder like what a URL has. It has a thread of its own, so nothing waits for it."""

    def __init__(self, url: str, cache: Path, poll_seconds: float, fetch_seconds: float) -> None:
        """fetch_seconds: how long the copy of one version may take. ValueError for a bad URL."""
        self._prefix = ForeignPrefix(url, REQUEST_SECONDS)
        self._cache = cache
        self._poll_seconds = poll_seconds
        self._fetch_seconds = fetch_seconds
        self._first = threading.Event()
        self._closing = threading.Event()
        # Not a daemon: an interpreter that ends during a call of obstore may abort.
        self._thread = threading.Thread(target=self._watch, name="models-bucket")
        (cache / COPIES).mkdir(parents=True, exist_ok=True)

    def open(self) -> None:
        """Begins, and waits for the first copies. A store that does not answer ends the wait."""
        self._thread.start()
        self._first.wait(FIRST_SECONDS)

    def close(self) -> None:
        """Ends after the request that is under way."""
        self._closing.set()

    def copy(self) -> None:
        """Makes the folder like the bucket, as far as the bucket can be read."""
        try:
            versions = self._versions()
        except (BlobStoreError, TooMuchError) as error:
            # What is there already goes on being served.
            log.warning("models_bucket_unreadable", exception=type(error).__qualname__)
            return
        for key, files in versions.items():
            try:
                self._keep(key, files)
            except (BlobStoreError, TooMuchError, OSError) as error:
                name, version = key
                log.warning(
                    "model_not_copied",
                    model=name,
                    version=version,
                    exception=type(error).__qualname__,
                )
        self._clear(versions)

    def _watch(self) -> None:
        while not self._closing.is_set():
            try:
                self.copy()
            except Exception:  # whatever a disk or a library does, the next look tries again
                log.exception("models_bucket_failed")
            self._first.set()
            self._closing.wait(self._poll_seconds)

    def _versions(self) -> dict[Key, Objects]:
        """The versions with a manifest, those that are copied already first."""
        found: defaultdict[Key, dict[str, FoundObject]] = defaultdict(dict)
        for number, file in enumerate(self._prefix.objects()):
            if number == MAX_LOOKED_AT or self._closing.is_set():
                raise TooMuchError
            match file.key.split("/"):
                case [name, version, part] if is_version(name, version):
                    found[name, version][part] = file
        claims = [key for key, files in found.items() if MANIFEST in files]
        claims.sort(key=lambda key: (not self._link(key).is_symlink(), key))
        if len(claims) > MAX_VERSIONS:
            log.warning("models_bucket_too_large", versions=len(claims), most=MAX_VERSIONS)
        return {key: found[key] for key in claims[:MAX_VERSIONS]}

    def _link(self, key: Key) -> Path:
        name, version = key
        return self._cache / name / version

    def _keep(self, key: Key, files: Objects) -> None:
        """Copies a version, unless the one that is there was made from the same files."""
        link, there = self._link(key), self._cache / COPIES / digest(files)
        target = Path("..", COPIES, there.name)
        if link.is_symlink() and link.readlink() == target and there.is_dir():
            return
        if not there.is_dir():
            self._fetch(files, there)
        link.parent.mkdir(exist_ok=True)
        fresh = link.with_name(f".{uuid4()}")
        fresh.symlink_to(target)
        fresh.replace(link)

    def _fetch(self, files: Objects, there: Path) -> None:
        """Copies what a version needs, and gives it its name at the end."""
        until = time.monotonic() + self._fetch_seconds

        def go_on() -> bool:
            return not self._closing.is_set() and time.monotonic() < until

        made = there.with_name(f".{uuid4()}")
        made.mkdir()
        try:
            self._take(files, MANIFEST, MAX_MANIFEST_BYTES, made, go_on)
            self._take(files, CARD, MAX_CARD_BYTES, made, go_on)
            left = MAX_MODEL_BYTES
            for name in listed(made / MANIFEST):
                left -= self._take(files, name, left, made, go_on)
            made.rename(there)
        except OSError:
            # Another worker with the same folder may have been faster.
            if not there.is_dir():
                raise
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def _take(
        self, files: Objects, name: str, most: int, folder: Path, go_on: Callable[[], bool]
    ) -> int:
        """Copies a file, if there is one; its bytes. What is missing shows when it is loaded."""
        file = files.get(name)
        if file is None:
            return 0
        if file.size_bytes > most:
            raise TooMuchError
        self._prefix.fetch(file, folder / name, go_on)
        return file.size_bytes

    def _clear(self, versions: Mapping[Key, Objects]) -> None:
        """Removes links to versions that are gone, and copies that no link points to."""
        used = set()
        for link in self._cache.glob("*/*"):
            # A name with a dot in front is being made into a link.
            is_wanted = link.name.startswith(".") or (link.parent.name, link.name) in versions
            if link.is_symlink() and is_wanted:
                used.add(link.readlink().name)
            elif link.is_symlink():
                link.unlink(missing_ok=True)
        for copy in (self._cache / COPIES).iterdir():
            if copy.name not in used and _is_old(copy):
                shutil.rmtree(copy, ignore_errors=True)


def is_version(name: str, version: str) -> bool:
    """Whether a model can be called so."""
    return bool(re.fullmatch(NAME, name) and re.fullmatch(VERSION, version))


def listed(manifest: Path) -> Sequence[str]:
    """The files that a manifest names. None if it is no manifest; loading it says why."""
    try:
        names = tomllib.loads(manifest.read_text(encoding="utf-8"))["files"].keys()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError, LookupError):
        return ()
    except AttributeError:  # `files` is no table
        return ()
    return sorted(name for name in names if re.fullmatch(FILE, name))


def digest(files: Objects) -> str:
    """Another one for other files, or others of the same names."""
    what = sorted((name, file.size_bytes, file.tag) for name, file in files.items())
    return hashlib.sha256(repr(what).encode()).hexdigest()


def _is_old(path: Path) -> bool:
    return time.time() - path.lstat().st_mtime > KEPT_SECONDS
