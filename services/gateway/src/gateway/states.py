"""States of jobs and items, as the API numbers them."""

from typing import Final

from fluoro.v1 import event_pb2, job_pb2
from fluoro_jobs.states import JobState, is_terminal

STATES: Final = frozenset(job_pb2.Job.State.values()) - {job_pb2.Job.STATE_UNSPECIFIED}
"""All states of a job."""

ITEM_STATES: Final = frozenset(job_pb2.Item.State.values()) - {job_pb2.Item.STATE_UNSPECIFIED}
"""All states of an item."""

TERMINAL: Final = frozenset(
    job_pb2.Job.State.Value(f"STATE_{state}") for state in JobState if is_terminal(state)
)
"""Those after which there are no more events, unless the job is retried."""


def is_end(event: event_pb2.Event) -> bool:
    """Whether the event made its job terminal."""
    return event.job_changed.state in TERMINAL
