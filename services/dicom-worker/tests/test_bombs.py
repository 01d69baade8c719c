"""A deflated file that inflates to a gigabyte is refused, and takes no memory for it."""

import zlib
from pathlib import Path

from dicom_worker.limits import MIB
from dicom_worker.operations.inspect import inspect_dicom
from dicom_worker.testing import added_to_peak, saved, wheel_file
from fluoro.v1.dicom_pb2 import InspectDicom
from pydicom import dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian

BOMB_BYTES = 1040 * MIB
"""1.09 GB."""


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
    good = wheel_file("image_dfl")
    reason, extra = added_to_peak(inspect_dicom, InspectDicom, good, path, tmp_path)
    assert reason == "IMAGE_TOO_LARGE"
    assert extra < 64 * MIB
