"""What a screen shows: choice of windows, presets, presentation shape, overlays, frames.

DCMTK's dcm2pnm gives the second opinion, within one grey value.
"""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_worker.pixels.presets import PRESETS
from dicom_worker.testing import (
    Dcmtk,
    Render,
    array_of,
    edited,
    outcome,
    preview_of,
    saved,
    wheel_file,
)
from fluoro.v1.dicom_pb2 import FileWindow, FrameRange, RenderDicom, VoiWindow, WindowPreset
from fluoro_jobs.errors import FluoroError, Reason
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

OVERLAY = wheel_file("examples_overlay").read_bytes()
"""It has two windows, WINDOW1 and WINDOW2, and an overlay of its own bitmap."""


def assert_same(
    render: Render,
    dcmtk: Dcmtk,
    data: bytes,
    folder: Path,
    *options: str,
    most: int = 1,
    **request: Any,
) -> None:
    source = folder / "source.dcm"
    source.write_bytes(data)
    _, attempt = render(source, **request)
    theirs = np.asarray(Image.open(dcmtk("dcm2pnm", *options, source)))
    ours = preview_of(attempt)
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= most
    assert ours.min() != ours.max()


@pytest.mark.parametrize(
    "choice",
    [FileWindow(index=1), FileWindow(explanation=" window2")],
    ids=["index", "explanation"],
)
def test_the_request_chooses_among_the_windows_of_the_file(
    choice: FileWindow, render: Render, dcmtk: Dcmtk, tmp_path: Path
) -> None:
    assert_same(render, dcmtk, OVERLAY, tmp_path, "-O", "+Wi", "2", file_window=choice)


def test_a_chosen_window_wins_over_a_voi_table_and_a_table_can_be_chosen(render: Render) -> None:
    dataset = dcmread(wheel_file("MR_small"))
    table = Dataset()
    table.LUTDescriptor, table.LUTExplanation = [2, 0, 8], "STEP"
    table.add_new("LUTData", "US", [0, 255])
    dataset.VOILUTSequence = Sequence([table])
    data = saved(dataset)
    by_table = preview_of(render(data, file_window=FileWindow(explanation="step"))[1])
    by_default = preview_of(render(data)[1])
    by_window = preview_of(render(data, file_window=FileWindow(index=0))[1])
    assert np.array_equal(by_table, by_default)
    assert set(np.unique(by_table)) <= {0, 255}
    assert len(np.unique(by_window)) > 2


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"file_window": FileWindow(index=7)}, "no window"),
        ({"file_window": FileWindow(explanation="LUNG")}, "no window"),
        ({"frames": FrameRange(first=2)}, "no frame 2"),
        ({"values": RenderDicom.VALUES_SUV_BODY_WEIGHT}, "PET"),
    ],
)
def test_a_file_without_what_the_request_chooses_fails_alone(
    request_: dict[str, Any], says: str, render: Render
) -> None:
    _, attempt = render(wheel_file("CT_small"), **request_)
    assert outcome(attempt) == "FAILED CHOICE_UNAVAILABLE"
    assert says in attempt.context.items[0].message


@pytest.mark.parametrize(
    "request_",
    [
        {"window": (40, 400), "preset": WindowPreset.WINDOW_PRESET_LUNG},
        {"preset": WindowPreset.WINDOW_PRESET_LUNG, "file_window": FileWindow(index=0)},
        {
            "values": RenderDicom.VALUES_SUV_BODY_WEIGHT,
            "file_window": FileWindow(index=0),
        },
        {"preset": 99},
        {"file_window": FileWindow()},
        {"file_window": FileWindow(index=-1)},
        {"frames": FrameRange(first=3, last=2)},
        {"thumbnail_px": 5},
        {"quality": 101},
        {"contact_sheet": {"tile_px": 5000}},
        {"animation": {"frame_ms": 1}},
        {"window": (float("inf"), 400)},
    ],
)
def test_requests_that_contradict_themselves_or_go_too_far_are_invalid(
    request_: dict[str, Any], render: Render
) -> None:
    with pytest.raises(FluoroError) as caught:
        render(wheel_file("CT_small"), **request_)
    assert caught.value.reason == Reason.INVALID_ARGUMENT


