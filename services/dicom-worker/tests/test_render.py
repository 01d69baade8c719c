"""RenderDicom: the array with its certificate, and the preview, in the order of PS3.3."""

import io
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_worker.pixels.rendering import Wanted
from dicom_worker.pixels.rendering import render as render_file
from dicom_worker.reading import open_dicom
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
from fluoro_jobs.errors import FluoroError, Reason
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames, itemize_fragment
from pydicom.sequence import Sequence
from pydicom.uid import RLELossless

HTJ2K = Path(__file__).parent / "data" / "MR_small_htj2k.dcm"
CT = dcmread(wheel_file("CT_small"))
STORED: NDArray[np.int16] = CT.pixel_array


def ramp(name: str = "CT_small", **changes: Any) -> Dataset:
    """A file of the wheel whose one row holds the values 0, 1, 2 …, 255."""
    dataset = dcmread(wheel_file(name))
    dataset.Rows, dataset.Columns = 1, 256
    dataset.PixelData = np.arange(256, dtype="<i2").tobytes()
    for keyword in (
        "RescaleSlope",
        "RescaleIntercept",
        "WindowCenter",
        "WindowWidth",
        "PixelPaddingValue",
    ):
        dataset.pop(keyword, None)
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    return dataset


def test_a_ct_is_in_hounsfield_with_its_spacing(render: Render) -> None:
    result, attempt = render(wheel_file("CT_small"))
    image = result.images[0]
    assert np.array_equal(array_of(attempt)[0], STORED.astype(int) + int(CT.RescaleIntercept))
    assert (
        image.certificate.unit,
        image.certificate.dtype,
        image.certificate.decoder.split()[0],
    ) == ("HU", "<i2", "pydicom")
    assert (list(image.pixel_spacing_mm), image.slice_thickness_mm, image.modality) == (
        [0.661468, 0.661468],
        5.0,
        "CT",
    )
    assert image.sop_instance_uid == CT.SOPInstanceUID


@pytest.mark.parametrize(
    ("changes", "unit"),
    [
        ({}, "HU"),
        ({"RescaleType": "HU"}, "HU"),
        ({"RescaleType": "US"}, "1"),
        ({"Modality": "PT"}, "1"),
    ],
)
def test_the_unit_is_hounsfield_only_for_a_ct_that_says_so_or_nothing(
    changes: dict[str, str], unit: str, render: Render
) -> None:
    result, _ = render(edited("CT_small", **changes))
    assert result.images[0].certificate.unit == unit


@pytest.mark.parametrize(
    ("name", "decoder"),
    [
        ("MR_small_RLE", "PackBits of imagecodecs"),
        ("MR_small_jp2klossless", "OpenJPEG of imagecodecs"),
        ("MR_small_jpeg_ls_lossless", "CharLS of imagecodecs"),
        ("MR_small_bigendian", "pydicom"),
        ("MR_small_implicit", "pydicom"),
        ("MR_small_padded", "pydicom"),
    ],
)
def test_one_image_in_every_lossless_encoding_gives_one_array(
    name: str, decoder: str, render: Render
) -> None:
    result, _ = render(wheel_file("MR_small"), wheel_file(name))
    plain, encoded = (image.certificate for image in result.images)
    assert plain.sha256 == encoded.sha256
    assert encoded.decoder.rsplit(maxsplit=1)[0] == decoder


def test_htj2k_decodes_to_the_original(render: Render) -> None:
    result, _ = render(wheel_file("MR_small"), HTJ2K)
    plain, encoded = (image.certificate for image in result.images)
    assert plain.sha256 == encoded.sha256
    assert encoded.transfer_syntax_uid == "1.2.840.10008.1.2.4.201"


@pytest.mark.parametrize("options", [["+e1"], ["+el"]], ids=["SV1", "process 14"])
@pytest.mark.parametrize("name", ["CT_small", "MR_small", "examples_overlay", "SC_rgb_small_odd"])
def test_jpeg_lossless_written_by_dcmtk_decodes_to_the_original(
    name: str, options: list[str], dcmtk: Dcmtk, render: Render
) -> None:
    encoded = dcmtk("dcmcjpeg", *options, "+un", wheel_file(name))
    result, _ = render(wheel_file(name), encoded)
    assert [image.certificate.decoder.split()[0] for image in result.images] == [
        "pydicom",
        "libjpeg-turbo",
    ]
    assert result.images[0].certificate.sha256 == result.images[1].certificate.sha256


