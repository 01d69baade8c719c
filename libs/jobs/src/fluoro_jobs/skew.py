"""Reads what another release may have written: during a rolling upgrade two run side by side.

What this release cannot read, a later one can. The attempt is handed back uncounted.
"""

from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.operations import BY_FIELD, Operation


def read_request(operation: Operation, data: bytes) -> Message:
    """The operation message of a step.

    FluoroError OPERATION_UNKNOWN if it has a field, or a value of an enum, that this release does
    not know: what it asks for would be left out in silence, or refused for good.
    """
    try:
        request = operation.request.FromString(data)
    except DecodeError as error:
        raise _unknown(f"the {operation.field} of this step") from error
    if _asks_for_unknown(request):
        raise _unknown(f"a field or value in the {operation.field} of this step")
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


def _asks_for_unknown(message: Message) -> bool:
    if len(UnknownFieldSet(message)):
        return True
    for descriptor, value in message.ListFields():
        values = value if descriptor.is_repeated else [value]
        # Proto3 keeps the number of an enum value that it does not know.
        if enum := descriptor.enum_type:
            if any(number not in enum.values_by_number for number in values):
                return True
        elif descriptor.message_type and any(
            isinstance(one, Message) and _asks_for_unknown(one) for one in values
        ):
            return True
    return False


def _unknown(what: str) -> FluoroError:
    text = f"The worker is of an earlier release and does not know {what}. Update the workers."
    return FluoroError(Reason.OPERATION_UNKNOWN, text)
