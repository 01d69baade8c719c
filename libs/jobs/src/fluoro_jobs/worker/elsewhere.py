"""A task whose model this worker lacks, and another one has."""

from collections.abc import Callable, Iterable

from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.named_models import Named

LACKING = frozenset({Reason.MODEL_UNKNOWN, Reason.MODEL_UNAVAILABLE})


def handed_on(
    error: FluoroError, named: Iterable[Named], served_elsewhere: Callable[[str, str], bool]
) -> FluoroError:
    """What to end an attempt with that failed for want of a model.

    A queue is one list for all its workers, so a task may come to one that has not got its model
    (yet): during a rollout, say. It goes back uncounted while another worker serves the model.
    """
    if error.reason not in LACKING:
        return error
    wanted = list(named)
    # If nobody serves it either, the step's own error says what is wrong.
    if not wanted or not all(served_elsewhere(*one) for one in wanted):
        return error
    models = ", ".join(map(str, wanted))
    return FluoroError(
        Reason.MODEL_UNAVAILABLE,
        f"This worker does not serve {models}, and another one does. The task waits for that one.",
        retryable=True,
    )
