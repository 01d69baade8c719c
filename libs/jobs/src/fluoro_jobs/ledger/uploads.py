"""Uploads that go on after a broken connection: what was announced, and which stream writes.

The bytes are in the blob store, in segments (fluoro_blobs.resumable). A stream costs a statement at
its begin, one at its end and one a minute, and none for its chunks.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

from fluoro.v1 import blob_service_pb2
from psycopg.rows import TupleRow

from fluoro_jobs.errors import FieldViolation, FluoroError, Reason
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger import blobs
from fluoro_jobs.ledger.connection import LedgerConnection

MOST_OPEN: Final = 1000
"""Uploads of an owner that have begun and not ended, and given up ones that have a signed URL."""

MOST_STREAMS: Final = 1000
"""Streams of one upload: each leaves eight bytes in its row."""

SWEPT: Final = 20
"""Uploads whose time is over, in one go."""

_COLUMNS: Final = "id, key, size_bytes, sha256, media_type, starts, blob_id, expired"
# An owner's uploads that are given up count as long as a signed URL may still bring their bytes.
_BEGIN: Final = f"""
INSERT INTO uploads (owner, id, key, size_bytes, sha256, media_type)
SELECT %(owner)s, %(id)s, %(key)s, %(size)s, %(sha256)s, %(media_type)s
WHERE %(most)s > (SELECT count(*) FROM
  (SELECT FROM uploads WHERE owner = %(owner)s AND blob_id IS NULL AND (signed OR NOT expired)
   LIMIT %(most)s) o)
ON CONFLICT (owner, id) DO NOTHING RETURNING {_COLUMNS}
"""
_FIND: Final = f"SELECT {_COLUMNS} FROM uploads WHERE owner = %s AND id = %s"
_MINE: Final = """
owner = %(owner)s AND id = %(id)s AND cardinality(starts) = %(streams)s
  AND blob_id IS NULL AND NOT expired
"""
_OPEN: Final = f"""
UPDATE uploads SET starts = starts || %(start)s::bigint, update_time = now()
WHERE {_MINE} RETURNING starts
"""
_TOUCH: Final = f"UPDATE uploads SET update_time = now() WHERE {_MINE} RETURNING id"
_SIGN: Final = f"""
UPDATE uploads SET update_time = now(), signed = true WHERE {_MINE} RETURNING id
"""
# Locked first: of two streams that close at once, the second one finds the row changed. The update
# in ON CONFLICT changes nothing; it makes RETURNING give the earlier blob of these bytes.
_CLOSE: Final = f"""
WITH mine AS (SELECT FROM uploads WHERE {_MINE} FOR UPDATE),
added AS (
  INSERT INTO blobs (id, owner, size_bytes, sha256, media_type, uploaded)
  SELECT %(blob)s, %(owner)s, %(size)s, %(sha256)s, %(media_type)s, true FROM mine
  ON CONFLICT (owner, sha256) WHERE uploaded DO UPDATE SET owner = excluded.owner
  RETURNING {blobs.COLUMNS}
),
closed AS (
  UPDATE uploads u SET blob_id = a.id, update_time = now() FROM added a
  WHERE u.owner = %(owner)s AND u.id = %(id)s
)
SELECT {blobs.COLUMNS} FROM added
"""
# The row stays its time: a signed URL may bring bytes that only the sweep of the row deletes.
_DROP: Final = f"UPDATE uploads SET expired = true WHERE {_MINE} RETURNING id"
# Two schedulers sweep at once; each takes other rows.
_EXPIRE: Final = """
UPDATE uploads u SET expired = true
FROM (SELECT owner, id FROM uploads WHERE update_time < now() - %s * interval '1 second'
  ORDER BY update_time LIMIT %s FOR UPDATE SKIP LOCKED) old
