"""Volumes of colours: RGB24 of NIfTI as nibabel reads it, and NPY with three channels."""

import gzip
import io
import json
from pathlib import Path
from typing import Any, Final

import nibabel
import numpy as np
import pytest
from dicom_worker.studies.testing import OBLIQUE, ct_slice
from dicom_worker.testing import Convert, outcome, saved, wheel_file
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.uid import RLELossless

COLOURS: Final = np.arange(4 * 6 * 5 * 3, dtype=np.uint8).reshape(4, 6, 5, 3) * 7
"""(slices, rows, columns, channels), all different."""
LEVELS: Final = np.arange(256, dtype="<u2")


def colour_slice(number: int, cells: NDArray[Any] | None = None, **changes: Any) -> Any:
    """A slice in colour, of the depth of its cells."""
    pixels = COLOURS[number] if cells is None else cells
    bits = pixels.dtype.itemsize * 8
    described = {
        "SamplesPerPixel": 3,
        "PhotometricInterpretation": "RGB",
        "PlanarConfiguration": 0,
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "RescaleSlope": None,
        "RescaleIntercept": None,
    }
    return ct_slice(number, orientation=OBLIQUE, pixels=pixels, **described | changes)


def palette_slice(
    number: int, cells: NDArray[Any], *tables: NDArray[Any], bits: int = 16
) -> Dataset:
    """A slice of indices. tables: red, green and blue, of 256 words."""
    described = {"SamplesPerPixel": 1, "PhotometricInterpretation": "PALETTE COLOR"}
    dataset: Dataset = colour_slice(number, cells, **described)
    for channel, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        dataset.add_new(f"{channel}PaletteColorLookupTableDescriptor", "US", [256, 0, bits])
        dataset.add_new(f"{channel}PaletteColorLookupTableData", "OW", table.tobytes())
    return dataset


def channels(image: Any) -> NDArray[Any]:
    """(slices, rows, columns, channels) of an RGB24 image."""
    voxels = np.asarray(image.dataobj)
    return np.stack([voxels[each] for each in "RGB"], axis=-1).transpose(2, 1, 0, 3)


def test_colours_of_bytes_become_rgb24_and_an_array_with_channels(
    convert: Convert, tmp_path: Path
) -> None:
    datasets = [colour_slice(number) for number in range(4)]
    datasets[2].compress(RLELossless, generate_instance_uid=False)
    files = [saved(each) for each in reversed(datasets)]
    result, attempt = convert(*files)
    [volume] = result.volumes
    path = tmp_path / volume.volume
    path.write_bytes(attempt.read(volume.volume))
    image = nibabel.load(path)
    assert image.header.get_data_dtype() == np.dtype([(each, "u1") for each in "RGB"])
    assert np.array_equal(channels(image), COLOURS)
    assert np.allclose(image.affine, np.reshape(volume.affine, (4, 4)), atol=1e-4)

    result, attempt = convert(*files, npy={})
    [volume] = result.volumes
    array = np.load(io.BytesIO(attempt.read(volume.volume)), allow_pickle=False)
    assert np.array_equal(array, COLOURS)
    assert (*volume.certificate.shape, volume.certificate.dtype) == (4, 6, 5, 3, "|u1")
    facts = json.loads(attempt.read(volume.geometry))
    assert facts["axes"] == ["slice", "row", "column", "channel"]
    assert (facts["shape"], facts["unit"]) == ([4, 6, 5, 3], "1")


def test_deeper_colours_keep_their_depth_in_an_array_and_nifti_is_refused(convert: Convert) -> None:
    deep = COLOURS.astype(np.uint16) * 257
    files = [saved(colour_slice(number, deep[number])) for number in range(4)]
    result, attempt = convert(*files, npy={})
    array = np.load(io.BytesIO(attempt.read(result.volumes[0].volume)), allow_pickle=False)
    assert np.array_equal(array, deep)
    assert array.dtype == np.uint16
    _, attempt = convert(*files)
    assert outcome(attempt) == "FAILED CHOICE_UNAVAILABLE"
    # Of two depths, one would be 256 times as bright as the other.
    _, attempt = convert(*files[:3], saved(colour_slice(3)), npy={})
    assert outcome(attempt) == "FAILED VOLUME_IRREGULAR"


