"""The blob store: whether a blob can be written, read back and deleted."""

from collections.abc import Iterator
from typing import Final

from fluoro_blobs import BlobStore
from fluoro_blobs.errors import BlobStoreError, BlobStoreFullError, BlobStoreReadOnlyError

from fluoro_jobs.doctor.findings import Finding, fault, ok
from fluoro_jobs.ids import new_id

_PROBE: Final = b"fluoro doctor\n"


def look(store: BlobStore) -> Iterator[Finding]:
    """Writes a small blob, reads it and deletes it.

    One that is left behind has no record, so the collector removes it.
    """
    name = f"blobs/{new_id()}"
    doing = "write"
    try:
        store.put(name, _PROBE)
        doing = "read"
        # Reads the blob back, because a store behind a cache may return nothing or something else.
        same = store.read(name) == _PROBE
        doing = "delete"
        store.delete(name)
    except BlobStoreFullError as error:
        yield fault("blob store", str(error), "Make room: docs/operations/disk-full.md.")
    except BlobStoreReadOnlyError:
        yield fault("blob store", f"may not {doing}", _rights(doing))
    except BlobStoreError as error:
        yield fault("blob store", f"cannot {doing}: {error.meaning}", _rights(doing))
    else:
        if same:
            yield ok("blob store", "a blob was written, read back and deleted")
        else:
            yield fault(
                "blob store",
                "gives back other bytes than it got",
                "Look for a cache or a gateway in front of it that changes what it carries.",
            )


def _rights(doing: str) -> str:
    return (
        f"Look at FLUORO_BLOB_URL and at the rights of the services there: they need to write, "
        f"read, list and delete, and could not {doing}."
    )
