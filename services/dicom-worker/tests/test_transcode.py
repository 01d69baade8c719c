"""ConvertDicom to other Transfer Syntaxes: DCMTK decodes them to the pixels of the source."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_worker.convert.encoding import TARGETS
from dicom_worker.convert.transcoding import certificates
from dicom_worker.reading import open_dicom
from dicom_worker.studies.testing import ct_series, ct_slice
from dicom_worker.testing import (
    Convert,
    Dcmtk,
    Render,
    array_of,
    edited,
    outcome,
    saved,
    wheel_file,
)
from fluoro.v1.convert_pb2 import TargetTransferSyntax
from fluoro_jobs.testing import Attempt
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

SOURCES = (
    *("CT_small", "MR_small_RLE", "MR_small_bigendian", "JPEG2000", "JPGExtended"),
    *("SC_rgb_rle", "SC_rgb_small_odd_jpeg", "SC_rgb_rle_16bit_2frame", "examples_palette"),
    *("examples_ybr_color", "JPEGLSNearLossless_16", "image_dfl"),
)
"""Signed and unsigned, 8 to 16 bits, colour, frames, and Transfer Syntaxes of all kinds."""
UNSEEN = frozenset(("image_dfl",))
"""Sources that dciodvfy cannot read itself."""
DECODERS = {
    "EXPLICIT_LITTLE_ENDIAN": ("dcmconv", "+ti"),
    "IMPLICIT_LITTLE_ENDIAN": ("dcmconv", "+te"),
    "RLE_LOSSLESS": ("dcmdrle",),
    "JPEG_LOSSLESS": ("dcmdjpeg", "+cn"),
    "JPEG_LS_LOSSLESS": ("dcmdjpls",),
    "JPEG_2000_LOSSLESS": (),
    "HTJ2K_LOSSLESS": (),
}
"""Target → DCMTK's tool that decodes it; it has none for JPEG 2000."""
VALUE = re.compile(r"<[^>]*>|= ?[^ ]*$|(?<=UID )\S+$")
"""What dciodvfy quotes of a value."""


def target(name: str, quality: int = 0) -> dict[str, Any]:
    return {"transfer_syntax": f"TARGET_TRANSFER_SYNTAX_{name}", "lossy_quality": quality}


def hashes(path: Path, folder: Path) -> list[bytes]:
    return [each.sha256 for each in certificates(open_dicom(path, folder), lambda: None)]


def written(attempt: Attempt, folder: Path, number: int = 0) -> Path:
    path = folder / f"written-{number}.dcm"
    path.write_bytes(attempt.read(f"instance-{number:04}.dcm"))
    return path


def without_pixels(path: Path) -> Dataset:
    dataset = dcmread(path)
    for keyword in ("PixelData", "PhotometricInterpretation", "PlanarConfiguration", "HighBit"):
        dataset.pop(keyword, None)
    return Dataset(dataset)


@pytest.mark.parametrize("name", DECODERS)
def test_every_pixel_is_what_it_was_also_for_dcmtk(
    name: str, convert: Convert, dcmtk: Dcmtk, tmp_path: Path
) -> None:
    syntax = TARGETS[TargetTransferSyntax.Value(f"TARGET_TRANSFER_SYNTAX_{name}")].syntax
    refused = set()
    for source in map(wheel_file, SOURCES):  # some are versions of one instance
        result, attempt = convert(source, group=False, dicom=target(name))
        if not result.instances:
            refused.add(source.stem)
            continue
        [instance] = result.instances
        original, path = hashes(source, tmp_path), written(attempt, tmp_path)
        assert dcmread(path).file_meta.TransferSyntaxUID == syntax
        assert [each.sha256 for each in instance.frames] == original
        assert instance.sop_instance_uid == dcmread(source).SOPInstanceUID
        assert not instance.lossy
        if DECODERS[name]:
            assert hashes(dcmtk(*DECODERS[name], path), tmp_path) == original, source.stem
    # RGB is made of YBR for the encoder of HTJ2K, and of JPEG lossless a decoder; so it rounds.
    assert refused <= ({"examples_ybr_color"} if "J" in name else set())


