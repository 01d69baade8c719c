"""What one call that follows all jobs of an owner holds: where it is in each of them, and where it can be resumed."""

from collections.abc import Collection, Mapping
from typing import Final
from uuid import UUID

from fluoro.v1 import event_pb2, job_pb2
from fluoro_jobs.errors import FluoroError
from fluoro_jobs.ledger.horizon import News, Place, Span

from gateway.watcher import Mailbox

TERMINAL: Final = frozenset(
    {job_pb2.Job.STATE_SUCCEEDED, job_pb2.Job.STATE_PARTIALLY_SUCCEEDED, job_pb2.Job.STATE_FAILED, job_pb2.Job.STATE_CANCELLED}
)
"""States of a job after which there are no more events, unless it is retried."""


class ResumePoint:
    """The horizon in a stream's cursor. It moves in steps that let a reader forget (ADR 0011).

    The events that a reader got before the first message with one cursor are all below the next cursor's horizon. For that the next one
    waits until whatever ran when the present one was first sent has finished.
    """

    __slots__ = ("_barrier", "horizon", "sent")

    def __init__(self, horizon: int, *, sent: bool = False) -> None:
        """sent: whether the caller has seen a cursor with this horizon."""
        self.horizon = horizon
        self.sent = sent
        self._barrier: int | None = None

    def observe(self, span: Span, *, sent_before: bool) -> None:
        """All events below span.xmin are in the stream. sent_before: whether the cursor had been sent when the span was read."""
        if not self.sent:
            self.horizon = span.xmin
        elif self._barrier is None:
            self._barrier = span.xmax if sent_before else None
        elif span.xmin >= self._barrier:
            self.horizon, self.sent, self._barrier = span.xmin, False, None


class OwnerWatcher(Mailbox):
    """One call that follows all jobs of an owner that have some labels.

    place: owner and horizon below which everything was put in; None until the call has caught up, and after its end.
    sequences: per job the newest event put in. Jobs are forgotten once they have ended and all their events are below the horizon.
    """

    __slots__ = ("_ended", "labels", "owner", "place", "point", "sequences")

    def __init__(self, owner: str, labels: Mapping[str, str], limit: int, now: float) -> None:
        super().__init__(limit, now)
        self.owner, self.labels = owner, dict(labels)
        self.place: Place | None = None
        self.point = ResumePoint(0)
        self.sequences: dict[UUID, int] = {}
        self._ended: set[UUID] = set()

    def wants(self, news: News) -> bool:
        """Whether the job has the labels."""
        return self.labels.items() <= news.labels.items()

    def know(self, job: UUID, sequence: int, *, ended: bool) -> None:
        """The caller needs the job's events from after `sequence` on."""
        self.sequences[job] = sequence
        (self._ended.add if ended else self._ended.discard)(job)

    def put_event(self, event: event_pb2.Event) -> bool:
        """Takes the event if it is the next one of its job. False if there is no room for it: the watcher is to be ended."""
        job = UUID(event.job.removeprefix("jobs/"))
        sequence = self.sequences.get(job)
        if sequence is None or event.sequence != sequence + 1:
            return True
        if not self._put(event):
            return False
        self.saw(job, event)
        return True

    def saw(self, job: UUID, event: event_pb2.Event) -> None:
        """The event is in the stream."""
        ended = event.job_changed.state in TERMINAL if event.HasField("job_changed") else job in self._ended
        self.know(job, event.sequence, ended=ended)

    def advance(self, span: Span, *, sent_before: bool, recent: Collection[UUID]) -> list[UUID]:
        """Moves on to span.xmin; everything below is put in. Returns the jobs it forgets: the ended ones that are not `recent`."""
        self.place = (self.owner, span.xmin)
        self.point.observe(span, sent_before=sent_before)
        gone = [job for job in self._ended if job not in recent]
        for job in gone:
            del self.sequences[job]
        self._ended.difference_update(gone)
        return gone

    def end(self, error: FluoroError, *, keep: bool) -> None:
        """Ends the watcher with an error: after what it holds (keep), or at once, giving its memory back."""
        self.place = None
        self.sequences = {}
        self._ended = set()
        super().end(error, keep=keep)
