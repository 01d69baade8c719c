import base64
import struct
from uuid import UUID

import pytest
from fluoro_jobs.errors import FluoroError, Reason
from gateway import cursor

JOB = UUID("019a0000-0000-7000-8000-000000000001")
OTHER = UUID("019a0000-0000-7000-8000-000000000002")


@pytest.mark.parametrize("sequence", [0, 1, 77, 2**62])
def test_a_cursor_stands_for_the_sequence_it_was_made_of(sequence: int) -> None:
    assert cursor.decode(cursor.encode(JOB, sequence), JOB, last_sequence=sequence) == sequence


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (cursor.encode(OTHER, 1), "another job"),
        (cursor.encode(JOB, 8), "ahead"),
        ("nonsense", "gave out"),
        ("ü" * 32, "gave out"),
        (cursor.encode(JOB, 1)[:-4], "gave out"),
        (cursor.encode(JOB, 1) + "AAAA", "gave out"),
        (base64.b64encode(struct.pack(">16sq", JOB.bytes, -1)).decode(), "ahead"),
    ],
)
def test_a_cursor_that_does_not_fit_the_job_is_refused(text: str, why: str) -> None:
    with pytest.raises(FluoroError, match=why) as caught:
        cursor.decode(text, JOB, last_sequence=7)
    assert caught.value.reason == Reason.CURSOR_INVALID