def test_bits_above_high_bit_hold_overlays_and_are_no_pixels(render: Render) -> None:
    values = np.arange(256, dtype="<u2")
    for bits, high_bit in ((12, 11), (12, 13)):
        shifted = (values << (high_bit - bits + 1)) | 0xC000 if high_bit == 13 else values | 0xF000
        dataset = ramp(
            PixelRepresentation=0, BitsStored=bits, HighBit=high_bit, PixelData=shifted.tobytes()
        )
        _, attempt = render(saved(dataset))
        assert np.array_equal(array_of(attempt).ravel(), values)


def test_signed_values_of_fewer_bits_are_sign_extended(render: Render) -> None:
    values = np.arange(-128, 128, dtype="<i2")
    masked = (values & 0x0FFF).astype("<u2")
    dataset = ramp(PixelRepresentation=1, BitsStored=12, HighBit=11, PixelData=masked.tobytes())
    rle = saved_as_rle(dataset)
    _, attempt = render(saved(dataset), rle)
    assert np.array_equal(array_of(attempt, 0).ravel(), values)
    assert np.array_equal(array_of(attempt, 1).ravel(), values)


def saved_as_rle(dataset: Dataset) -> bytes:
    dataset = dcmread(io.BytesIO(saved(dataset)))
    dataset.compress(RLELossless, generate_instance_uid=False)
    return saved(dataset)


@pytest.mark.parametrize(
    ("slope", "intercept", "dtype"),
    [
        ("1", "-1024", "<i2"),
        ("2", "0", "<i2"),
        ("-1", "0", "<i2"),
        ("0.5", "0", "<f4"),
        ("1000", "0", "<f4"),
        ("1", "0.25", "<f4"),
    ],
)
def test_modality_values_are_integers_where_they_are_whole_and_fit(
    slope: str, intercept: str, dtype: str, render: Render
) -> None:
    result, attempt = render(saved(ramp(RescaleSlope=slope, RescaleIntercept=intercept)))
    assert result.images[0].certificate.dtype == dtype
    assert np.allclose(array_of(attempt).ravel(), np.arange(256) * float(slope) + float(intercept))


def test_a_slope_of_zero_is_refused_unless_there_is_nothing_to_lose(render: Render) -> None:
    rescale = {"RescaleSlope": "0", "RescaleIntercept": "-5"}
    empty = ramp(**rescale, PixelData=bytes(512))
    _, attempt = render(saved(ramp(**rescale)), saved(empty))
    assert [outcome(attempt, number) for number in range(2)] == [
        "FAILED DICOM_INVALID",
        "SUCCEEDED",
    ]
    assert (array_of(attempt, 1) == -5).all()


@pytest.mark.parametrize("slope", ["nan", "1e300", "inf"])
def test_a_rescale_that_gives_no_numbers_is_refused(slope: str, render: Render) -> None:
    data = saved(ramp(RescaleSlope="11111", RescaleIntercept="0")).replace(
        b"11111 ", slope.ljust(6).encode()
    )
    _, attempt = render(data)
    assert outcome(attempt) == "FAILED DICOM_INVALID"


def test_a_later_frame_that_does_not_fit_widens_the_whole_array(render: Render) -> None:
    values = np.stack([np.arange(256), np.arange(256) + 40000]).astype("<u2")
    result, attempt = render(
        saved(ramp(PixelRepresentation=0, NumberOfFrames=2, PixelData=values.tobytes()))
    )
    assert result.images[0].certificate.dtype == "<f4"
    assert np.array_equal(array_of(attempt).reshape(2, 256), values)


