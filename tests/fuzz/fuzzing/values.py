"""Hostile values for every type of field there is, from a seeded random number generator."""

import struct
from random import Random
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor

MARK: Final = "Mustermann^Erika"
"""Stands for a patient's name: no error and no log may have it. No rule takes it for a name."""
MARKED_BYTES: Final = MARK.encode()

INT32: Final = (0, 1, -1, 50, 1001, 2**31 - 1, -(2**31))
INT64: Final = (*INT32, 2**53 + 1, 315_576_000_001, -62_135_596_801, 2**63 - 1, -(2**63))
NANOS: Final = (0, 1, -1, 999_999_999, 10**9, 2**31 - 1, -(2**31))
DOUBLES: Final = (
    *(0.0, -0.0, 1.0, -1.0, float("nan"), float("inf"), float("-inf")),
    *(5e-324, 1.8e308, -1.7e308, 2.0**63),
)
TEXTS: Final = (
    "",
    MARK,
    f"{MARK}\0",
    f"\N{RIGHT-TO-LEFT OVERRIDE}{MARK}\N{POP DIRECTIONAL FORMATTING}",
    f"{MARK}\r\n\x1b[2J\x07",
    f"../../etc/{MARK}",
    f"'; DROP TABLE jobs; -- {MARK}",
    f"%s%n{{}}${{{MARK}}}",
    f"\ufeff\U0010ffff\u200b{MARK}e\N{COMBINING ACUTE ACCENT}",
    MARK * 40,
    MARK * 4_000,
    "\N{COMBINING ACUTE ACCENT}" * 500,
    "jobs/",
    "jobs/00000000-0000-0000-0000-000000000000",
    "blobs/00000000-0000-0000-0000-000000000000",
    f"jobs/{MARK}",
    "blobs/urn:uuid:00000000-0000-0000-0000-000000000000",
    "=" * 32,
    "A" * 32,
    "a-step",
    "x" * 64,
)
BYTES: Final = (b"", b"\0", MARKED_BYTES, b"\xff" * 32, bytes(range(256)), MARKED_BYTES * 8_000)

_INTEGERS: Final = {
    FieldDescriptor.TYPE_INT32: INT32,
    FieldDescriptor.TYPE_ENUM: (*INT32, 2, 3, 4, 5, 6, 7),
    FieldDescriptor.TYPE_INT64: INT64,
    FieldDescriptor.TYPE_UINT32: (0, 1, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 1, 2**64 - 1),
    FieldDescriptor.TYPE_DOUBLE: DOUBLES,
    FieldDescriptor.TYPE_FLOAT: DOUBLES[:8],
    FieldDescriptor.TYPE_BOOL: (True, False),
    FieldDescriptor.TYPE_BYTES: BYTES,
}


def value(field: FieldDescriptor, random: Random, names: list[str]) -> Any:
    """A value for a field that is no message. names: of jobs and blobs that there are."""
    if field.type == FieldDescriptor.TYPE_STRING:
        return random.choice(names) if names and random.random() < 0.3 else random.choice(TEXTS)
    if field.name == "nanos":
        return random.choice(NANOS)
    return random.choice(_INTEGERS[field.type])


def unknown_fields(random: Random) -> bytes:
    """Serialized fields that no message has, or has with another type."""
    number = random.choice((1, 2, 19, 1_000, 536_870_911))
    kinds = (
        _tag(number, 0) + b"\xff" * 9 + b"\x01",
        _tag(number, 1) + struct.pack("<d", float("nan")),
        _tag(number, 2) + bytes([len(MARKED_BYTES)]) + MARKED_BYTES,
        _tag(number, 5) + b"\xff\xff\xff\xff",
        # Groups in groups, as deep as parsers go and deeper.
        _tag(number, 3) * (depth := random.choice((1, 50, 99, 101, 5_000)))
        + _tag(number, 4) * depth,
    )
    return b"".join(random.choices(kinds, k=random.randint(1, 4)))


def nested(random: Random) -> bytes:
    """Messages in messages in field 1, 2 or 4, many levels deep."""
    data = MARKED_BYTES
    number = random.choice((1, 2, 4))
    for _ in range(random.choice((10, 99, 101, 1_000))):
        data = _tag(number, 2) + _varint(len(data)) + data
    return data


def _tag(number: int, kind: int) -> bytes:
    return _varint(number << 3 | kind)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])
