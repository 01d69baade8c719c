"""What becomes of public DICOM files, compared with independent opinions: `make dicom-report`.

Each file of pydicom's wheel, and of the package pydicom-data, is decoded and compared
with the best oracle there is: an uncompressed twin, DCMTK, or the second decoder.
A file is right, or refused with a reason; anything else is a fault of ours.
"""

import shutil
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import pydicom.data
from fluoro_jobs.errors import FluoroError, Reason
from numpy.typing import NDArray
from pydicom import dcmread

from dicom_worker.pixels.decoders import CODECS, LOSSY_TOLERANCE, NATIVE, Codec, uncertified_frames
from dicom_worker.reading import DicomFile, open_dicom

WHEEL: Final = Path(pydicom.data.__file__).parent / "test_files"

TWINS: Final = {
    "693_J2KI": "693_UNCI",
    "693_J2KR": "693_UNCR",
    "JPEG2000": "JPEG2000_UNC",
    "MR2_J2KI": "MR2_UNCI",
    "MR2_J2KR": "MR2_UNCR",
    "MR_small_jp2klossless": "MR_small",
    "RG1_J2KI": "RG1_UNCI",
    "RG1_J2KR": "RG1_UNCR",
    "RG3_J2KI": "RG3_UNCI",
    "RG3_J2KR": "RG3_UNCR",
    "SC_rgb_gdcm_KY": "SC_rgb_gdcm2k_uncompressed",
    "US1_J2KI": "US1_UNCI",
    "US1_J2KR": "US1_UNCR",
    "emri_small_jpeg_2k_lossless": "emri_small",
    "rtdose_expb": "rtdose",
    "rtdose_expb_1frame": "rtdose_1frame",
}
"""File → the same image uncompressed and little endian, by whoever made both.

DCMTK takes a big endian OW value of 32 bits for two words, which the dose files did not mean.
"""

DCMTK: Final = {
    "1.2.840.10008.1.2.4.50": "dcmdjpeg",
    "1.2.840.10008.1.2.4.51": "dcmdjpeg",
    "1.2.840.10008.1.2.4.57": "dcmdjpeg",
    "1.2.840.10008.1.2.4.70": "dcmdjpeg",
    "1.2.840.10008.1.2.4.80": "dcmdjpls",
    "1.2.840.10008.1.2.4.81": "dcmdjpls",
    "1.2.840.10008.1.2.5": "dcmdrle",
}
"""Transfer Syntax → DCMTK's decoder. Its dcmconv reads native data."""


@dataclass(frozen=True, slots=True)
class Line:
    """What became of one file.

    verdict: `right`, `no image`, a reason, `WRONG`, or `UNTYPED` if no reason was given. oracle:
    whom it was compared with, "" if nobody can. difference: the largest, of all stored values.
    """

    file: str
    transfer_syntax: str
    verdict: str
    oracle: str = ""
    difference: float = 0.0


def files() -> list[Path]:
    """Every file of the wheel, and of pydicom-data where it is installed."""
    folders = [WHEEL, WHEEL.parent / "charset_files"]
    if (found := find_spec("data_store")) and found.origin:
        folders.append(Path(found.origin).parent / "data")
    return [path for folder in folders for path in sorted(folder.glob("*.dcm"))]


def judge(path: Path) -> Line:
    """Decodes a file, and compares the result."""
    syntax = ""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        try:
            file = open_dicom(path, scratch)
            syntax = file.transfer_syntax
            ours = np.stack([frame.values for frame in uncertified_frames(file)])
        except FluoroError as error:
            reason = str(error.reason)
            verdict = "no image" if error.reason is Reason.NO_PIXEL_DATA else reason
            return Line(path.stem, syntax, verdict)
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            return Line(path.stem, syntax, f"UNTYPED {type(error).__name__}")
        return compare(path, file, ours, scratch)


def compare(path: Path, file: DicomFile, ours: NDArray[Any], scratch: Path) -> Line:
    """Ours against the best oracle."""
    codec = CODECS[file.transfer_syntax]
    for name, theirs in oracles(path, file, codec, scratch):
        if theirs.size != ours.size:
            return Line(path.stem, file.transfer_syntax, "WRONG", name, float("inf"))
        apart = ours.astype(np.float64) - theirs.reshape(ours.shape)
        difference = float(np.abs(apart).max())
        bits = file.image.bits_stored if file.image else 8
        # Two decoders of a lossy format may round differently, and both are right.
        tolerance = 0 if codec.lossless else LOSSY_TOLERANCE << max(0, bits - 8)
        verdict = "right" if difference <= tolerance else "WRONG"
        return Line(path.stem, file.transfer_syntax, verdict, name, difference)
    return Line(path.stem, file.transfer_syntax, "right")


def oracles(
    path: Path, file: DicomFile, codec: Codec, scratch: Path
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Who else can say what the stored values are, the best first, and what they say."""
    wanted = TWINS.get(path.stem)
    if twin := next((each for each in files() if each.stem == wanted), None):
        yield twin.stem, pixels(twin)
    tool = "dcmconv" if codec is NATIVE else DCMTK.get(file.transfer_syntax)
    if tool and shutil.which(tool):
        target = scratch / "by-dcmtk.dcm"
        done = subprocess.run([tool, "+te", path, target], check=False, capture_output=True)
        if done.returncode == 0:
            yield tool, pixels(target)
    if codec.second:
        plugin = {"python-gdcm": "gdcm", "pydicom": "pydicom"}.get(codec.second.distribution)
        if plugin:
            yield str(codec.second), pixels(path, plugin)


def pixels(path: Path, plugin: str = "") -> NDArray[Any]:
    """Stored values, RGB for YBR, as pydicom has them of native data, or a plugin of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Some of these files have no preamble, on purpose.
        dataset = dcmread(path, force=True)
        if plugin:
            dataset.pixel_array_options(decoding_plugin=plugin)
        array: NDArray[Any] = dataset.pixel_array
    return array


def report(lines: Sequence[Line]) -> Iterator[str]:
    """A row per file, and a count of verdicts."""
    yield f"{'file':42} {'Transfer Syntax':24} {'verdict':28} {'oracle':32} difference"
    for line in lines:
        yield (
            f"{line.file:42} {line.transfer_syntax:24} {line.verdict:28} {line.oracle:32} "
            f"{line.difference:g}"
        )
    counts = Counter(line.verdict for line in lines)
    yield ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
    unproved = sum(line.verdict == "right" and not line.oracle for line in lines)
    yield f"{len(lines)} files, {len(faults(lines))} wrong or without a reason, {unproved} unproved"


def faults(lines: Sequence[Line]) -> list[Line]:
    """Files that are wrong, and those that were refused without a reason."""
    return [line for line in lines if line.verdict.startswith(("WRONG", "UNTYPED"))]


if __name__ == "__main__":
    judged = [judge(each) for each in files()]
    sys.stdout.writelines(f"{row}\n" for row in report(judged))
    sys.exit(bool(faults(judged)))