def test_the_modality_table_comes_first_and_wins_over_a_rescale(render: Render) -> None:
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [4, 10, 16], "US"
    table.add_new("LUTData", "US", [100, 200, 300, 400])
    _, attempt = render(
        saved(ramp(ModalityLUTSequence=Sequence([table]), RescaleSlope="7", RescaleIntercept="7"))
    )
    expected = np.array([100] * 11 + [200, 300] + [400] * 243)
    assert np.array_equal(array_of(attempt).ravel(), expected)


def test_the_window_of_the_file_is_applied_to_modality_values(render: Render) -> None:
    result, attempt = render(
        saved(
            ramp(
                RescaleSlope="2",
                RescaleIntercept="-100",
                WindowCenter=["100", "0"],
                WindowWidth=["101", "9"],
            )
        )
    )
    window = result.images[0].window
    assert (window.center, window.width) == (100, 101)
    x = np.arange(256) * 2.0 - 100
    assert np.array_equal(
        preview_of(attempt).ravel(), np.rint(np.clip(((x - 99.5) / 100 + 0.5) * 255, 0, 255))
    )


def test_the_window_of_the_request_overrides_window_and_table_of_the_file(render: Render) -> None:
    table = Dataset()
    table.LUTDescriptor = [256, 0, 8]
    table.add_new("LUTData", "US", [0] * 256)
    result, attempt = render(
        saved(ramp(WindowCenter="5", WindowWidth="2", VOILUTSequence=Sequence([table]))),
        window=(128, 256),
    )
    assert (result.images[0].window.center, result.images[0].window.width) == (128, 256)
    assert np.array_equal(preview_of(attempt).ravel(), np.arange(256))


@pytest.mark.parametrize(
    ("signed", "padding", "vr"), [(1, -2000, "SS"), (1, 63536, "US"), (0, 63536, "US")]
)
@pytest.mark.parametrize("negative", [False, True])
def test_without_a_window_the_preview_spans_the_values_that_are_not_padding(
    render: Render, signed: int, padding: int, vr: str, negative: bool
) -> None:
    values = np.arange(256, dtype="<i2" if signed else "<u2")
    values[0] = -2000 if signed else 63536
    dataset = ramp(
        PixelData=values.tobytes(), PixelRepresentation=signed, BitsStored=16, HighBit=15
    )
    # Some writers give the value the other VR, with the same 16 bits.
    value, vr = (-2000, "SS") if negative else (padding, vr)
    dataset.add_new("PixelPaddingValue", vr, value)
    _, attempt = render(saved(dataset))
    shown = preview_of(attempt).ravel()
    assert (shown[0], shown[1], shown[255]) == (0 if signed else 255, 0, 255)
    assert np.array_equal(shown[1:], np.rint((values[1:] - 1) / 254 * 255))


@pytest.mark.parametrize(("center", "width"), [("10", "0"), ("10", "-5")])
def test_a_window_that_the_standard_forbids_is_not_used(
    center: str, width: str, render: Render
) -> None:
    _, attempt = render(saved(ramp(WindowCenter=center, WindowWidth=width)))
    assert np.array_equal(preview_of(attempt).ravel(), np.arange(256))


@pytest.mark.parametrize("width", [0.5, -1, float("nan")])
def test_a_window_of_the_request_that_the_standard_forbids_is_an_invalid_argument(
    width: float, render: Render
) -> None:
    with pytest.raises(FluoroError) as caught:
        render(wheel_file("CT_small"), window=(40, width))
    assert caught.value.reason == Reason.INVALID_ARGUMENT


def test_the_voi_table_wins_over_the_window_and_is_scaled_by_its_bits(render: Render) -> None:
    table = Dataset()
    table.LUTDescriptor = [256, 0, 12]
    table.add_new("LUTData", "US", [int(value) for value in np.linspace(4095, 0, 256)])
    result, attempt = render(
        saved(ramp(VOILUTSequence=Sequence([table]), WindowCenter="5", WindowWidth="2"))
    )
    assert not result.images[0].HasField("window")
    assert np.abs(preview_of(attempt).ravel().astype(int) - np.arange(255, -1, -1)).max() <= 1