def errors(path: Path) -> Counter[str]:
    told = subprocess.run(["dciodvfy", path], capture_output=True, check=False, timeout=20)
    lines = told.stderr.decode("latin-1").splitlines()
    return Counter(VALUE.sub("", line) for line in lines if line.startswith("Error"))


@pytest.mark.parametrize(
    ("name", "quality"),
    [("RLE_LOSSLESS", 0), ("JPEG_2000_LOSSLESS", 0), ("JPEG_BASELINE", 90), ("JPEG_2000", 50)],
)
def test_what_is_written_is_no_less_valid_than_its_source(
    name: str, quality: int, convert: Convert, tmp_path: Path
) -> None:
    if not shutil.which("dciodvfy"):
        assert "CI" not in os.environ, "CI must have dciodvfy"
        pytest.skip("dciodvfy is not installed")
    checked = 0
    for source in (wheel_file(each) for each in SOURCES if each not in UNSEEN):
        result, attempt = convert(source, group=False, dicom=target(name, quality))
        for _ in result.instances:
            assert not errors(written(attempt, tmp_path)) - errors(source), source.stem
            checked += 1
    assert checked >= 3


@pytest.mark.parametrize("name", ["CT_small", "MR_small_bigendian", "MR_small_implicit"])
def test_the_header_stays_as_it_is(name: str, convert: Convert, tmp_path: Path) -> None:
    _, attempt = convert(wheel_file(name), group=False, dicom=target("JPEG_2000_LOSSLESS"))
    before, after = without_pixels(wheel_file(name)), without_pixels(written(attempt, tmp_path))
    before.pop("DataSetTrailingPadding", None)
    assert {element.tag: element.value for element in after} == {
        element.tag: element.value for element in before if element.tag.element
    }


def test_words_of_a_big_endian_header_are_turned_round(convert: Convert, tmp_path: Path) -> None:
    dataset = dcmread(wheel_file("examples_palette"))
    red = np.frombuffer(dataset.RedPaletteColorLookupTableData, "<u2")
    dataset["RedPaletteColorLookupTableData"].value = red.astype(">u2").tobytes()
    for keyword in ("GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData"):
        table = np.frombuffer(dataset[keyword].value, "<u2")
        dataset[keyword].value = table.astype(">u2").tobytes()
    for _ in dataset.iterall():
        pass  # all is read before it is said to have been big endian
    dataset.set_original_encoding(is_implicit_vr=False, is_little_endian=False)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    path = tmp_path / "big.dcm"
    dataset.save_as(path)
    _, attempt = convert(path, group=False, dicom=target("EXPLICIT_LITTLE_ENDIAN"))
    after = dcmread(written(attempt, tmp_path))
    assert np.array_equal(np.frombuffer(after.RedPaletteColorLookupTableData, "<u2"), red)


def test_a_lossy_copy_is_another_instance_that_says_what_it_lost(
    convert: Convert, render: Render, tmp_path: Path
) -> None:
    source = wheel_file("SC_rgb_small_odd")
    result, attempt = convert(source, group=False, dicom=target("JPEG_BASELINE", 90))
    [instance] = result.instances
    after, before = dcmread(written(attempt, tmp_path)), dcmread(source)
    assert instance.lossy
    assert after.SOPInstanceUID == instance.sop_instance_uid != before.SOPInstanceUID
    assert after.file_meta.MediaStorageSOPInstanceUID == instance.sop_instance_uid
    assert (after.LossyImageCompression, after.LossyImageCompressionMethod) == ("01", "ISO_10918_1")
    assert after.LossyImageCompressionRatio == pytest.approx(instance.compression_ratio, rel=1e-3)
    assert (after.ImageType[0], after.PhotometricInterpretation) == ("DERIVED", "YBR_FULL_422")
    [predecessor] = after.SourceImageSequence
    assert predecessor.ReferencedSOPInstanceUID == before.SOPInstanceUID
    again, _ = convert(source, group=False, dicom=target("JPEG_BASELINE", 90))
    assert again.instances[0].sop_instance_uid == instance.sop_instance_uid
    other, _ = convert(source, group=False, dicom=target("JPEG_BASELINE", 80))
    assert other.instances[0].sop_instance_uid != instance.sop_instance_uid
    _, ours = render(source, written(attempt, tmp_path))
    one, two = array_of(ours, 0).astype(int), array_of(ours, 1).astype(int)
    assert 0 < np.abs(one - two).mean() < 8