def test_every_preset_is_shown_where_values_are_hounsfield_and_nowhere_else(
    render: Render, dcmtk: Dcmtk, tmp_path: Path
) -> None:
    assert {*PRESETS, 0} == set(WindowPreset.values())
    lung = WindowPreset.WINDOW_PRESET_LUNG
    ct = wheel_file("CT_small").read_bytes()
    assert_same(render, dcmtk, ct, tmp_path, "+Ww", "-600", "1500", preset=lung)
    assert np.array_equal(
        preview_of(render(wheel_file("MR_small"), preset=lung)[1]),
        preview_of(render(wheel_file("MR_small"))[1]),
    )


@pytest.mark.parametrize("function", ["LINEAR", "SIGMOID", "LINEAR_EXACT"])
def test_the_function_of_a_window_is_followed_and_reported(function: str, render: Render) -> None:
    by_file = edited("MR_small", WindowCenter="700", WindowWidth="900", VOILUTFunction=function)
    asked = VoiWindow(center=700, width=900, function=f"FUNCTION_{function}")
    result, attempt = render(by_file)
    assert result.images[0].window == asked
    _, other = render(
        edited("MR_small", WindowCenter=None, WindowWidth=None), window=(700, 900, function)
    )
    assert np.array_equal(preview_of(attempt), preview_of(other))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_an_inverse_presentation_shape_inverts_once(
    photometric: str, render: Render, dcmtk: Dcmtk, tmp_path: Path
) -> None:
    data = edited("CT_small", PresentationLUTShape="INVERSE", PhotometricInterpretation=photometric)
    assert_same(render, dcmtk, data, tmp_path, "-O", "+Ww", "40", "400", window=(40, 400))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_overlays_are_drawn_white_on_demand(
    photometric: str, render: Render, dcmtk: Dcmtk, tmp_path: Path
) -> None:
    data = edited("examples_overlay", PhotometricInterpretation=photometric)
    assert_same(render, dcmtk, data, tmp_path, "+Wi", "1", overlays=True)
    assert_same(render, dcmtk, data, tmp_path, "-O", "+Wi", "1")


@pytest.mark.parametrize(
    "syntax", ["+tb", "+ti", "+td"], ids=["big endian", "implicit", "deflated"]
)
def test_an_overlay_is_the_same_in_every_encoding(
    syntax: str, render: Render, dcmtk: Dcmtk
) -> None:
    encoded = dcmtk("dcmconv", syntax, wheel_file("examples_overlay"))
    _, attempt = render(encoded, OVERLAY, overlays=True)
    assert np.array_equal(preview_of(attempt, 0), preview_of(attempt, 1))


def with_overlay(**attributes: Any) -> Dataset:
    """MR_small with 12 bits per pixel; attributes of an overlay by `x` and its element number."""
    dataset = dcmread(wheel_file("MR_small"))
    for keyword in [each for each in dataset.dir() if "Smallest" in each or "Largest" in each]:
        delattr(dataset, keyword)
    values = np.minimum(dataset.pixel_array, 4095).astype("<u2")
    dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit = 0, 12, 11
    dataset.PixelData = values.tobytes()
    vrs = {0x10: "US", 0x11: "US", 0x15: "IS", 0x40: "CS", 0x50: "SS", 0x51: "US", 0x100: "US"}
    for name, value in {"x40": "G", "x100": 1, "x102": 0, "x50": [1, 1], **attributes}.items():
        element = int(name[1:], 16)
        vr = {**vrs, 0x102: "US", 0x3000: "OW"}[element]
        dataset.add_new((0x6000, element), vr, value)
    return dataset


