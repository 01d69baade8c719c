"""DeidentifyDicom with clean_pixel_data: text goes from the pixels, and nothing else does."""

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_worker.deidentify.burned_in import FramePlan, Plan, Search, digest, prove_pixels
from dicom_worker.deidentify.painting import background, stamp
from dicom_worker.operations.deidentify import deidentify_dicom
from dicom_worker.testing import edited, outcome, saved, wheel_file
from fluoro.v1.deidentify_pb2 import DeidentifyDicom, DeidentifyDicomResult
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.testing import Attempt, operate
from numpy.typing import NDArray
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

Run = Callable[..., tuple[DeidentifyDicomResult, Attempt]]
TEXT = (slice(8, 32), slice(8, 160))
"""Where `picture` has its text."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the operation with clean_pixel_data; keywords are fields of the request."""
    (tmp_path / "trial").write_bytes(b"0123456789abcdef0123456789abcdef")
    monkeypatch.setenv("FLUORO_DEIDENTIFY_KEYS_FOLDER", str(tmp_path))

    def operated(*inputs: bytes | Path, **fields: Any) -> tuple[DeidentifyDicomResult, Attempt]:
        request = DeidentifyDicom(**{"project": "trial", "clean_pixel_data": True, **fields})
        return operate(deidentify_dicom, request, tmp_path, inputs)

    return operated


def picture(*, text: bool = True) -> NDArray[np.uint8]:
    """A phantom of 128 rows and 192 columns, with a name in it."""
    values = background(random.Random(3), 128, 192)
    if text:
        ink = stamp("QUACKENBUSH", 18, 0)
        values[12 : 12 + ink.shape[0], 12 : 12 + ink.shape[1]][ink > 0.5] = 255
    return values


def instance(*frames: NDArray[Any], **changes: Any) -> pydicom.FileDataset:
    """A secondary capture of these frames, (rows, columns) or (rows, columns, 3)."""
    dataset = pydicom.dcmread(wheel_file("CT_small"))
    del dataset.DataSetTrailingPadding
    dataset.Rows, dataset.Columns = frames[0].shape[:2]
    dataset.SamplesPerPixel = 1 if frames[0].ndim == 2 else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if frames[0].ndim == 2 else "RGB"
    dataset.PlanarConfiguration = 0
    dataset.NumberOfFrames = len(frames)
    bits = 8 * frames[0].dtype.itemsize
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = 0
    dataset.PixelData = b"".join(each.tobytes() for each in frames)
    dataset["PixelData"].VR = "OB" if bits == 8 else "OW"
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    return dataset


def clean(attempt: Attempt) -> pydicom.FileDataset:
    return pydicom.dcmread(io.BytesIO(attempt.read("instance-0000.dcm")))


def pixels_of(attempt: Attempt) -> Any:
    return json.loads(attempt.read("deidentification-report-0000.json"))["pixels"]


def test_text_is_masked_and_the_file_says_so(run: Run) -> None:
    values = picture()
    result, attempt = run(saved(instance(values, BurnedInAnnotation="YES")))
    dataset, entry, said = clean(attempt), result.instances[0], pixels_of(attempt)
    after = dataset.pixel_array
    assert (after[TEXT] == values.min()).sum() > 1000
    assert (after[TEXT] < 255).all()
    assert np.array_equal(after[40:], values[40:])
    assert dataset.BurnedInAnnotation == "NO"
    assert [code.CodeValue for code in dataset.DeidentificationMethodCodeSequence][:2] == [
        "113100",
        "113101",
    ]
    assert (entry.pixels_cleaned, entry.masked_regions) == (True, said["masked_regions"])
    ((left, top, right, bottom),) = said["frames"][0]["boxes"]
    assert (left < 16, top < 18, right > 110, bottom > 22) == (True, True, True, True)
    assert "quackenbush" not in json.dumps(said).lower()


def test_an_image_without_text_keeps_every_byte_of_its_pixels(run: Run) -> None:
    _, attempt = run(wheel_file("CT_small"))
    before = pydicom.dcmread(wheel_file("CT_small"))
    assert clean(attempt).PixelData == before.PixelData
    assert pixels_of(attempt)["masked_regions"] == 0
    assert "113101" in str(clean(attempt).DeidentificationMethodCodeSequence)


def test_an_object_without_pixels_claims_no_clean_pixels(run: Run) -> None:
    result, attempt = run(wheel_file("rtplan"))
    assert list(result.instances[0].method_codes) == ["113100"]
    assert "BurnedInAnnotation" not in clean(attempt)
    assert result.instances[0].pixels_cleaned is False


