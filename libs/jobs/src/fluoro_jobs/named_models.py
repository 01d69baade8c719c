"""Which models a step names: for those who look whether a worker has them.

A message names one in its fields `model` and `version`, or several in fields of type `ModelChoice`.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from fluoro.v1.classify_pb2 import ModelChoice
from google.protobuf.message import DecodeError, Message

from fluoro_jobs.operations import BY_FIELD, OPERATIONS


class Named(NamedTuple):
    """A model by its id. version: empty for the newest."""

    name: str
    version: str

    def __str__(self) -> str:
        """Its resource name."""
        return f"models/{self.name}" + (f"/versions/{self.version}" if self.version else "")


def _names_models(request: type[Message]) -> bool:
    fields = request.DESCRIPTOR.fields
    own = {"model", "version"} <= {field.name for field in fields}
    # Found by the shape of the message, so that a new operation needs no line anywhere.
    return own or any(field.message_type is ModelChoice.DESCRIPTOR for field in fields)


FIELDS: Final = tuple(one.field for one in OPERATIONS if _names_models(one.request))
"""Fields of the oneof `fluoro.v1.Step.operation` whose messages name models."""
_REQUESTS: Final = frozenset(BY_FIELD[field].request for field in FIELDS)


def models_of(request: Message) -> Sequence[Named]:
    """The models that a step needs."""
    if type(request) not in _REQUESTS:
        return ()
    return [Named(one.model, one.version) for one in _choices(request) if one.model]


def models_of_step(field: str, data: bytes) -> Sequence[Named]:
    """The same, of a step as the ledger has it. None of what this release cannot read."""
    operation = BY_FIELD.get(field)
    if operation is None or operation.request not in _REQUESTS:
        return ()
    try:
        return models_of(operation.request.FromString(data))
    except DecodeError:
        return ()


def _choices(request: Message) -> Iterator[Any]:
    """Messages with `model` and `version`."""
    if "model" in request.DESCRIPTOR.fields_by_name:
        yield request
    for field, value in request.ListFields():
        if field.message_type is ModelChoice.DESCRIPTOR:
            yield from [value] if isinstance(value, Message) else value