def test_an_overlay_in_a_high_bit_is_drawn_and_is_no_pixel(
    render: Render, dcmtk: Dcmtk, tmp_path: Path
) -> None:
    dataset = with_overlay(x10=64, x11=64, x100=16, x102=14)
    cells = np.frombuffer(dataset.PixelData, "<u2").reshape(64, 64).copy()
    plain = cells.copy()
    cells[10:20, 30:50] |= 1 << 14
    dataset.PixelData = cells.tobytes()
    assert_same(render, dcmtk, saved(dataset), tmp_path, "+Wi", "1", overlays=True)
    _, attempt = render(saved(dataset))
    assert np.array_equal(array_of(attempt)[0], plain)


def test_an_overlay_reaches_over_the_edge_and_over_its_own_frames_only(render: Render) -> None:
    # Two planes of 5 x 3 pixels, packed without a gap, over frames 2 and 3.
    bits = np.zeros((2, 5, 3), np.uint8)
    bits[0, 4, 2], bits[1, 0, 0] = 1, 1
    packed = np.packbits(bits.ravel(), bitorder="little").tobytes()
    dataset = with_overlay(x10=5, x11=3, x50=[-3, 1], x15=2, x51=2, x3000=packed)
    dataset.NumberOfFrames, dataset.PixelData = 3, dataset.PixelData * 3
    for frame, drawn in {1: [], 2: [(0, 2)], 3: []}.items():
        shown, plain = (
            preview_of(render(saved(dataset), overlays=on, frames=FrameRange(first=frame))[1])
            for on in (True, False)
        )
        assert list(zip(*np.nonzero(shown != plain), strict=True)) == drawn


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"x10": 64, "x11": 64, "x3000": bytes(10)}, "DICOM_INVALID"),
        ({"x10": 0, "x11": 64, "x3000": bytes(512)}, "DICOM_INVALID"),
        ({"x10": 64, "x11": 64, "x102": 5}, "DICOM_INVALID"),
        ({"x10": 65535, "x11": 65535, "x3000": bytes(512)}, "IMAGE_TOO_LARGE"),
    ],
)
def test_an_overlay_that_contradicts_itself_is_refused(
    attributes: dict[str, Any], reason: str, render: Render
) -> None:
    data = saved(with_overlay(**attributes))
    assert outcome(render(data, overlays=True)[1]) == f"FAILED {reason}"
    assert outcome(render(data)[1]) == "SUCCEEDED"


def test_the_preview_shows_the_frame_that_was_asked_for(
    render: Render, dcmtk: Dcmtk, tmp_path: Path
) -> None:
    data = wheel_file("rtdose").read_bytes()
    frames = FrameRange(first=9)
    assert_same(render, dcmtk, data, tmp_path, "-O", "+Wm", "+F", "9", frames=frames)


def test_each_frame_of_an_enhanced_object_has_its_own_window_and_table(render: Render) -> None:
    dataset = dcmread(wheel_file("MR_small"))
    for keyword in ("WindowCenter", "WindowWidth"):
        delattr(dataset, keyword)
    dataset.NumberOfFrames, dataset.PixelData = 2, dataset.PixelData * 2
    table = Dataset()
    table.LUTDescriptor = [2, 700, 8]
    table.add_new("LUTData", "US", [0, 255])
    by_window, by_table, groups = Dataset(), Dataset(), [Dataset(), Dataset()]
    by_window.WindowCenter, by_window.WindowWidth = "700", "900"
    by_table.VOILUTSequence = Sequence([table])
    groups[0].FrameVOILUTSequence = Sequence([by_window])
    groups[1].FrameVOILUTSequence = Sequence([by_table])
    dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
    result, attempt = render(saved(dataset))
    assert result.images[0].window.center == 700
    assert len(np.unique(preview_of(attempt))) > 2
    result, attempt = render(saved(dataset), frames=FrameRange(first=2))
    assert not result.images[0].HasField("window")
    assert set(np.unique(preview_of(attempt))) == {0, 255}


@pytest.mark.parametrize("photometric", ["YBR_PARTIAL_422", "YBR_PARTIAL_420", "HSV", "CMYK"])
def test_colour_spaces_without_a_meaning_of_ours_are_refused(
    photometric: str, render: Render
) -> None:
    _, attempt = render(edited("examples_rgb_color", PhotometricInterpretation=photometric))
    assert outcome(attempt) == "FAILED PIXELS_UNDECODABLE"


