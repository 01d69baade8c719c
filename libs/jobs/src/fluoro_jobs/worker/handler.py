"""`@handles(InspectDicom)`: ties a plain function to the operation whose message it takes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import Message

from fluoro_jobs import rules
from fluoro_jobs.operations import BY_REQUEST, Operation
from fluoro_jobs.worker.context import StepContext

Request = TypeVar("Request", bound=Message)
Result = TypeVar("Result", bound=Message)


@dataclass(frozen=True, slots=True)
class Handler(Generic[Request, Result]):
    """A function and the operation it runs. Calling it calls the function."""

    operation: Operation
    function: Callable[[Request, StepContext], Result]

    def __call__(self, request: Request, context: StepContext) -> Result:
        """Runs the function in the caller's process; what tests do.

        FluoroError INVALID_ARGUMENT if the request breaks a rule of the protos: an older gateway may
        have accepted what this release refuses.
        """
        rules.check(request)
        return self.function(request, context)


def handles(
    request: type[Request],
) -> Callable[[Callable[[Request, StepContext], Result]], Handler[Request, Result]]:
    """Declares that the decorated function runs the operation whose message is `request`.

    Raises LookupError at import when `fluoro_jobs.operations.OPERATIONS` has no line for the
    message.
    """
    if request not in BY_REQUEST:
        raise LookupError(
            f"{request.DESCRIPTOR.full_name} has no line in fluoro_jobs.operations.OPERATIONS"
        )
    operation = BY_REQUEST[request]

    def tie(function: Callable[[Request, StepContext], Result]) -> Handler[Request, Result]:
        return Handler(operation, function)

    return tie
