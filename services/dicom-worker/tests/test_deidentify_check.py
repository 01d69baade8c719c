"""Seeded files with identifiers planted everywhere: none is left, and the table is followed.

`make deidentify-check` runs it on 500 files and prints what it found.
"""

import io
import os
from collections import Counter
from pathlib import Path

import pytest
from dicom_worker.deidentify.instance import deidentify
from dicom_worker.deidentify.profile import Options, table
from dicom_worker.deidentify.pseudonyms import Key
from dicom_worker.deidentify.testing import left, planted, unfollowed
from pydicom import dcmread

FILES = int(os.environ.get("FLUORO_CHECK_FILES", "40"))
SEED = int(os.environ.get("FLUORO_CHECK_SEED", "7"))
ALL_ROWS = 60
"""Files from which on every row of the table has its turn."""
COMMANDS = {"AffectedSOPInstanceUID", "RequestedSOPInstanceUID"}
"""Rows for messages: these attributes are in no file."""
OPTIONS = Options(frozenset(), replace_documents=True)
WITH_PIXELS = Options(frozenset(("clean_pixel_data",)), replace_documents=True)
LEGIBLE = 0.05
"""Share of the strokes that may be left: corners of letters."""
KEY = Key(b"a secret of at least thirty-two bytes")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_planted_identifier_is_left_and_every_row_of_the_table_is_followed(
    tmp_path: Path,
) -> None:
    residual: Counter[str] = Counter()
    rows: set[str] = set()
    wrong: Counter[str] = Counter()
    searched = burnt = legible = 0
    for number in range(FILES):
        file = planted(SEED + number, in_pixels=FILES >= ALL_ROWS or number % 10 == 0)
        source, target = tmp_path / "source", tmp_path / "target"
        source.write_bytes(file.data)
        options = OPTIONS if file.burnt is None else WITH_PIXELS
        cleaned = deidentify(source, target, KEY, options, lambda: None)
        searched += cleaned.searched
        data = target.read_bytes()
        residual.update(left(file, data))
        found, broken = unfollowed(file, data)
        rows |= found
        wrong.update(broken)
        if file.burnt is not None:
            after, before = (dcmread(io.BytesIO(each)).pixel_array for each in (data, file.data))
            burnt += 1
            legible += bool((after == before)[file.burnt].mean() > LEGIBLE)
    print(  # noqa: T201 - what `make deidentify-check` is for
        f"\nfiles {FILES}, identifiers searched for {searched}, left {sum(residual.values())}\n"
        f"files with a text in pixels {burnt}, still legible in {legible}\n"
        f"rows of table E.1-1 planted {len(rows)} of {len(table()) - len(COMMANDS)}, "
        f"not followed {len(wrong)}"
    )
    assert (residual, wrong, legible) == ({}, {}, 0)
    if FILES >= ALL_ROWS:
        assert {row.name for row in table().values()} - rows == COMMANDS
