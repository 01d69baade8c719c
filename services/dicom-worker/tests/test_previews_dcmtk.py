"""The preview is what DCMTK's dcm2pnm shows, within one grey value."""

from pathlib import Path

import numpy as np
import pytest
from dicom_worker.testing import Dcmtk, Render, edited, preview_of, saved, wheel_file
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence


def assert_same(
    render: Render,
    dcmtk: Dcmtk,
    data: bytes,
    folder: Path,
    *options: str,
    window: tuple[float, float] | None = None,
) -> None:
    source = folder / "source.dcm"
    source.write_bytes(data)
    _, attempt = render(source, window=window)
    theirs = np.asarray(Image.open(dcmtk("dcm2pnm", "-O", *options, source)))
    ours = preview_of(attempt)
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1
    assert ours.min() != ours.max()


WITH_WINDOW = [
    "MR_small",
    "MR_small_RLE",
    "MR_small_bigendian",
    "MR_small_implicit",
    "examples_overlay",
]
WITHOUT_WINDOW = ["CT_small", "image_dfl", "rtdose"]


@pytest.mark.parametrize("name", WITH_WINDOW)
def test_with_the_window_of_the_file(
    name: str, render: Render, dcmtk: Dcmtk, tmp_path: Path
) -> None:
    assert_same(render, dcmtk, wheel_file(name).read_bytes(), tmp_path, "+Wi", "1")


@pytest.mark.parametrize("name", WITHOUT_WINDOW)
def test_without_a_window_over_the_whole_range(
    name: str, render: Render, dcmtk: Dcmtk, tmp_path: Path
) -> None:
    assert_same(render, dcmtk, wheel_file(name).read_bytes(), tmp_path, "+Wm")


@pytest.mark.parametrize("window", [(40, 400), (-600, 1500), (100, 1), (0, 2)])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_with_the_window_of_the_request(
    window: tuple[float, float], photometric: str, render: Render, dcmtk: Dcmtk, tmp_path: Path
) -> None:
    data = edited("CT_small", PhotometricInterpretation=photometric)
    assert_same(render, dcmtk, data, tmp_path, "+Ww", str(window[0]), str(window[1]), window=window)


def test_with_a_sigmoid(render: Render, dcmtk: Dcmtk, tmp_path: Path) -> None:
    assert_same(
        render, dcmtk, edited("MR_small", VOILUTFunction="SIGMOID"), tmp_path, "+Wi", "1", "+Wfs"
    )


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_with_a_voi_table_after_a_modality_table(
    photometric: str, render: Render, dcmtk: Dcmtk, tmp_path: Path
) -> None:
    dataset = dcmread(wheel_file("MR_small"))
    modality, voi = Dataset(), Dataset()
    modality.LUTDescriptor, modality.ModalityLUTType = [2000, 100, 16], "US"
    modality.add_new("LUTData", "US", [2 * value for value in range(2000)])
    voi.LUTDescriptor = [4000, 0, 12]
    voi.add_new("LUTData", "US", [int(4095 * (value / 3999) ** 0.5) for value in range(4000)])
    dataset.PhotometricInterpretation = photometric
    dataset.ModalityLUTSequence, dataset.VOILUTSequence = Sequence([modality]), Sequence([voi])
    assert_same(render, dcmtk, saved(dataset), tmp_path, "+Wl", "1")


@pytest.mark.parametrize(
    "name",
    ["examples_rgb_color", "examples_palette", "SC_rgb_small_odd", "ExplVR_BigEnd", "SC_rgb_rle"],
)
def test_of_colour(name: str, render: Render, dcmtk: Dcmtk, tmp_path: Path) -> None:
    assert_same(render, dcmtk, wheel_file(name).read_bytes(), tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "SC_rgb_jpeg_dcmtk",
        "SC_rgb_dcmtk_+eb+cr",
        "SC_rgb_dcmtk_+eb+cy+n1",
        "SC_jpeg_no_color_transform_2",
    ],
)
def test_of_lossy_colour_within_what_decoders_differ_by(
    name: str, render: Render, dcmtk: Dcmtk
) -> None:
    _, attempt = render(wheel_file(name))
    theirs = np.asarray(Image.open(dcmtk("dcmj2pnm", wheel_file(name))))
    assert np.abs(preview_of(attempt).astype(int) - theirs.astype(int)).max() <= 4