def test_monochrome1_is_inverted_last_and_only_in_the_preview(render: Render) -> None:
    plain = ramp(WindowCenter="100", WindowWidth="50")
    inverted = ramp(WindowCenter="100", WindowWidth="50", PhotometricInterpretation="MONOCHROME1")
    _, attempt = render(saved(plain), saved(inverted))
    assert np.array_equal(preview_of(attempt, 1), 255 - preview_of(attempt, 0))
    assert np.array_equal(array_of(attempt, 1), array_of(attempt, 0))


def test_frames_of_an_enhanced_object_have_their_own_rescale_and_shared_measures(
    render: Render,
) -> None:
    def groups(**macros: Dataset) -> Dataset:
        item = Dataset()
        for keyword, macro in macros.items():
            setattr(item, keyword, Sequence([macro]))
        return item

    def made(**attributes: str | list[str]) -> Dataset:
        item = Dataset()
        for keyword, value in attributes.items():
            setattr(item, keyword, value)
        return item

    frames = np.stack([np.arange(256), np.arange(256)]).astype("<i2")
    dataset = ramp(NumberOfFrames=2, PixelData=frames.tobytes())
    del dataset.PixelSpacing
    dataset.PerFrameFunctionalGroupsSequence = Sequence(
        [
            groups(
                PixelValueTransformationSequence=made(
                    RescaleSlope="1", RescaleIntercept=intercept, RescaleType="HU"
                )
            )
            for intercept in ("-1000", "-500")
        ]
    )
    dataset.SharedFunctionalGroupsSequence = Sequence(
        [
            groups(
                PixelMeasuresSequence=made(PixelSpacing=["0.5", "0.25"], SliceThickness="3"),
                FrameVOILUTSequence=made(WindowCenter="-900", WindowWidth="200"),
            )
        ]
    )
    result, attempt = render(saved(dataset))
    image = result.images[0]
    assert np.array_equal(array_of(attempt).reshape(2, 256), frames + np.array([[-1000], [-500]]))
    assert (list(image.pixel_spacing_mm), image.slice_thickness_mm, image.certificate.unit) == (
        [0.5, 0.25],
        3.0,
        "HU",
    )
    assert (image.window.center, image.window.width) == (-900, 200)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("examples_ybr_color", (30, 240, 320, 3)),
        ("rtdose", (15, 10, 10)),
        ("SC_rgb_rle_2frame", (2, 100, 100, 3)),
        ("liver_1frame", (1, 512, 512)),
    ],
)
def test_all_frames_are_in_the_array_and_the_first_in_the_preview(
    name: str, shape: tuple[int, ...], render: Render
) -> None:
    _, attempt = render(wheel_file(name))
    assert array_of(attempt).shape == shape
    assert preview_of(attempt).shape == shape[1:]


def test_planar_configuration_makes_no_difference(render: Render) -> None:
    by_pixel = dcmread(wheel_file("examples_rgb_color"))
    by_plane = dcmread(wheel_file("examples_rgb_color"))
    by_plane.PlanarConfiguration = 1
    by_plane.PixelData = np.ascontiguousarray(by_pixel.pixel_array.transpose(2, 0, 1)).tobytes()
    result, attempt = render(saved(by_pixel), saved(by_plane))
    assert result.images[0].certificate.sha256 == result.images[1].certificate.sha256
    assert np.array_equal(array_of(attempt)[0], by_pixel.pixel_array)
    assert np.array_equal(preview_of(attempt), by_pixel.pixel_array)


def test_frames_that_are_fewer_or_more_than_the_header_says_are_refused(render: Render) -> None:
    _, attempt = render(
        edited("SC_rgb_rle_2frame", NumberOfFrames="3"),
        edited("SC_rgb_rle_2frame", NumberOfFrames="1"),
    )
    assert [outcome(attempt, number) for number in range(2)] == ["FAILED PIXELS_UNDECODABLE"] * 2


def test_an_rle_frame_of_several_fragments_is_refused(render: Render) -> None:
    dataset = dcmread(wheel_file("SC_rgb_rle_2frame"))
    dataset.PixelData = encapsulate(
        list(generate_frames(dataset.PixelData, number_of_frames=2)), has_bot=False
    )
    dataset.NumberOfFrames = 1
    _, attempt = render(saved(dataset))
    assert outcome(attempt) == "FAILED PIXELS_UNDECODABLE"