@pytest.mark.parametrize("high_bit", [7, 15])
def test_colours_of_8_bits_in_cells_of_16_are_those_of_8(high_bit: int, convert: Convert) -> None:
    cells = COLOURS.astype(np.uint16) << (high_bit - 7)
    wide = {"BitsStored": 8, "HighBit": high_bit}
    files = [saved(colour_slice(number, cells[number], **wide)) for number in range(3)]
    files.append(saved(colour_slice(3)))
    result, attempt = convert(*files)
    data = gzip.decompress(attempt.read(result.volumes[0].volume))
    assert np.array_equal(channels(nibabel.Nifti1Image.from_bytes(data)), COLOURS)
    result, attempt = convert(*files, npy={})
    array = np.load(io.BytesIO(attempt.read(result.volumes[0].volume)), allow_pickle=False)
    assert np.array_equal(array, COLOURS)
    assert array.dtype == np.uint8


@pytest.mark.parametrize("target", ["nifti", "npy"])
def test_indices_of_a_palette_become_its_colours(target: str, convert: Convert) -> None:
    source = dcmread(wheel_file("examples_palette"))
    table = np.stack(
        [
            np.frombuffer(source[f"{name}PaletteColorLookupTableData"].value, "<u2") >> 8
            for name in ("Red", "Green", "Blue")
        ],
        axis=-1,
    )
    cells = np.arange(2 * 6 * 5, dtype=np.uint8).reshape(2, 6, 5)
    files = []
    for number in range(2):
        described = {"SamplesPerPixel": 1, "PhotometricInterpretation": "PALETTE COLOR"}
        dataset = colour_slice(number, cells[number], **described)
        for element in source:
            if "Palette" in element.keyword:
                dataset.add(element)
        files.append(saved(dataset))
    result, attempt = convert(*files, **{target: {}})
    data = attempt.read(result.volumes[0].volume)
    if target == "npy":
        array = np.load(io.BytesIO(data), allow_pickle=False)
    else:
        array = channels(nibabel.Nifti1Image.from_bytes(gzip.decompress(data)))
    assert np.array_equal(array, table[cells])


def test_a_palette_of_16_bits_keeps_its_depth_in_an_array_and_nifti_is_refused(
    convert: Convert,
) -> None:
    levels = LEVELS * 251
    cells = np.arange(2 * 6 * 5, dtype=np.uint8).reshape(2, 6, 5)
    files = [
        saved(palette_slice(number, cells[number], levels, levels[::-1], levels))
        for number in range(2)
    ]
    result, attempt = convert(*files, npy={})
    array = np.load(io.BytesIO(attempt.read(result.volumes[0].volume)), allow_pickle=False)
    expected = np.stack([levels[cells], levels[::-1][cells], levels[cells]], axis=-1)
    assert np.array_equal(array, expected)
    assert result.volumes[0].certificate.bits_stored == 16
    _, attempt = convert(*files)
    assert outcome(attempt) == "FAILED CHOICE_UNAVAILABLE"


@pytest.mark.parametrize(
    ("narrow", "said"),
    [
        (np.zeros(256, "<u2"), 16),
        (LEVELS << 8, 16),
        (LEVELS * 257, 16),
        (LEVELS, 8),
    ],
    ids=["black", "upper byte", "byte twice", "8 bits"],
)
def test_the_depth_of_palettes_is_that_of_the_series_whatever_one_slice_holds(
    narrow: NDArray[Any], said: int, convert: Convert
) -> None:
    deep = LEVELS * 251
    cells = np.arange(2 * 6 * 5, dtype=np.uint8).reshape(2, 6, 5)
    files = [
        saved(palette_slice(0, cells[0], deep, deep, deep)),
        saved(palette_slice(1, cells[1], narrow, narrow, narrow, bits=said)),
    ]
    result, attempt = convert(*files, npy={})
    array = np.load(io.BytesIO(attempt.read(result.volumes[0].volume)), allow_pickle=False)
    second = narrow * 257 if said == 8 else narrow
    assert array.dtype == np.uint16
    assert np.array_equal(array[..., 0], np.stack([deep[cells[0]], second[cells[1]]]))
    assert result.volumes[0].certificate.bits_stored == 16
    _, attempt = convert(*files)
    assert outcome(attempt) == "FAILED CHOICE_UNAVAILABLE"
