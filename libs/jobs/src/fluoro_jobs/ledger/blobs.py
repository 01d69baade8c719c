"""The records of blobs: who owns which bytes.

The bytes are in the blob store, under the same name.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from fluoro.v1 import blob_service_pb2
from psycopg.rows import TupleRow

from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ledger.connection import LedgerConnection

COLUMNS: Final = "id, size_bytes, sha256, media_type, create_time"
"""What `from_row` takes."""
# The update changes nothing; it makes RETURNING give the earlier row when there is one.
_ADD: Final = f"""
INSERT INTO blobs (id, owner, size_bytes, sha256, media_type, uploaded)
  VALUES (%s, %s, %s, %s, %s, true)
ON CONFLICT (owner, sha256) WHERE uploaded DO UPDATE SET owner = excluded.owner RETURNING {COLUMNS}
"""
_UNRECORDED: Final = (
    "SELECT now(), array(SELECT id FROM unnest(%s::uuid[]) u(id)"
    " WHERE NOT EXISTS (SELECT FROM blobs b WHERE b.id = u.id))"
)
_IDENTITY: Final = "SELECT system_identifier || '/' || current_database() FROM pg_control_system()"
_GET: Final = f"SELECT {COLUMNS} FROM blobs WHERE id = %s AND owner = %s"
_OF_CONTENT: Final = f"SELECT {COLUMNS} FROM blobs WHERE owner = %s AND sha256 = %s AND uploaded"


def add(
    connection: LedgerConnection, owner: str, blob: blob_service_pb2.Blob
) -> blob_service_pb2.Blob:
    """Records an upload whose bytes are in the store.

    Returns the owner's earlier blob of the same bytes if there is one.
    """
    id_ = UUID(blob.name.removeprefix("blobs/"))
    row = connection.execute(
        _ADD, (id_, owner, blob.size_bytes, blob.sha256, blob.media_type)
    ).fetchone()
    assert row is not None
    return from_row(row)


def get(connection: LedgerConnection, owner: str, blob_id: UUID) -> blob_service_pb2.Blob:
    """The record. FluoroError BLOB_NOT_FOUND if it is not the owner's."""
    row = connection.execute(_GET, (blob_id, owner)).fetchone()
    # Whether it is missing or somebody else's is not told apart: the difference would tell which
    # ids exist.
    if row is None:
        raise FluoroError(
            Reason.BLOB_NOT_FOUND,
            f"blobs/{blob_id} does not exist for this caller.",
            metadata={"blob": f"blobs/{blob_id}"},
        )
    return from_row(row)


def of_content(
    connection: LedgerConnection, owner: str, sha256: bytes
) -> blob_service_pb2.Blob | None:
    """The owner's upload of these bytes, if there is one. Those of others are never looked at."""
    # By owner: finding the bytes of others would tell a caller what they have stored.
    row = connection.execute(_OF_CONTENT, (owner, sha256)).fetchone()
    return None if row is None else from_row(row)


def unrecorded(connection: LedgerConnection, ids: Sequence[UUID]) -> tuple[datetime, set[UUID]]:
    """The ledger's time, and those of the ids that no record has. One index look-up for each."""
    row = connection.execute(_UNRECORDED, (list(ids),)).fetchone()
    assert row is not None
    return row[0], set(row[1])


def ledger_name(connection: LedgerConnection) -> str:
    """A name that tells this ledger from every other.

    It stays the same after a failover or a restored base backup. A new cluster or database has
    another one.
    """
    # The id of the cluster alone is not enough: two databases of one cluster would share it, and
    # one's collector would delete the other's bytes.
    row = connection.execute(_IDENTITY).fetchone()
    assert row is not None
    return str(row[0])


def from_row(row: TupleRow) -> blob_service_pb2.Blob:
    """The record of a row of COLUMNS."""
    id_, size_bytes, sha256, media_type, create_time = row
    blob = blob_service_pb2.Blob(
        name=f"blobs/{id_}", size_bytes=size_bytes, sha256=sha256, media_type=media_type
    )
    blob.create_time.FromDatetime(create_time)
    return blob