def test_jpeg_2000_keeps_about_the_signal_that_is_asked_for(
    convert: Convert, render: Render
) -> None:
    cells = (1000 * np.sin(np.mgrid[:64, :64].sum(0) / 7)).astype(np.int16)
    source = saved(ct_slice(0, pixels=cells))
    sizes = []
    for quality in (40, 60):
        result, attempt = convert(source, group=False, dicom=target("JPEG_2000", quality))
        sizes.append(len(attempt.read("instance-0000.dcm")))
        _, shown = render(source, attempt.read("instance-0000.dcm"))
        noise = array_of(shown, 0).astype(float) - array_of(shown, 1)
        assert 20 * np.log10(2**16 / np.sqrt((noise**2).mean())) > quality - 3
        assert result.instances[0].compression_ratio > 1
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize(
    ("data", "name", "quality"),
    [
        (lambda: wheel_file("CT_small"), "JPEG_BASELINE", 90),
        (lambda: wheel_file("rtdose"), "JPEG_LOSSLESS", 0),
        (lambda: wheel_file("liver_1frame"), "RLE_LOSSLESS", 0),
        (lambda: wheel_file("SC_ybr_full_422_uncompressed"), "RLE_LOSSLESS", 0),
        (lambda: wheel_file("examples_palette"), "JPEG_2000", 50),
        (lambda: wheel_file("examples_overlay").read_bytes(), "JPEG_BASELINE", 90),
    ],
)
def test_what_cannot_be_written_so_is_refused(
    data: Any, name: str, quality: int, convert: Convert
) -> None:
    _, attempt = convert(data(), group=False, dicom=target(name, quality))
    assert outcome(attempt) == "FAILED CHOICE_UNAVAILABLE"
    assert attempt.context.artifacts == {}


def test_frames_that_nobody_here_decodes_are_refused_as_everywhere(convert: Convert) -> None:
    data = wheel_file("SC_rgb_small_odd_jpeg").read_bytes()
    unknown = data.replace(b"1.2.840.10008.1.2.4.50", b"1.2.840.10008.1.2.4.52")
    _, attempt = convert(unknown, group=False, dicom=target("JPEG_2000_LOSSLESS"))
    assert outcome(attempt) == "FAILED TRANSFER_SYNTAX_UNSUPPORTED"


def test_an_overlay_in_unused_bits_is_not_lost(convert: Convert, tmp_path: Path) -> None:
    dataset = ct_slice(0, BitsStored=12, HighBit=11, PixelRepresentation=0)
    dataset.add_new(0x60000100, "US", 16)
    dataset.add_new(0x60000102, "US", 15)
    dataset.PixelData = (np.frombuffer(dataset.PixelData, "<u2") | 0x8000).tobytes()
    _, attempt = convert(saved(dataset), group=False, dicom=target("JPEG_2000_LOSSLESS"))
    assert outcome(attempt) == "FAILED CHOICE_UNAVAILABLE"
    _, attempt = convert(saved(dataset), group=False, dicom=target("IMPLICIT_LITTLE_ENDIAN"))
    assert dcmread(written(attempt, tmp_path)).PixelData == dataset.PixelData


def test_a_file_that_is_so_already_is_copied(convert: Convert) -> None:
    source = wheel_file("MR_small_RLE")
    _, attempt = convert(source, group=False, dicom=target("RLE_LOSSLESS"))
    assert attempt.read("instance-0000.dcm") == source.read_bytes()


