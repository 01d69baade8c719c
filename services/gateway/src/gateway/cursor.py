"""Cursors of a watch: opaque to callers.

Of one job: the job, and the sequence of the last event seen. Of an owner's jobs: the filter, and a
transaction id; the events of all transactions below it were seen, and no more of them will come
(ADR 0011).
"""

import base64
import binascii
import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Final
from uuid import UUID

from fluoro_jobs.errors import FluoroError, Reason

_LAYOUT: Final = struct.Struct(">16sQ")
"""UUID of the job, sequence. 24 bytes are 32 characters of base64 without padding."""

_OWNER_LAYOUT: Final = struct.Struct(">16sQ")
"""Digest of owner and labels, transaction id."""


LONGEST: Final = 64
"""Characters of a cursor, with room for what later layouts may need."""
MAX_BIGINT: Final = 2**63 - 1
"""The largest number the ledger takes; no transaction id gets there."""


def encode(job: UUID, sequence: int) -> str:
    """The cursor after event `sequence` of a job."""
    return base64.urlsafe_b64encode(_LAYOUT.pack(job.bytes, sequence)).decode("ascii")


def decode(cursor: str, job: UUID, last_sequence: int) -> int:
    """The sequence a cursor of this job stands for.

    FluoroError CURSOR_INVALID if it is not one, of another job, or ahead of the job.
    """
    owner, sequence = _unpack(_LAYOUT, cursor)
    if owner != job.bytes:
        raise _invalid("belongs to another job")
    # Such a cursor was never issued. Waiting for its event might never end.
    if sequence > last_sequence:
        raise _invalid("is ahead of the job's newest event")
    return int(sequence)


def expired(job: UUID, oldest: int) -> FluoroError:
    """The refusal of a cursor from before the oldest event of its job that is kept."""
    text = (
        "Events after the cursor are no longer kept. Watch without a cursor, or from oldest_cursor."
    )
    return FluoroError(
        Reason.CURSOR_EXPIRED, text, metadata={"oldest_cursor": encode(job, oldest - 1)}
    )


def encode_horizon(owner: str, labels: Mapping[str, str], horizon: int) -> str:
    """The cursor after all that transactions below `horizon` did to the owner's jobs.

    labels: only jobs that have these.
    """
    return base64.urlsafe_b64encode(_OWNER_LAYOUT.pack(_digest(owner, labels), horizon)).decode(
        "ascii"
    )


def decode_horizon(cursor: str, owner: str, labels: Mapping[str, str]) -> int:
    """The transaction id that a cursor stands for.

    FluoroError CURSOR_INVALID if it is not one, or of another owner or filter.
    """
    digest, horizon = _unpack(_OWNER_LAYOUT, cursor)
    # Filters are part of it: with another one, events that were left out before would be missing.
    if digest != _digest(owner, labels):
        raise _invalid("belongs to another watch")
    # The ledger's numbers are signed.
    if horizon > MAX_BIGINT:
        raise ahead()
    return int(horizon)


def ahead() -> FluoroError:
    """The refusal of a cursor from the ledger's future.

    The ledger may have been restored from a backup since the cursor was given out.
    """
    return _invalid("is ahead of the ledger")


def _digest(owner: str, labels: Mapping[str, str]) -> bytes:
    return hashlib.sha256(json.dumps([owner, sorted(labels.items())]).encode()).digest()[:16]


def _unpack(layout: struct.Struct, cursor: str) -> tuple[bytes, int]:
    # Before it is decoded: it is a caller's text.
    if len(cursor) > LONGEST:
        raise _invalid("is not one that this service gave out")
    try:
        # Without `validate`, characters that are none of base64's are skipped, and two texts are
        # one cursor.
        head, number = layout.unpack(base64.b64decode(cursor, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, struct.error) as error:
        raise _invalid("is not one that this service gave out") from error
    return head, number


def _invalid(why: str) -> FluoroError:
    return FluoroError(
        Reason.CURSOR_INVALID, f"The cursor {why}. Watch without a cursor to start with a snapshot."
    )
