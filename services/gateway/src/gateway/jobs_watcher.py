"""What one call that follows all jobs of an owner holds: its place in each, and where to resume."""

from collections.abc import Mapping, Sequence
from uuid import UUID

from fluoro.v1 import event_pb2
from fluoro_jobs.errors import FluoroError
from fluoro_jobs.ledger.horizon import News, Place, Span

from gateway.states import is_end
from gateway.watcher import Mailbox, after


class ResumePoint:
    """The horizon in a stream's cursor. It moves in steps that let a reader forget (ADR 0011).

    The events that a reader got before the first message with one cursor are all below the next
    cursor's horizon. For that the next one waits until whatever ran when the present one was first
    sent has finished.
    """

    __slots__ = ("_barrier", "horizon", "sent")

    def __init__(self, horizon: int, *, sent: bool = False) -> None:
        """sent: whether the caller has seen a cursor with this horizon."""
        self.horizon = horizon
        self.sent = sent
        self._barrier: int | None = None

    def observe(self, span: Span, *, sent_before: bool) -> None:
        """All events below span.xmin are in the stream.

        sent_before: whether the cursor had been sent when the span was read.
        """
        # No caller knows this cursor yet, so it may move at once.
        if not self.sent:
            self.horizon = span.xmin
        elif self._barrier is None:
            # What runs now may still write below it. The cursor waits until that has finished.
            self._barrier = span.xmax if sent_before else None
        elif span.xmin >= self._barrier:
            self.horizon, self.sent, self._barrier = span.xmin, False, None


class JobsWatcher(Mailbox):
    """One call that follows all jobs of an owner that have some labels.

    horizon: everything below it was put in, or read by the call.
    place: owner and horizon while the hub feeds it; None until the call has caught up, while it
    lags, and after its end. sequences: per job the newest event put in. Jobs are forgotten once
    they have ended and all their events are below the horizon.
    """

    __slots__ = ("_ended", "horizon", "labels", "owner", "place", "point", "sequences")

    def __init__(self, owner: str, labels: Mapping[str, str], limit: int, now: float) -> None:
        super().__init__(limit, now)
        self.lagging = True
        self.owner, self.labels = owner, dict(labels)
        self.horizon = 0
        self.place: Place | None = None
        self.point = ResumePoint(0)
        self.sequences: dict[UUID, int] = {}
        self._ended: set[UUID] = set()

    def wants(self, news: News) -> bool:
        """Whether the job has the labels."""
        # Labels do not change, so one look decides.
        return self.labels.items() <= news.labels.items()

    def know(self, job: UUID, sequence: int, *, ended: bool) -> None:
        """The caller needs the job's events from after `sequence` on."""
        self.sequences[job] = sequence
        (self._ended.add if ended else self._ended.discard)(job)

    def put_events(self, events: Sequence[event_pb2.Event]) -> None:
        """Takes the next events from consecutive ones of a job, as many as there is room for.

        Without room for all it lags.
        """
        job = UUID(events[0].job.removeprefix("jobs/"))
        # It lags or has ended. It reads what it lacks by itself.
        if self.place is None or job not in self.sequences:
            return
        following = after(events, self.sequences[job])
        for event in self._put(following) if following else ():
            self.saw(job, event)
        # There was no room for all, so from here on it reads the ledger.
        if self.lagging:
            self.place = None

    def saw(self, job: UUID, event: event_pb2.Event) -> None:
        """The event is in the stream."""
        # A retry makes a job that had ended run again.
        ended = is_end(event) if event.HasField("job_changed") else job in self._ended
        self.know(job, event.sequence, ended=ended)

    def live(self) -> None:
        """The call has read everything below the horizon: the hub feeds it from here on."""
        self.lagging, self.place = False, (self.owner, self.horizon)

    def all_ended(self) -> dict[UUID, int]:
        """The ended jobs it knows, and the newest event of each."""
        return {job: self.sequences[job] for job in self._ended}

    def advance(self, span: Span, *, sent_before: bool) -> None:
        """Moves on to span.xmin; everything below is put in."""
        self.horizon = span.xmin
        self.place = (self.owner, span.xmin)
        self.point.observe(span, sent_before=sent_before)

    def forget(self, job: UUID) -> None:
        """The job has ended, and all its events are below the horizon."""
        del self.sequences[job]
        self._ended.discard(job)

    def end(self, error: FluoroError, *, keep: bool) -> None:
        """Ends the watcher with an error.

        keep: after what it holds; otherwise at once, and its memory is free.
        """
        # First of all, so that nothing more is put into it.
        self.place = None
        super().end(error, keep=keep)