def test_each_file_of_a_group_is_an_instance_under_a_key_of_its_own(convert: Convert) -> None:
    result, attempt = convert(*ct_series(3), dicom=target("RLE_LOSSLESS"))
    assert [each.key for each in result.instances] == ["all/0000", "all/0001", "all/0002"]
    assert [each.instance for each in result.instances] == sorted(attempt.context.artifacts)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_private_elements_long_values_and_those_behind_the_pixels_stay(
    syntax: Any, convert: Convert, tmp_path: Path
) -> None:
    dataset = ct_slice(0)
    block = dataset.private_block(0x0041, "FLUORO TEST", create=True)
    block.add_new(0x01, "OB", bytes(range(256)) * 512)
    behind = dataset.private_block(0x7FE1, "FLUORO TEST", create=True)
    behind.add_new(0x02, "OB", b"behind")
    dataset.file_meta.TransferSyntaxUID = syntax
    path = tmp_path / "source.dcm"
    dataset.save_as(path, implicit_vr=syntax.is_implicit_VR, little_endian=True)
    for name in ("RLE_LOSSLESS", "EXPLICIT_LITTLE_ENDIAN", "IMPLICIT_LITTLE_ENDIAN"):
        _, attempt = convert(path, group=False, dicom=target(name))
        after = dcmread(written(attempt, tmp_path))
        assert after[0x00411001].value == bytes(range(256)) * 512
        assert after[0x7FE11002].value == b"behind"


def test_frames_of_a_file_come_out_in_order(convert: Convert, tmp_path: Path) -> None:
    frames: Sequence[Any] = [np.full((12, 10), at, np.int16) for at in range(5)]
    source = saved(ct_slice(0, NumberOfFrames=5, PixelData=np.stack(frames).tobytes()))
    for name in ("RLE_LOSSLESS", "JPEG_LS_LOSSLESS", "HTJ2K_LOSSLESS"):
        _, attempt = convert(source, group=False, dicom=target(name))
        file = open_dicom(written(attempt, tmp_path), tmp_path)
        assert [each.maximum for each in certificates(file, lambda: None)] == [0, 1, 2, 3, 4]


def test_lossy_frames_without_a_word_of_it_get_one(convert: Convert, tmp_path: Path) -> None:
    source = edited("SC_rgb_small_odd_jpeg", LossyImageCompression="00")
    _, attempt = convert(source, group=False, dicom=target("EXPLICIT_LITTLE_ENDIAN"))
    assert dcmread(written(attempt, tmp_path)).LossyImageCompression == "01"


LITTLE_MEMORY = """
import resource, sys
import numpy as np
from pathlib import Path
from dicom_worker.convert.encoding import TARGETS, encode
from dicom_worker.pixels.image import Image
from fluoro_jobs.worker.memory import limit_memory

side = 4000
header = Image("PixelData", side, side, 1, 1, "MONOCHROME2", 0, 16, 16, 15, False)
target = TARGETS[int(sys.argv[1])]
small = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
encode(target, small, Image("PixelData", 64, 64, 1, 1, "MONOCHROME2", 0, 16, 16, 15, False), 60)
large = np.random.default_rng(1).integers(0, 2**16, (side, side), np.uint16)
pages = int(Path("/proc/self/statm").read_text().split()[5])
limit_memory((pages * resource.getpagesize() + large.nbytes * 3 // 2) // 1024)
try:
    encode(target, large, header, 60)
except MemoryError:
    print("MemoryError")
"""


@pytest.mark.parametrize(
    "target", ["RLE_LOSSLESS", "JPEG_LOSSLESS", "JPEG_2000_LOSSLESS", "HTJ2K_LOSSLESS", "JPEG_2000"]
)
def test_an_encoder_without_memory_says_so(target: str) -> None:
    number = TargetTransferSyntax.Value(f"TARGET_TRANSFER_SYNTAX_{target}")
    command = [sys.executable, "-c", LITTLE_MEMORY, str(number)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "MemoryError\n", done.stderr
