"""Public files come out right, or are refused with a reason; `make dicom-report` has them all."""

import os
import shutil
from pathlib import Path

import numpy as np
from dicom_worker import public_files
from dicom_worker.public_files import WHEEL, compare, faults, files, judge
from dicom_worker.reading import open_dicom

SMALL_BYTES = 100_000


def test_each_small_public_file_is_right_by_an_oracle_or_refused_with_a_reason() -> None:
    small = [path for path in files() if path.parent.name != "charset_files"]
    lines = [judge(path) for path in small if path.stat().st_size < SMALL_BYTES]
    assert faults(lines) == []
    assert len(lines) > 90
    if "CI" in os.environ or shutil.which("dcmdjpeg"):
        assert [line for line in lines if line.verdict == "right" and not line.oracle] == []


def test_a_wrong_pixel_would_be_seen(tmp_path: Path) -> None:
    path = WHEEL / "MR_small_RLE.dcm"
    file, right = open_dicom(path, tmp_path), public_files.pixels(WHEEL / "MR_small.dcm")
    wrong = right.copy()
    wrong[63, 63] += 1
    verdicts = [compare(path, file, each[np.newaxis], tmp_path).verdict for each in (right, wrong)]
    assert verdicts == ["right", "WRONG"]
