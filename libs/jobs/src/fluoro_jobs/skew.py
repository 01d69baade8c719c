"""Reads what another release may have written: during a rolling upgrade two run side by side.

What this release cannot read, a later one can. The attempt is handed back uncounted.
"""

from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.operations import BY_FIELD, Operation


def read_request(operation: Operation, data: bytes) -> Message:
    """The operation message of a step.

    FluoroError OPERATION_UNKNOWN if it has a field that this release does not know: what it asks
    for would be left out in silence.
    """
    try:
        request = operation.request.FromString(data)
    except DecodeError as error:
        raise _unknown(f"the {operation.field} of this step") from error
    if _has_unknown_fields(request):
        raise _unknown(f"a field in the {operation.field} of this step")
    return request


def read_result(field: str, data: bytes) -> Message:
    """The result of an earlier step. field: of its operation, in the oneof of `fluoro.v1.Step`.

    FluoroError OPERATION_UNKNOWN if this release does not know the operation, or cannot read the
    result. Fields that it does not know do no harm.
    """
    operation = BY_FIELD.get(field)
    if operation is None:
        raise _unknown(f"the operation {field} of an earlier step")
    try:
        return operation.result.FromString(data)
    except DecodeError as error:
        raise _unknown(f"the result of {field} of an earlier step") from error


def _has_unknown_fields(message: Message) -> bool:
    if len(UnknownFieldSet(message)):
        return True
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        values = [value] if isinstance(value, Message) else value
        if any(isinstance(one, Message) and _has_unknown_fields(one) for one in values):
            return True
    return False


def _unknown(what: str) -> FluoroError:
    text = f"The worker is of an earlier release and does not know {what}. Update the workers."
    return FluoroError(Reason.OPERATION_UNKNOWN, text)