def test_without_the_option_a_file_that_declares_text_is_refused(run: Run) -> None:
    declared = edited("CT_small", BurnedInAnnotation="YES")
    _, attempt = run(declared, clean_pixel_data=False)
    assert outcome(attempt) == "FAILED DEIDENTIFICATION_REFUSED"


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_masked_frames_stay_in_a_lossless_syntax_and_the_others_stay_as_they_are(
    run: Run, syntax: str
) -> None:
    dataset = instance(picture(), picture(text=False))
    if syntax == RLELossless:
        dataset.compress(RLELossless)
    else:
        import imagecodecs  # noqa: PLC0415 - one case needs it

        frames = [picture(), picture(text=False)]
        dataset.PixelData = encapsulate(
            [imagecodecs.jpeg2k_encode(each, codecformat="j2k", reversible=True) for each in frames]
        )
        dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
        dataset["PixelData"].VR = "OB"
    _, attempt = run(saved(dataset))
    after = clean(attempt)
    assert after.file_meta.TransferSyntaxUID == syntax
    assert (after.pixel_array[0][TEXT] < 255).all()
    assert np.array_equal(after.pixel_array[1], picture(text=False))
    first, second = (
        list(generate_frames(each.PixelData, number_of_frames=2)) for each in (dataset, after)
    )
    if syntax == RLELossless:
        assert first[1] == second[1]


def test_lossy_frames_become_uncompressed_ones(run: Run) -> None:
    import imagecodecs  # noqa: PLC0415 - only this test

    colour = np.repeat(picture()[..., None], 3, axis=-1)
    dataset = instance(colour, PhotometricInterpretation="YBR_FULL_422")
    dataset.PixelData = encapsulate([imagecodecs.jpeg8_encode(colour, level=90)])
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset["PixelData"].VR = "OB"
    _, attempt = run(saved(dataset))
    after = clean(attempt)
    assert after.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert after.PhotometricInterpretation == "RGB"
    assert (after.pixel_array[14:24, 20:110] == 0).all()


def test_sixteen_bits_in_big_endian_are_masked_where_they_lie(run: Run) -> None:
    dataset = instance((picture().astype(np.uint16) * 200 + 50).astype(">u2"))
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    dataset.set_original_encoding(
        is_implicit_vr=False, is_little_endian=False, character_encoding="iso8859"
    )
    _, attempt = run(saved(dataset))
    after = clean(attempt)
    assert after.file_meta.TransferSyntaxUID == ExplicitVRBigEndian
    assert (after.pixel_array[14:24, 20:110] == 50).all()


def in_wide_range() -> pydicom.FileDataset:
    """Grey levels and a text within a hundredth of the range, in a window that shows none."""
    values = picture().astype(np.uint16) // 4 + 1000
    values[0, 0], values[1, 1] = 65535, 0
    return instance(values, WindowCenter=30000, WindowWidth=80)


def half_padded() -> pydicom.FileDataset:
    """A text on the border of padding that is far below all values."""
    values = picture().astype(np.int16)
    values[:, :60][values[:, :60] < 255] = -32000
    return instance(values, PixelRepresentation=1, PixelPaddingValue=-32000)


def of_twelve_bits() -> pydicom.FileDataset:
    """Colours that use a sixteenth of the range that the file states."""
    return instance(np.repeat(picture()[..., None], 3, axis=-1).astype(np.uint16) * 16)


@pytest.mark.parametrize("made", [in_wide_range, half_padded, of_twelve_bits])
def test_text_is_found_whatever_the_range_and_the_window_hide(
    run: Run, made: Callable[[], pydicom.FileDataset]
) -> None:
    dataset = made()
    strokes = (picture() == 255)[TEXT]
    _, attempt = run(saved(dataset))
    before, after = dataset.pixel_array[TEXT], clean(attempt).pixel_array[TEXT]
    assert (after[strokes] < before[strokes]).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 1500), (1500, 2)])
def test_frames_too_small_for_any_text_pass(run: Run, shape: tuple[int, int]) -> None:
    _, attempt = run(saved(instance(np.arange(np.prod(shape), dtype=np.uint16).reshape(shape))))
    assert pixels_of(attempt)["masked_regions"] == 0


def test_what_ultrasound_keeps_outside_its_regions_is_masked(run: Run) -> None:
    region = pydicom.Dataset()
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 30, 40
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = 179, 119
    values = picture()
    dataset = instance(values, SequenceOfUltrasoundRegions=Sequence([region]))
    _, attempt = run(saved(dataset))
    after = clean(attempt).pixel_array
    assert np.array_equal(after[40:120, 30:180], values[40:120, 30:180])
    after[40:120, 30:180] = 0
    assert not after.any()
    assert pixels_of(attempt)["device_rule"] == "outside the ultrasound regions"
    assert pixels_of(attempt)["frames"][0]["masked_by_device_rule"] is True


def test_a_page_of_text_is_refused_rather_than_masked_away(run: Run) -> None:
    page = np.zeros((120, 460), np.uint8)
    ink = stamp("QUACKENBUSH", 56, 0)
    page[20 : 20 + ink.shape[0], 10 : 10 + ink.shape[1]][ink > 0.5] = 255
    _, attempt = run(saved(instance(page)))
    assert outcome(attempt) == "FAILED DEIDENTIFICATION_REFUSED"


def test_text_that_is_still_in_the_written_file_fails_its_item(tmp_path: Path) -> None:
    path = tmp_path / "written.dcm"
    path.write_bytes(saved(instance(picture())))
    other = Plan("", None, [FramePlan(digest(picture(text=False)))])
    with pytest.raises(FluoroError) as caught:
        prove_pixels(path, other, Search(lambda: None))
    assert caught.value.reason is Reason.IDENTIFIERS_LEFT