def test_native_ybr_of_both_samplings_looks_as_dcmtk_shows_it(
    render: Render, dcmtk: Dcmtk, tmp_path: Path
) -> None:
    half = wheel_file("SC_ybr_full_422_uncompressed").read_bytes()
    assert_same(render, dcmtk, half, tmp_path)
    dataset = dcmread(wheel_file("examples_rgb_color"))
    dataset.PhotometricInterpretation = "YBR_FULL"
    # DCMTK cuts off where we round, in each of the terms that green has.
    assert_same(render, dcmtk, saved(dataset), tmp_path, most=2)
    dataset.PlanarConfiguration = 1
    assert_same(render, dcmtk, saved(dataset), tmp_path, most=2)


def test_double_float_pixels_keep_their_values_up_to_the_array(render: Render) -> None:
    dataset = dcmread(wheel_file("MR_small"))
    values = np.linspace(-1e6, 1e6, 64 * 64)
    for keyword in ("PixelData", "WindowCenter", "WindowWidth", "BitsStored", "HighBit"):
        delattr(dataset, keyword)
    dataset.BitsAllocated = 64
    dataset.DoubleFloatPixelData = values.tobytes()
    _, attempt = render(saved(dataset))
    assert np.array_equal(array_of(attempt).ravel(), values.astype("<f4"))
    shown = preview_of(attempt).ravel()
    assert (shown[0], shown[-1]) == (0, 255)


def test_integers_beyond_24_bits_are_told_apart_in_the_picture(render: Render) -> None:
    dataset = dcmread(wheel_file("MR_small"))
    values = (2**30 + np.arange(64 * 64) % 256).astype("<i4")
    for keyword in ("WindowCenter", "WindowWidth"):
        delattr(dataset, keyword)
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 32, 32, 31
    dataset.PixelData = values.tobytes()
    _, attempt = render(saved(dataset))
    assert np.array_equal(preview_of(attempt).ravel(), np.arange(64 * 64) % 256)
    assert array_of(attempt).dtype == "<f4"


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_a_voi_table_of_hounsfield_values_begins_below_zero_whatever_its_vr_says(
    syntax: str, render: Render, dcmtk: Dcmtk, tmp_path: Path
) -> None:
    dataset = dcmread(wheel_file("CT_small"))
    table = Dataset()
    # 64512 is -1024 as an unsigned number.
    table.add_new("LUTDescriptor", "US", [4096, 64512, 8])
    table.add_new("LUTData", "US", [entry // 16 for entry in range(4096)])
    dataset.VOILUTSequence = Sequence([table])
    dataset.PixelRepresentation = 0
    dataset.file_meta.TransferSyntaxUID = syntax
    buffer = BytesIO()
    dataset.save_as(buffer, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)
    assert_same(render, dcmtk, buffer.getvalue(), tmp_path, "+Wl", "1")


@pytest.mark.parametrize(
    "changes",
    [
        {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0},
        {"BitsAllocated": 16},
        {"BitsAllocated": 64, "Rows": 1, "Columns": 1},
    ],
)
def test_floats_of_another_size_or_in_colour_are_refused(
    changes: dict[str, Any], render: Render
) -> None:
    dataset = dcmread(wheel_file("CT_small"))
    dataset.Rows, dataset.Columns, dataset.BitsAllocated = 1, 2, 32
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    del dataset.PixelData
    size = dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * dataset.BitsAllocated // 8
    dataset.FloatPixelData = bytes(size)
    _, attempt = render(saved(dataset))
    assert outcome(attempt) == "FAILED PIXELS_UNDECODABLE"


def test_colour_of_one_bit_is_refused(render: Render) -> None:
    dataset = dcmread(wheel_file("SC_rgb_small_odd"))
    dataset.BitsAllocated = dataset.BitsStored = 1
    dataset.HighBit, dataset.Rows, dataset.Columns = 0, 4, 4
    dataset.PixelData = bytes(6)
    _, attempt = render(saved(dataset))
    assert outcome(attempt) == "FAILED PIXELS_UNDECODABLE"
