"""How many bytes an owner has stored, and announced."""

from typing import Final
from uuid import UUID

from fluoro_jobs.ledger import blobs
from fluoro_jobs.ledger.connection import LedgerConnection

# Some rows of counters, and as many uploads as an owner may have begun (uploads.MOST_OPEN).
_USED: Final = """
SELECT ((SELECT coalesce(sum(bytes), 0) FROM stored_bytes WHERE owner = %(owner)s)
  + (SELECT coalesce(sum(size_bytes), 0) FROM uploads
     WHERE owner = %(owner)s AND blob_id IS NULL AND (signed OR NOT expired)))::int8
"""
_BEGUN: Final = "SELECT FROM uploads WHERE owner = %s AND id = %s"


def used_bytes(connection: LedgerConnection, owner: str) -> int:
    """Bytes of the owner's blobs, and of what its uploads that have begun announced.

    Those that were given up, too, if they have a signed URL: it may still bring their bytes.
    """
    row = connection.execute(_USED, {"owner": owner}).fetchone()
    assert row is not None
    return int(row[0])


def is_there(
    connection: LedgerConnection,
    owner: str,
    size_bytes: int,
    sha256: bytes,
    upload_id: UUID | None,
) -> bool:
    """Whether an upload takes no room: the owner has its bytes, or it has begun.

    size_bytes: 0 if unknown. Another size than that of the bytes with this SHA-256 is a lie.
    """
    blob = blobs.of_content(connection, owner, sha256) if sha256 else None
    # The size is the caller's word. Only together with the digest may it spare the quota.
    if blob is not None and size_bytes in {0, blob.size_bytes}:
        return True
    # Without an id there is nothing that could go on.
    if upload_id is None:
        return False
    return connection.execute(_BEGUN, (owner, upload_id)).fetchone() is not None
