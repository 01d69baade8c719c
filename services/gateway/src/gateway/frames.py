"""Messages of watch streams and downloads, made as the bytes that go out.

A message is its fields one after the other, and a field that holds a message is its bytes with a
head (protobuf's encoding, "Message structure"). Putting the bytes together costs a fraction of
copying a message into another one and walking through that. WatchJobResponse, RunJobResponse and
WatchJobsResponse number alike the fields that they have in common.
"""

from typing import Final

from fluoro.v1 import event_pb2, job_pb2
from fluoro.v1.blob_service_pb2 import DownloadBlobResponse
from fluoro.v1.job_service_pb2 import Bookmark, WatchJobResponse

from gateway.wire import length_delimited

_FIELDS: Final = WatchJobResponse.DESCRIPTOR.fields_by_name
_CURSOR: Final = _FIELDS["cursor"].number
_SNAPSHOT: Final = _FIELDS["snapshot"].number
_EVENT: Final = _FIELDS["event"].number
_PROGRESS: Final = _FIELDS["progress"].number
_BOOKMARK: Final = _FIELDS["bookmark"].number
_CHUNK: Final = DownloadBlobResponse.DESCRIPTOR.fields_by_name["chunk"].number


def snapshot(cursor: str, job: job_pb2.Job) -> bytes:
    """A WatchJobResponse."""
    return _with_cursor(cursor, length_delimited(_SNAPSHOT, job.SerializeToString()))


def event(cursor: str, told: event_pb2.Event) -> bytes:
    """A WatchJobResponse or WatchJobsResponse."""
    return _with_cursor(cursor, length_delimited(_EVENT, told.SerializeToString()))


def progress(cursor: str, told: bytes) -> bytes:
    """A WatchJobResponse or WatchJobsResponse. told: a serialized fluoro.v1.Progress."""
    return _with_cursor(cursor, length_delimited(_PROGRESS, told))


def bookmark(cursor: str, last_sequence: int = 0) -> bytes:
    """A WatchJobResponse or WatchJobsResponse."""
    told = Bookmark(last_sequence=last_sequence)
    return _with_cursor(cursor, length_delimited(_BOOKMARK, told.SerializeToString()))


def chunk(data: bytes) -> bytes:
    """A DownloadBlobResponse."""
    return length_delimited(_CHUNK, data)


def _with_cursor(cursor: str, rest: bytes) -> bytes:
    return length_delimited(_CURSOR, cursor.encode()) + rest
