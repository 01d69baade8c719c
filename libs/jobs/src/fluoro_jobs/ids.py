"""Identifiers: UUIDv7 (RFC 9562), so that rows of one time lie together in the ledger's indexes."""

import random
import time
from typing import Final
from uuid import UUID

OWNER: Final = r"[a-z0-9_.@-]{1,63}"
"""What an owner may be called."""

_random = random.Random()  # noqa: S311 - ids tell rows apart and guard nothing; seeded by the system, and far cheaper than asking it each time


def new_id() -> UUID:
    """A fresh UUIDv7: 48 bits of milliseconds since the epoch, 74 random bits."""
    millis = time.time_ns() // 1_000_000
    bits = _random.getrandbits(74)
    return UUID(
        int=(millis & ((1 << 48) - 1)) << 80
        | 0x7 << 76
        | (bits >> 62) << 64
        | 0b10 << 62
        | bits & ((1 << 62) - 1)
    )