WHERE u.owner = old.owner AND u.id = old.id RETURNING u.owner, u.id, u.key
"""
# Only what expired: a new upload may have taken the id since.
_FORGET: Final = "DELETE FROM uploads WHERE owner = %s AND id = %s AND expired"


class Upload(NamedTuple):
    """What is known of one. starts: the byte at which each of its streams began."""

    id: UUID
    key: UUID
    size_bytes: int
    sha256: bytes
    media_type: str
    starts: list[int]
    blob_id: UUID | None
    expired: bool = False


def begin(
    connection: LedgerConnection, owner: str, id_: UUID, header: blob_service_pb2.UploadBlobHeader
) -> Upload | blob_service_pb2.Blob:
    """The upload of that id, begun now if there was none, or the owner's blob of the same bytes.

    FluoroError INVALID_ARGUMENT if it was begun for other bytes, UPLOADS_BUSY if too many are open,
    UPLOAD_NOT_FOUND if its time is over.
    """
    # Bytes that the owner has stored already need not come again.
    blob = blobs.of_content(connection, owner, header.sha256)
    # Another size means that the caller's header is wrong, which the upload will show.
    if blob is not None and blob.size_bytes == header.size_bytes:
        return blob
    row = connection.execute(
        _BEGIN,
        {
            "owner": owner,
            "id": id_,
            "key": new_id(),
            "size": header.size_bytes,
            "sha256": header.sha256,
            "media_type": header.media_type,
            "most": MOST_OPEN,
        },
    ).fetchone()
    if row is not None:
        return Upload(*row)
    # No row was written: the id is taken, or too many are open. Only the row itself tells which.
    row = connection.execute(_FIND, (owner, id_)).fetchone()
    if row is None:
        raise FluoroError(
            Reason.UPLOADS_BUSY,
            f"{MOST_OPEN} uploads of this owner have begun and not ended, as many as may. "
            "Go on with them, or try again later.",
        )
    upload = _living(row)
    # Whoever goes on with an upload would otherwise mix the bytes of two files.
    if (upload.size_bytes, upload.sha256) != (header.size_bytes, header.sha256):
        text = "Was begun for other bytes. Take a new one."
        raise FluoroError(
            Reason.INVALID_ARGUMENT, f"upload_id: {text}", [FieldViolation("upload_id", text)]
        )
    return upload


def find(connection: LedgerConnection, owner: str, id_: UUID) -> Upload:
    """The upload. FluoroError UPLOAD_NOT_FOUND if it is not the owner's, or its time is over."""
    return _living(connection.execute(_FIND, (owner, id_)).fetchone())


def open_stream(
    connection: LedgerConnection, owner: str, upload: Upload, start: int
) -> list[int] | None:
    """Makes a new stream the one that writes, from this byte on. All starts, its own last.

    None if another stream was faster.
    """
    # The number of streams is the fencing token: whoever read the row before another stream began
    # writes nothing.
    row = connection.execute(_OPEN, _mine(owner, upload) | {"start": start}).fetchone()
    return None if row is None else list(row[0])


def touch(connection: LedgerConnection, owner: str, upload: Upload) -> bool:
    """Keeps the upload from being swept. Whether the stream is still the newest."""
    return connection.execute(_TOUCH, _mine(owner, upload)).fetchone() is not None


def sign(connection: LedgerConnection, owner: str, upload: Upload) -> bool:
    """Keeps it from being swept while its URL is good, and counts its bytes for as long.

    Whether its row is as it was.
    """
    return connection.execute(_SIGN, _mine(owner, upload)).fetchone() is not None


def close(
    connection: LedgerConnection, owner: str, upload: Upload, blob_id: UUID
) -> blob_service_pb2.Blob:
    """Records the blob, whose bytes are in the store.

    Returns the owner's earlier blob of the same bytes if there is one, and that of the upload if
    somebody was faster. FluoroError UPLOAD_SUPERSEDED if a newer stream has begun.
    """
    row = connection.execute(
        _CLOSE,
        _mine(owner, upload)
        | {
            "blob": blob_id,
            "size": upload.size_bytes,
            "sha256": upload.sha256,
            "media_type": upload.media_type,
        },
    ).fetchone()
    if row is not None:
        return blobs.from_row(row)
    # The same stream or commit may have come twice.
    row = connection.execute(_FIND, (owner, upload.id)).fetchone()
    if row is not None and (blob := Upload(*row).blob_id) is not None:
        return blobs.get(connection, owner, blob)
    raise superseded()


def drop(connection: LedgerConnection, owner: str, upload: Upload) -> bool:
    """Gives the upload up, whose bytes turned out to be others. False if a newer stream has it.

    Nobody can go on with it. Its row goes as any other's does, with what comes until then.
    """
    return connection.execute(_DROP, _mine(owner, upload)).fetchone() is not None


def expire(connection: LedgerConnection, after_seconds: float) -> Sequence[tuple[str, UUID, UUID]]:
    """Owner, id and key of some uploads that nobody went on with for so long.

    From now on nobody can. Their rows stay until `forget`, so that no crash loses what has to be
    deleted.
    """
    rows: list[tuple[Any, ...]] = connection.execute(_EXPIRE, (after_seconds, SWEPT)).fetchall()
    return [(owner, id_, key) for owner, id_, key in rows]


def forget(connection: LedgerConnection, owner: str, id_: UUID) -> None:
    """Removes the row of an upload that has expired and whose bytes are gone."""
    connection.execute(_FORGET, (owner, id_))


def superseded() -> FluoroError:
    """What the older of two streams ends with."""
    return FluoroError(
        Reason.UPLOAD_SUPERSEDED,
        "Another stream goes on with this upload. Leave it to that one.",
    )


def not_found() -> FluoroError:
    """There is no upload to go on with."""
    return FluoroError(
        Reason.UPLOAD_NOT_FOUND,
        "No such upload for this caller, or its time is over. Call BeginUpload with a new id.",
    )


def _living(row: TupleRow | None) -> Upload:
    # An expired row is there only for the sweep; for callers it is gone.
    if row is None or (upload := Upload(*row)).expired:
        raise not_found()
    return upload


def _mine(owner: str, upload: Upload) -> dict[str, Any]:
    return {"owner": owner, "id": upload.id, "streams": len(upload.starts)}
