"""The streams of JobService over the state in memory: WatchJob, RunJob, WatchJobs."""

import hashlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Final

from fluoro.v1 import job_service_pb2

from fluoro_client.testing.calls import Context, Service
from fluoro_client.testing.faults import Fault, RefusalError, invalid
from fluoro_client.testing.story import Story
from fluoro_client.testing.views import check_view, shown

BOOKMARK_SECONDS: Final = 15
"""How long a watch is silent before it gives a sign of life."""


class Watches(Service):
    """Watches of one job, of all, and runs."""

    def WatchJob(
        self, request: job_service_pb2.WatchJobRequest, context: Context
    ) -> Iterator[job_service_pb2.WatchJobResponse]:
        """A job's snapshot and events."""
        return self._stream(
            "WatchJob",
            request,
            context,
            lambda owner, fault: self._job_told(request, context, owner, fault),
        )

    def _job_told(
        self, request: job_service_pb2.WatchJobRequest, context: Context, owner: str, fault: Fault
    ) -> Iterator[job_service_pb2.WatchJobResponse]:
        state = self._state
        with state.changed:
            check_view(request.view)
            story = state.story(request.name, owner)
            position = (
                _position(story, request.start_cursor)
                if request.start_cursor
                else len(story.events)
            )
            first = job_service_pb2.WatchJobResponse(
                cursor=_cursor(story, position), snapshot=shown(story.job, request.view)
            )
            told, ended = (
                max(0, len(story.progress) - 1),
                story.ended and position == len(story.events),
            )
        if not request.start_cursor:
            yield first
        position = max(0, position + fault.missing - fault.repeat)
        while not ended:
            with state.changed:
                state.wait(context, partial(story.has_news, position, told), BOOKMARK_SECONDS)
                if not context.is_active():
                    return
                events, progress, ended = (
                    story.events[position:],
                    story.progress[told:],
                    story.ended,
                )
            for event in events:
                position = event.sequence
                yield job_service_pb2.WatchJobResponse(cursor=_cursor(story, position), event=event)
            for latest in progress:
                told += 1
                yield job_service_pb2.WatchJobResponse(
                    cursor=_cursor(story, position), progress=latest
                )
            if not events and not progress and not ended:
                bookmark = job_service_pb2.Bookmark(last_sequence=position)
                yield job_service_pb2.WatchJobResponse(
                    cursor=_cursor(story, position), bookmark=bookmark
                )

    def RunJob(
        self, request: job_service_pb2.RunJobRequest, context: Context
    ) -> Iterator[job_service_pb2.RunJobResponse]:
        """A job's snapshot and events, once it is accepted."""
        return self._stream(
            "RunJob",
            request,
            context,
            lambda owner, fault: self._run_told(request, context, owner, fault),
        )

    def _run_told(
        self, request: job_service_pb2.RunJobRequest, context: Context, owner: str, fault: Fault
    ) -> Iterator[job_service_pb2.RunJobResponse]:
        state = self._state
        with state.changed:
            check_view(request.view)
            if request.submit.validate_only:
                raise invalid("submit.validate_only", "A check runs nothing; use SubmitJob.")
            # The run shall hear of the end as of something that comes later.
            held, state.hold = state.hold, True
            try:
                job = state.checked(request.submit)
                name = state.submit(owner, job, request.submit.request_id).name
            except RefusalError as refusal:
                bad = [(f"submit.{v.field}", v.description) for v in refusal.fault.violations]
                raise RefusalError(refusal.fault.reason, refusal.fault.message, *bad) from None
            finally:
                state.hold = held
        watch = job_service_pb2.WatchJobRequest(name=name, view=request.view)
        for message in self._job_told(watch, context, owner, fault):
            # After the snapshot was made, and before it may be the last that the caller hears.
            with state.changed:
                story = state.story(name)
                if message.HasField("snapshot") and not held and not story.ended:
                    state.finish(story)
            yield job_service_pb2.RunJobResponse.FromString(message.SerializeToString())

    def WatchJobs(
        self, request: job_service_pb2.WatchJobsRequest, context: Context
    ) -> Iterator[job_service_pb2.WatchJobsResponse]:
        """All of an owner's jobs that have the labels."""
        return self._stream(
            "WatchJobs", request, context, lambda owner, _: self._jobs_told(request, context, owner)
        )

    def _jobs_told(
        self, request: job_service_pb2.WatchJobsRequest, context: Context, owner: str
    ) -> Iterator[job_service_pb2.WatchJobsResponse]:
        """Cursors are positions in the order of all events.

        They lag, and a resume repeats two events before, as a gateway may.
        """
        state, wanted = self._state, dict(request.labels)
        watch = hashlib.sha256(repr([owner, sorted(wanted.items())]).encode()).hexdigest()[:16]
        with state.changed:
            start = (
                _number(request.start_cursor, watch, len(state.log))
                if request.start_cursor
                else len(state.log)
            )
            heads = [
                story.head()
                for story in state.stories.values()
                if not story.ended and _wanted(story, owner, wanted)
            ]
        position = start
        if request.start_cursor:
            position = max(0, start - 2)
        else:
            for head in heads:
                yield job_service_pb2.WatchJobsResponse(job=head)
            yield job_service_pb2.WatchJobsResponse(
                cursor=f"{watch}.{start}", bookmark=job_service_pb2.Bookmark()
            )
        while True:
            with state.changed:
                due = state.wait(context, partial(state.has_news, position), BOOKMARK_SECONDS)
                if not context.is_active():
                    return
                events = [
                    (number, event)
                    for number, event in enumerate(state.log[position:], position + 1)
                    if _wanted(state.stories[event.job], owner, wanted)
                ]
                position = len(state.log)
            for number, event in events:
                yield job_service_pb2.WatchJobsResponse(
                    cursor=f"{watch}.{max(start, number - number % 4)}", event=event
                )
            if not due:
                cursor = f"{watch}.{max(start, position - position % 4)}"
                yield job_service_pb2.WatchJobsResponse(
                    cursor=cursor, bookmark=job_service_pb2.Bookmark()
                )


def _wanted(story: Story, owner: str, labels: Mapping[str, str]) -> bool:
    return story.job.owner == owner and labels.items() <= dict(story.job.labels).items()


def _cursor(story: Story, sequence: int) -> str:
    return f"{story.job.name.removeprefix('jobs/')}.{sequence}"


def _position(story: Story, cursor: str) -> int:
    return _number(cursor, story.job.name.removeprefix("jobs/"), len(story.events))


def _number(cursor: str, watch: str, last: int) -> int:
    """The place in a watch that a cursor of it stands for.

    RefusalError CURSOR_INVALID if it is not one, or is ahead of `last`.
    """
    head, _, number = cursor.rpartition(".")
    if head != watch or not number.isdecimal() or int(number) > last:
        raise RefusalError(
            "CURSOR_INVALID",
            "The cursor is not one of this watch. Watch without a cursor to start with a snapshot.",
        )
    return int(number)
