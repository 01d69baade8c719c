"""Checks messages against the rules that stand beside their fields in `protos/`. Pure.

The rules are protovalidate's (docs/adr/0019), so a client in any language can check them too. What
they cannot say (a name must be that of another step) is in `ledger/submission.py`.
"""

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, Final

from buf.validate import validate_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from protovalidate import EvaluationError, Validator

from fluoro_jobs.errors import FieldViolation, FluoroError, Reason

# Made once: it compiles the rules of each message when it first meets it.
_validator: Final = Validator()


def check(message: Message) -> None:
    """FluoroError INVALID_ARGUMENT, about the first bad field, if the message breaks a rule."""
    for violation in (*too_many(message), *broken(message)):
        raise FluoroError(
            Reason.INVALID_ARGUMENT,
            ": ".join(filter(None, (violation.field, violation.description))),
            violations=[violation],
        )


def broken(message: Message) -> Iterator[FieldViolation]:
    """The fields that break a rule. Looks at every element, so ask `too_many` first."""
    try:
        found = _validator.collect_violations(message)
    except EvaluationError:
        yield FieldViolation("", "Holds a value that cannot be compared, a malformed duration say.")
        return
    for violation in found:
        told = violation.proto
        yield FieldViolation(_path(told.field), f"{told.message[:1].upper()}{told.message[1:]}.")


def too_many(message: Message, path: str = "") -> Iterator[FieldViolation]:
    """The repeated fields that hold more than they may, at any depth.

    Costs nothing that grows with what is too much: elements of a field that is over its limit are
    not looked at.
    """
    limits, nested = _counted(message.DESCRIPTOR)
    over = set()
    for name, limit in limits:
        if (count := len(getattr(message, name))) > limit:
            over.add(name)
            yield FieldViolation(f"{path}{name}", f"At most {limit} {name}; there are {count}.")
    for name, repeated in nested:
        if name in over:
            continue
        if repeated:
            for i, element in enumerate(getattr(message, name)):
                yield from too_many(element, f"{path}{name}[{i}].")
        elif message.HasField(name):
            yield from too_many(getattr(message, name), f"{path}{name}.")


@cache
def _counted(message: Descriptor) -> tuple[list[tuple[str, int]], list[tuple[str, bool]]]:
    """Fields with a limit of number, and fields whose messages have such fields.

    With each of the latter, whether it repeats.
    """
    limits = [(field.name, limit) for field in message.fields if (limit := _limit(field))]
    nested = [
        (field.name, field.is_repeated)
        for field in message.fields
        if field.message_type
        and not field.message_type.GetOptions().map_entry
        and any(_counted(field.message_type))
    ]
    return limits, nested


def _limit(field: FieldDescriptor) -> int:
    """How many elements a field may have; 0 if there is no rule."""
    rules = field.GetOptions().Extensions[validate_pb2.field]
    return rules.repeated.max_items or rules.map.max_pairs


def _path(field: Any) -> str:
    """`job.steps[2].name`; empty for a rule of the message itself.

    Keys of a map are left out: they are the caller's words.
    """
    elements: Iterable[Any] = field.elements if field else ()
    return ".".join(
        f"{element.field_name}[{element.subscript.value}]"
        if element.subscript and element.subscript.field == "index"
        else element.field_name
        for element in elements
    )