def fragmented(sizes: list[int], *, offsets: bool) -> bytes:
    """examples_ybr_color's first 3 frames, each cut into so many fragments."""
    dataset = dcmread(wheel_file("examples_ybr_color"))
    frames = list(generate_frames(dataset.PixelData, number_of_frames=30))[:3]
    table, items = b"", b""
    for frame, count in zip(frames, sizes, strict=True):
        table += len(items).to_bytes(4, "little")
        step = -(-len(frame) // count) + (-(-len(frame) // count)) % 2
        for start in range(0, len(frame), step):
            items += itemize_fragment(frame[start : start + step])
    dataset.NumberOfFrames = 3
    dataset.PixelData = itemize_fragment(table if offsets else b"") + items
    return saved(dataset)


@pytest.mark.parametrize("offsets", [True, False], ids=["offset table", "no offset table"])
def test_fragments_need_not_be_frames(offsets: bool, render: Render) -> None:
    result, _ = render(
        fragmented([1, 1, 1], offsets=offsets), fragmented([3, 1, 2], offsets=offsets)
    )
    assert len({image.certificate.sha256 for image in result.images}) == 1
    assert len(result.images) == 2


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("MR_small_jp2klossless", {"Rows": 32}),
        ("MR_small_jpeg_ls_lossless", {"Columns": 32}),
        ("SC_rgb_jpeg_dcmtk", {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2"}),
        ("SC_rgb_jpeg_gdcm", {"Rows": 99}),
        ("MR_small_RLE", {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}),
        ("693_J2KI", {"BitsStored": 12, "HighBit": 11}),
        ("MR_small_jp2klossless", {"PhotometricInterpretation": "XYB"}),
    ],
)
def test_a_code_stream_that_contradicts_the_header_is_refused(
    name: str, change: dict[str, Any], render: Render
) -> None:
    _, attempt = render(edited(name, **change))
    assert outcome(attempt) == "FAILED PIXELS_UNDECODABLE"


def test_frames_of_one_bit_may_start_anywhere_in_a_byte(render: Render) -> None:
    bits = np.random.default_rng(1).integers(0, 2, (5, 3, 5), np.uint8)
    dataset = dcmread(wheel_file("liver_1frame"))
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = 3, 5, 5
    dataset.PixelData = np.packbits(bits.ravel(), bitorder="little").tobytes()
    _, attempt = render(saved(dataset))
    assert np.array_equal(array_of(attempt), bits)


def test_memory_is_bounded_by_the_frame_whatever_their_number(tmp_path: Path) -> None:
    frames = np.arange(200, dtype="<i2").repeat(256 * 256)
    source = tmp_path / "source.dcm"
    source.write_bytes(
        saved(ramp(Rows=256, Columns=256, NumberOfFrames=200, PixelData=frames.tobytes()))
    )
    tracemalloc.start()
    rendering = render_file(
        open_dicom(source, tmp_path), tmp_path / "pixels.npy", Wanted(), tick=lambda: None
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (rendering.shape, rendering.maximum) == ((200, 256, 256), 199)
    assert peak < 20 * 256 * 256 * 2


def test_scratch_holds_the_files_of_one_item_at_a_time(render: Render) -> None:
    _, attempt = render(wheel_file("image_dfl"), wheel_file("CT_small"))
    assert not list(attempt.context.scratch.iterdir())


def test_float_pixel_data_is_rendered(render: Render) -> None:
    dataset = ramp(BitsAllocated=32)
    del dataset.PixelData
    dataset.FloatPixelData = np.linspace(-1, 1, 256, dtype="<f4").tobytes()
    _, attempt = render(saved(dataset))
    assert np.array_equal(array_of(attempt).ravel(), np.linspace(-1, 1, 256, dtype="<f4"))
    assert np.array_equal(preview_of(attempt).ravel(), np.rint(np.linspace(0, 255, 256)))
