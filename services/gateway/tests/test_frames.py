"""Messages put together from bytes are those that protobuf would have made."""

import pytest
from fluoro.v1.blob_service_pb2 import DownloadBlobResponse
from fluoro.v1.event_pb2 import Event, JobChanged, Progress
from fluoro.v1.job_pb2 import Job
from fluoro.v1.job_service_pb2 import Bookmark, RunJobResponse, WatchJobResponse, WatchJobsResponse
from gateway import frames

EVENT = Event(sequence=3, job="jobs/a", job_changed=JobChanged(state=Job.STATE_FAILED))
PROGRESS = Progress(job="jobs/a", step="b", fraction=0.5)


@pytest.mark.parametrize("kind", [WatchJobResponse, WatchJobsResponse, RunJobResponse])
@pytest.mark.parametrize("cursor", ["", "c" * 300])
def test_what_all_kinds_of_watch_tell_is_the_same_bytes(
    kind: type[WatchJobResponse | WatchJobsResponse | RunJobResponse], cursor: str
) -> None:
    assert kind.FromString(frames.event(cursor, EVENT)) == kind(cursor=cursor, event=EVENT)
    assert kind.FromString(frames.progress(cursor, PROGRESS.SerializeToString())) == kind(
        cursor=cursor, progress=PROGRESS
    )
    assert kind.FromString(frames.bookmark(cursor, 7)) == kind(
        cursor=cursor, bookmark=Bookmark(last_sequence=7)
    )
    assert kind.FromString(frames.bookmark(cursor)) == kind(cursor=cursor, bookmark=Bookmark())


def test_a_snapshot_and_a_chunk_are_what_protobuf_would_make() -> None:
    job = Job(name="jobs/a", labels={"a": "b"}, inputs=["blobs/x"] * 50)
    for kind in (WatchJobResponse, RunJobResponse):
        assert kind.FromString(frames.snapshot("c", job)) == kind(cursor="c", snapshot=job)
    for size in (0, 1, 127, 128, 128 * 1024):
        sent = DownloadBlobResponse.FromString(frames.chunk(bytes(size)))
        assert sent == DownloadBlobResponse(chunk=bytes(size))
