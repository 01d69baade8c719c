"""Seeded files with identifiers planted everywhere: none is left, and the table is followed.

`make deidentify-check` runs it on 500 files and prints what it found.
"""

import os
from collections import Counter
from pathlib import Path

import pytest
from dicom_worker.deidentify.instance import deidentify
from dicom_worker.deidentify.profile import Options, table
from dicom_worker.deidentify.pseudonyms import Key
from dicom_worker.deidentify.testing import left, planted, unfollowed

FILES = int(os.environ.get("FLUORO_CHECK_FILES", "40"))
SEED = int(os.environ.get("FLUORO_CHECK_SEED", "7"))
ALL_ROWS = 60
"""Files from which on every row of the table has its turn."""
COMMANDS = {"AffectedSOPInstanceUID", "RequestedSOPInstanceUID"}
"""Rows for messages: these attributes are in no file."""
OPTIONS = Options(frozenset(), replace_documents=True)
KEY = Key(b"a secret of at least thirty-two bytes")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_planted_identifier_is_left_and_every_row_of_the_table_is_followed(
    tmp_path: Path,
) -> None:
    residual: Counter[str] = Counter()
    rows: set[str] = set()
    wrong: Counter[str] = Counter()
    searched = 0
    for number in range(FILES):
        file = planted(SEED + number)
        source, target = tmp_path / "source", tmp_path / "target"
        source.write_bytes(file.data)
        cleaned = deidentify(source, target, KEY, OPTIONS, lambda: None)
        searched += cleaned.searched
        data = target.read_bytes()
        residual.update(left(file, data))
        found, broken = unfollowed(file, data)
        rows |= found
        wrong.update(broken)
    print(  # noqa: T201 - what `make deidentify-check` is for
        f"\nfiles {FILES}, identifiers searched for {searched}, left {sum(residual.values())}\n"
        f"rows of table E.1-1 planted {len(rows)} of {len(table()) - len(COMMANDS)}, "
        f"not followed {len(wrong)}"
    )
    assert (residual, wrong) == ({}, {})
    if FILES >= ALL_ROWS:
        assert {row.name for row in table().values()} - rows == COMMANDS
