"""Messages as bytes, without holding the event loop up.

Parsing and serializing are calls into C that keep Python's interpreter lock, in whichever thread
they run. What they take depends on the number of fields more than on the bytes: 4 MiB of empty
fields parse in 0.4 s. So fields are counted before a large message is parsed, and a large answer is
serialized in pieces.
"""

from collections.abc import Iterator
from functools import cache
from typing import Final

from fluoro_jobs.errors import FluoroError, Reason
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

MAX_FIELDS: Final = 32_768
"""Most fields of a request, in all.

The largest job there may be has about 23,000; as many parse within 5 ms.
"""
SMALL_BYTES: Final = 64 * 2**10
"""Bytes up to which a message cannot hold more than MAX_FIELDS, and is parsed where it arrives."""
SMALL_ELEMENTS: Final = 2_000
"""An answer up to here, counting the elements of its repeated fields, is serialized in one go."""
SLICE: Final = 500
"""Elements of a repeated field that are serialized at a time."""

_LENGTH_DELIMITED: Final = 2
_LOW_BITS: Final = 0x7F
"""What each byte of a varint brings; the highest bit says that more follow."""
_ONE_BYTE: Final = [bytes((number,)) for number in range(_LOW_BITS + 1)]
_LONGEST_VARINT_BITS: Final = 70
_SKIPPED_BYTES: Final = {1: 8, 5: 4}
"""Bytes of a value by wire type (protobuf's encoding, "Message structure"); none for groups."""


def has_too_many_fields(data: bytes, message: Descriptor, limit: int = MAX_FIELDS) -> bool:
    """Whether a serialized message holds more fields than that, with those of its parts.

    False for bytes that the parser will refuse.
    """
    try:
        return _fields_left(data, 0, len(data), message, limit) < 0
    except IndexError:  # it ends in the middle of a field, or has a number that is too long
        return False


def lone_bytes(data: bytes, field: FieldDescriptor) -> memoryview | None:
    """The value of a field of bytes, if the message is nothing else, without a copy.

    None if there is more to it, or if it is not quite as serializers write it: for the parser.
    """
    try:
        tag, at = _varint(data, 0)
        length, at = _varint(data, at)
    except IndexError:
        return None
    if tag != field.number << 3 | _LENGTH_DELIMITED or at + length != len(data):
        return None
    return memoryview(data)[at:]


def _fields_left(data: bytes, at: int, end: int, message: Descriptor, left: int) -> int:
    parts, packed = _nesting(message)
    # Stops at the limit: a message that is too large must not cost more to refuse.
    while at < end and left >= 0:
        left -= 1
        tag, at = _varint(data, at)
        kind, number = tag & 7, tag >> 3
        if kind == _LENGTH_DELIMITED:
            length, at = _varint(data, at)
            # A part may claim to be longer than what holds it.
            if number in parts:
                left = _fields_left(data, at, min(end, at + length), parts[number], left)
            elif number in packed:
                left -= length
            at += length
        elif kind == 0:
            _, at = _varint(data, at)
        else:
            # Groups have no length; the parser refuses them.
            at += _SKIPPED_BYTES.get(kind, 0)
    return left


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at this place, and the place after it.

    IndexError if it is cut off or longer than protobuf's ten bytes.
    """
    byte = data[at]
    value, shift = byte & _LOW_BITS, 7
    while byte & 0x80:
        # Or a megabyte of 0xff would be one number, made by copying it for each byte.
        if shift == _LONGEST_VARINT_BITS:
            raise IndexError
        at += 1
        byte = data[at]
        value |= (byte & _LOW_BITS) << shift
        shift += 7
    return value, at + 1


@cache
def _nesting(message: Descriptor) -> tuple[dict[int, Descriptor], frozenset[int]]:
    """Its parts that are messages, by number, and the numbers of fields that may be packed.

    Each byte of a packed field may be an element.
    """
    parts = {
        field.number: field.message_type
        for field in message.fields
        if field.message_type is not None
    }
    packable = (
        field.number
        for field in message.fields
        if field.is_repeated and field.type not in _NEVER_PACKED
    )
    return parts, frozenset(packable)


_NEVER_PACKED: Final = {
    FieldDescriptor.TYPE_MESSAGE,
    FieldDescriptor.TYPE_STRING,
    FieldDescriptor.TYPE_BYTES,
}


def check_filtered(size_bytes: int) -> None:
    """FluoroError MESSAGE_TOO_LARGE for a request in whose filter nobody looked for an owner."""
    if size_bytes > SMALL_BYTES:
        raise FluoroError(
            Reason.MESSAGE_TOO_LARGE,
            f"A request with a filter of jobs has {SMALL_BYTES} bytes at most.",
        )


def is_large(message: Message) -> bool:
    """Whether serializing it in one go would hold others up."""
    return _elements(message) > SMALL_ELEMENTS


def _elements(message: Message) -> int:
    """Elements of its repeated fields, and of those of its parts that have some."""
    count = 0
    for field, value in message.ListFields():
        if field.is_repeated:
            count += len(value)
            if (
                count <= SMALL_ELEMENTS
                and field.message_type is not None
                and _nests(field.message_type)
            ):
                count += sum(map(_elements, value))
        elif field.message_type is not None and _nests(field.message_type):
            count += _elements(value)
    return count


@cache
def _nests(message: Descriptor) -> bool:
    """Whether it has repeated fields of messages, itself or in a part."""
    return not message.GetOptions().map_entry and any(
        field.message_type is not None and (field.is_repeated or _nests(field.message_type))
        for field in message.fields
    )


def serialized_in_pieces(message: Message) -> bytes:
    """Its bytes, made by many short calls rather than a long one.

    Not in the canonical order of fields, which no parser minds.
    """
    return b"".join(_pieces(message))


def _pieces(message: Message) -> Iterator[bytes]:
    # What is left is small: scalars, maps, and parts with nothing repeated in them.
    rest = type(message)()
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            _copy(field, value, rest)
        elif not _nests(field.message_type):
            for start in range(0, len(value) if field.is_repeated else 1, SLICE):
                part = type(message)()
                _copy(field, value[start : start + SLICE] if field.is_repeated else value, part)
                yield part.SerializeToString()
        else:
            for element in value if field.is_repeated else (value,):
                inner = serialized_in_pieces(element)
                yield length_delimited(field.number, inner)
    yield rest.SerializeToString()


def length_delimited(number: int, data: bytes) -> bytes:
    """A field of a message: a string, bytes, or another message."""
    return b"".join((_encoded(number << 3 | _LENGTH_DELIMITED), _encoded(len(data)), data))


def _copy(field: FieldDescriptor, value: object, to: Message) -> None:
    """Makes `to` the same in this field."""
    to.MergeFrom(type(to)(**{field.name: value}))


def _encoded(number: int) -> bytes:
    """A varint."""
    if number <= _LOW_BITS:
        return _ONE_BYTE[number]
    out = bytearray()
    while number > _LOW_BITS:
        out.append(number & _LOW_BITS | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
