"""Objects of buckets that are not the deployment's own store. The methods block."""

import obstore

from fluoro_blobs.backends import open_store
from fluoro_blobs.errors import translated


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
