"""What a blob store raises, and how the errors of obstore become it."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from obstore.exceptions import BaseError

NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Errnos of a disk with no space left."""

_READ_ONLY: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
"""Errnos of a disk or folder that may not be written to."""

_FULL_TEXT: Final = re.compile(
    rf"os error ({'|'.join(map(str, sorted(NO_SPACE)))})\b|XMinioStorageFull"
)
"""How obstore's texts say so, which carry no errno, and the error code of a full S3 server."""

_READ_ONLY_TEXT: Final = re.compile(
    rf"os error ({'|'.join(map(str, sorted(_READ_ONLY)))})\b|AccessDenied"
)
"""How obstore's texts name a store that refuses writes, and S3's error code for it."""

_NO_BUCKET: Final = "NoSuchBucket"
"""S3's error code for a missing bucket.

obstore raises FileNotFoundError for it, as for a missing object.
"""


class BlobStoreError(Exception):
    """The store cannot be reached or gave an error; another try may succeed.

    name: of the blob, `blobs/{uuid}`; "" when no single blob was asked for.
    The text holds no path, bucket or address; `__cause__` has what obstore said, for the log alone.
    """

    meaning = "the blob store cannot be reached or gave an error"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        """`blobs/{uuid}: what happened`."""
        return f"{self.name}: {self.meaning}" if self.name else self.meaning


class BlobNotFoundError(BlobStoreError):
    """There is no blob of this name. Another try will not help."""

    meaning = "no such blob"


class BlobStoreFullError(BlobStoreError):
    """The store has no space left (ENOSPC, EDQUOT, EFBIG, or a full S3-compatible server).

    Nothing half-written is visible.
    """

    meaning = "the blob store has no space left"


class BlobStoreReadOnlyError(BlobStoreError):
    """The store denies access: a read-only disk, or no permission for the folder or bucket.

    Another try may succeed.
    """

    meaning = "the blob store is read-only or denies access"


@contextmanager
def translated(name: str, *, missing: type[BlobStoreError] = BlobNotFoundError) -> Iterator[None]:
    """Turns what obstore raises in the body into a BlobStoreError about the blob `name`.

    missing: what "not found" means. When writing, the folder or the bucket is gone, not a blob.
    """
    try:
        yield
    except FileNotFoundError as error:
        # A missing bucket is an outage, not a missing blob: nobody may take it for deleted bytes.
        raise (BlobStoreError if _NO_BUCKET in str(error) else missing)(name) from error
    except (BaseError, OSError) as error:
        raise _kind(error)(name) from error


def _kind(error: Exception) -> type[BlobStoreError]:
    number, text = getattr(error, "errno", None), str(error)
    # obstore's errors have no errno, only a text.
    if number in NO_SPACE or _FULL_TEXT.search(text):
        return BlobStoreFullError
    if number in _READ_ONLY or _READ_ONLY_TEXT.search(text):
        return BlobStoreReadOnlyError
    return BlobStoreError
