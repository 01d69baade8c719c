"""`@handles(InspectDicom)`: ties a plain function to the operation whose message it takes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Generic, TypeVar

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

        FluoroError INVALID_ARGUMENT if the request breaks a rule of the protos: an older gateway
        may have accepted what this release refuses.
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


def handlers_in(package: str, path: Iterable[str]) -> tuple[Handler[Any, Any], ...]:
    """Every handler in the modules of a package, by task name. path: the package's `__path__`.

    LookupError if two run the same operation.
    """
    found: dict[str, Handler[Any, Any]] = {}
    for module in iter_modules(path):
        for value in vars(import_module(f"{package}.{module.name}")).values():
            if not isinstance(value, Handler):
                continue
            # A module may import the handler of another one. The same twice is no clash.
            if found.setdefault(value.operation.task_name, value) is not value:
                raise LookupError(f"two functions run {value.operation.task_name}")
    return tuple(found[name] for name in sorted(found))
