"""Objects of buckets that are not the deployment's own store. The methods block."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import obstore

from fluoro_blobs.backends import open_store
from fluoro_blobs.errors import BlobStoreError, translated

RANGE_BYTES: Final = 4 * 1024 * 1024
"""Bytes of one request of ForeignPrefix."""

PAGE_OBJECTS: Final = 1000
"""Objects of one page of a listing: as many as S3 gives at once."""


class ForeignObject:
    """One object, as it was when this was made. Errors are those of BlobStore, without a name."""

    def __init__(self, bucket: str, key: str, request_seconds: float) -> None:
        """Credentials and endpoint are those of this process (AWS_…).

        request_seconds: for one request.
        """
        self._store, _ = open_store(f"s3://{bucket}", request_seconds, {})
        self._key = key
        with translated(""):
            head = obstore.head(self._store, key)
        # Size and tag of one moment: what is read later has to be the same object.
        self._size_bytes, self._tag = head["size"], head["e_tag"]
        self._offset = 0

    @property
    def size_bytes(self) -> int:
        """Of the whole object."""
        return self._size_bytes

    def read(self, most_bytes: int) -> bytes:
        """The next bytes; none at the end."""
        end = min(self._offset + most_bytes, self._size_bytes)
        if end == self._offset:
            return b""
        with translated(""):
            # Another version would be refused, and not mixed in.
            answer = obstore.get(
                self._store,
                self._key,
                options={"range": (self._offset, end), "if_match": self._tag},
            )
            data = answer.bytes().to_bytes()
        self._offset = end
        return data

    def abort(self) -> None:
        """Nothing to do: a request has a time limit."""

    def close(self) -> None:
        """Nothing to do: no connection stays open."""


@dataclass(frozen=True, slots=True)
class FoundObject:
    """An object as a listing has it. key: below the prefix. tag: another one for other content."""

    key: str
    size_bytes: int
    tag: str


class ForeignPrefix:
    """The objects below a prefix of a bucket, which is only read. Errors are those of BlobStore."""

    def __init__(self, url: str, request_seconds: float) -> None:
        """url: `s3://bucket/prefix`, else ValueError.

        Credentials and endpoint are those of this process (AWS_…). request_seconds: for one
        request, which is tried again for as long.
        """
        if not url.startswith("s3://"):
            raise ValueError("the URL of a prefix is s3://bucket/prefix")
        self._store, _ = open_store(url, request_seconds, {})

    def objects(self) -> Iterator[FoundObject]:
        """All of them, in the order of their keys. A bucket that is not there is an error."""
        pages = iter(obstore.list(self._store, chunk_size=PAGE_OBJECTS))
        while True:
            with translated("", missing=BlobStoreError):
                page = next(pages, None)
            if page is None:
                return
            for found in page:
                yield FoundObject(found["path"], found["size"], found["e_tag"] or "")

    def fetch(self, found: FoundObject, path: Path, go_on: Callable[[], bool]) -> None:
        """Copies it into a new file, which is on the disk then.

        go_on: asked before each request; TimeoutError if it says no. BlobStoreError also if the
        object is not as it was found any more. OSError about the new file comes as it is.
        """
        with path.open("xb") as file:
            for start in range(0, found.size_bytes, RANGE_BYTES):
                if not go_on():
                    raise TimeoutError
                stop = min(start + RANGE_BYTES, found.size_bytes)
                with translated(""):
                    # Another version would be refused, and not mixed in.
                    answer = obstore.get(
                        self._store,
                        found.key,
                        options={"range": (start, stop), "if_match": found.tag or None},
                    )
                    data = answer.bytes().to_bytes()
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
