"""dciodvfy of dicom3tools finds no error in a clean file that its source has not."""

import os
import re
import shutil
import subprocess
from collections import Counter
from functools import lru_cache
from pathlib import Path

import pytest
from dicom_worker.deidentify.instance import deidentify
from dicom_worker.deidentify.profile import Options
from dicom_worker.deidentify.pseudonyms import Key
from dicom_worker.testing import WHEEL
from fluoro_jobs.errors import FluoroError

KEY = Key(b"a secret of at least thirty-two bytes")
OPTIONS = {
    "none": Options(frozenset()),
    "many": Options(
        frozenset(
            (
                *("modified_dates", "clean_descriptors", "retain_device", "clean_graphics"),
                *("retain_patient_characteristics", "clean_structured_content"),
            )
        )
    ),
}
VALUE = re.compile(r"<[^>]*>|= ?[^ ]*$|(?<=UID )\S+$")
"""What dciodvfy quotes of a value."""


@lru_cache
def errors(path: Path) -> Counter[str]:
    told = subprocess.run(
        ["dciodvfy", path], capture_output=True, check=False, timeout=20
    ).stderr.decode("latin-1")
    return Counter(VALUE.sub("", line) for line in told.splitlines() if line.startswith("Error"))


@pytest.mark.parametrize("options", OPTIONS)
def test_a_clean_file_is_no_less_valid_than_its_source(tmp_path: Path, options: str) -> None:
    if not shutil.which("dciodvfy"):
        assert "CI" not in os.environ, "CI must have dciodvfy"
        pytest.skip("dciodvfy is not installed")
    worse = {}
    checked = 0
    for source in sorted((WHEEL / "test_files").glob("*.dcm")):
        target = tmp_path / source.name
        try:
            deidentify(source, target, KEY, OPTIONS[options], lambda: None)
        except FluoroError:
            continue  # test_outcomes.py has the reasons
        checked += 1
        if new := errors(target) - errors(source):
            worse[source.name] = dict(new)
    assert checked > 50
    assert worse == {}
