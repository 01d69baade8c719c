"""What inflates to a gigabyte is refused, and takes no memory for it."""

import subprocess
import sys
import textwrap
import zipfile
import zlib
from pathlib import Path

from dicom_worker.limits import MIB
from dicom_worker.testing import saved, wheel_file
from pydicom import dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian

BOMB_BYTES = 1040 * MIB
"""1.09 GB."""
MEASURE = """
    import resource, sys
    from pathlib import Path
    from dicom_worker.operations.inspect import inspect_dicom
    from dicom_worker.operations.unpack import unpack_archive
    from dicom_worker.testing import outcome
    from fluoro.v1.archive_pb2 import UnpackArchive
    from fluoro.v1.dicom_pb2 import InspectDicom
    from fluoro_jobs.testing import operate

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    good, bomb, folder = map(Path, sys.argv[2:])
    operation, request = {
        "inspect": (inspect_dicom, InspectDicom()),
        "unpack": (unpack_archive, UnpackArchive()),
    }[sys.argv[1]]
    operate(operation, request, folder, [good])
    before = peak()
    _, attempt = operate(operation, request, folder, [bomb])
    print(outcome(attempt), peak() - before)
"""


def measured(operation: str, good: Path, bomb: Path, folder: Path) -> tuple[str, int]:
    """What becomes of the bomb in a process of its own, and what it adds to its peak, in bytes."""
    command = [sys.executable, "-c", textwrap.dedent(MEASURE), operation]
    done = subprocess.run(
        [*command, good, bomb, folder], check=True, capture_output=True, text=True
    )
    outcome, _, extra = done.stdout.strip().rpartition(" ")
    return outcome, int(extra)


def zeros(squeeze: "zlib._Compress", size: int) -> bytes:
    """So many zeros, deflated a mebibyte at a time: all but the first look alike."""
    blocks = [squeeze.compress(bytes(MIB)) + squeeze.flush(zlib.Z_FULL_FLUSH) for _ in range(3)]
    return blocks[0] + blocks[1] + blocks[2] * (size // MIB - 2)


def deflated() -> bytes:
    """CT_small, deflated, with pixel data of some gigabyte of zeros."""
    dataset = dcmread(wheel_file("CT_small"))
    del dataset.PixelData
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    whole = saved(dataset)
    start = 144 + int.from_bytes(whole[140:144], "little")
    header = zlib.decompressobj(-zlib.MAX_WBITS).decompress(whole[start:])
    squeeze = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    pixels = b"\xe0\x7f\x10\x00OW\0\0" + BOMB_BYTES.to_bytes(4, "little")
    body = squeeze.compress(header + pixels) + zeros(squeeze, BOMB_BYTES)
    return whole[:start] + body + squeeze.flush()


def test_a_deflated_file_of_a_gigabyte_is_refused_in_64_mib(tmp_path: Path) -> None:
    path = tmp_path / "bomb.dcm"
    path.write_bytes(deflated())
    assert path.stat().st_size < 1.2 * MIB
    outcome, extra = measured("inspect", wheel_file("image_dfl"), path, tmp_path)
    assert outcome == "FAILED IMAGE_TOO_LARGE"
    assert extra < 64 * MIB


def test_an_archive_of_a_bomb_is_refused_in_64_mib(tmp_path: Path) -> None:
    good, bomb = tmp_path / "good.zip", tmp_path / "bomb.zip"
    for path, size in ((good, 1), (bomb, 128 * MIB)):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            archive.writestr("a", bytes(size))
    outcome, extra = measured("unpack", good, bomb, tmp_path / "scratch")
    assert outcome == "FAILED ARCHIVE_TOO_LARGE"
    assert extra < 64 * MIB
