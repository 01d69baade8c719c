"""Durations and times as they come from the wire.

They hold any int64 and int32, whatever google.protobuf promises about them.
"""

import math
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

MAX_DURATION_SECONDS: Final = 315_576_000_000
FIRST_SECOND: Final = -62_135_596_800
LAST_SECOND: Final = 253_402_300_799
"""Limits of google.protobuf.Duration and Timestamp: 10,000 years, and the years 1 to 9999."""

NANOS: Final = 10**9
"""Nanoseconds of a second; the nanos of both types stay below."""


def seconds(duration: Duration) -> float:
    """Its length; NaN, which is in no range, if google.protobuf.Duration does not allow it."""
    whole, nanos = duration.seconds, duration.nanos
    if abs(whole) > MAX_DURATION_SECONDS or abs(nanos) >= NANOS or whole * nanos < 0:
        return math.nan
    return whole + nanos / NANOS


def is_time(time: Timestamp) -> bool:
    """Whether it is a time in the years 1 to 9999."""
    return FIRST_SECOND <= time.seconds <= LAST_SECOND and 0 <= time.nanos < NANOS
