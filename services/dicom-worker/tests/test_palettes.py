"""PALETTE COLOR: indices become colours, as deep as the tables have them."""

import numpy as np
import pytest
from dicom_worker import limits
from dicom_worker.testing import Render, array_of, outcome, preview_of, saved, wheel_file
from pydicom import Dataset, dcmread


def indices() -> Dataset:
    """An image whose one row holds 0, 1, 2 …, 255, without its palette."""
    dataset = dcmread(wheel_file("CT_small"))
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "PALETTE COLOR", 0
    dataset.Rows, dataset.Columns = 1, 256
    dataset.PixelData = np.arange(256, dtype="<i2").tobytes()
    return dataset


def test_a_palette_of_16_bits_and_one_first_mapped_above_zero_become_rgb(render: Render) -> None:
    dataset = indices()
    levels = (np.arange(200) * 300).astype("<u2")
    for channel, table in (
        ("Red", levels),
        ("Green", levels[::-1]),
        ("Blue", np.zeros(200, "<u2")),
    ):
        dataset.add_new(f"{channel}PaletteColorLookupTableDescriptor", "US", [200, 20, 16])
        dataset.add_new(f"{channel}PaletteColorLookupTableData", "OW", table.tobytes())
    result, attempt = render(saved(dataset))
    index = np.clip(np.arange(256) - 20, 0, 199)
    expected = np.stack([levels[index], levels[::-1][index], np.zeros(256)], axis=-1)
    assert np.array_equal(array_of(attempt)[0, 0], expected)
    assert (array_of(attempt).dtype, result.images[0].certificate.bits_stored) == (np.uint16, 16)
    assert np.array_equal(preview_of(attempt)[0], expected.astype(np.uint16) >> 8)


@pytest.mark.parametrize(("times", "said"), [(256, 8), (256, 16), (257, 8), (257, 16), (1, 8)])
def test_a_palette_of_8_bits_in_words_gives_8_bits(times: int, said: int, render: Render) -> None:
    dataset = indices()
    levels = np.arange(256)
    for channel, table in (("Red", levels), ("Green", levels[::-1]), ("Blue", levels // 2)):
        dataset.add_new(f"{channel}PaletteColorLookupTableDescriptor", "US", [256, 0, said])
        words = (table * times).astype("<u2").tobytes()
        dataset.add_new(f"{channel}PaletteColorLookupTableData", "OW", words)
    result, attempt = render(saved(dataset))
    expected = np.stack([levels, levels[::-1], levels // 2], axis=-1)
    assert np.array_equal(array_of(attempt)[0, 0], expected)
    # Bits Stored of the indices is 16: white would be 65,535.
    assert (array_of(attempt).dtype, result.images[0].certificate.bits_stored) == (np.uint8, 8)
    assert np.array_equal(preview_of(attempt)[0], expected)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_segmented_palette_is_expanded(bits: int, render: Render) -> None:
    dataset = dcmread(wheel_file("examples_palette"))
    for channel in ("Red", "Green", "Blue"):
        delattr(dataset, f"{channel}PaletteColorLookupTableData")
        dataset.add_new(f"{channel}PaletteColorLookupTableDescriptor", "US", [256, 0, bits])
    top = (1 << bits) - 1
    # PS3.3 C.7.9.2: one discrete entry, a linear segment up to `top`; and the other way round.
    rising, falling = [0, 1, 0, 1, 255, top], [0, 1, top, 1, 255, 0]
    for channel, segments in {"Red": rising, "Green": falling, "Blue": rising}.items():
        data = np.array(segments, "u1" if bits == 8 else "<u2").tobytes()
        dataset.add_new(f"Segmented{channel}PaletteColorLookupTableData", "OW", data)
    stored = np.arange(256, dtype="u1").reshape(16, 16)
    dataset.Rows = dataset.Columns = 16
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelData = stored.tobytes()
    _, attempt = render(saved(dataset))
    shown = preview_of(attempt).astype(int)
    assert np.abs(shown[..., 0] - stored).max() <= 1
    assert np.abs(shown[..., 1] - (255 - stored.astype(int))).max() <= 1
    assert np.array_equal(shown[..., 2], shown[..., 0])


def test_a_palette_of_signed_pixels_begins_below_zero_whatever_its_vr_says(render: Render) -> None:
    dataset = dcmread(wheel_file("CT_small"))
    dataset.Rows, dataset.Columns, dataset.PhotometricInterpretation = 1, 4, "PALETTE COLOR"
    dataset.PixelData = np.arange(-2, 2, dtype="<i2").tobytes()
    for channel in ("Red", "Green", "Blue"):
        dataset.add_new(f"{channel}PaletteColorLookupTableDescriptor", "US", [4, 65534, 16])
        entries = np.arange(4, dtype="<u2") << 8
        dataset.add_new(f"{channel}PaletteColorLookupTableData", "OW", entries.tobytes())
    assert preview_of(render(saved(dataset))[1])[0, :, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("step", "bits"), [(251, 16), (257, 8)])
def test_a_palette_counts_as_large_as_its_colours(
    step: int, bits: int, render: Render, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = indices()
    levels = (np.arange(256) * step).astype("<u2")
    for channel in ("Red", "Green", "Blue"):
        dataset.add_new(f"{channel}PaletteColorLookupTableDescriptor", "US", [256, 0, 16])
        dataset.add_new(f"{channel}PaletteColorLookupTableData", "OW", levels.tobytes())
    size = int(dataset.Rows) * int(dataset.Columns) * 3 * bits // 8
    monkeypatch.setattr(limits, "ARRAY_LIMIT_BYTES", size)
    result, _ = render(saved(dataset))
    assert result.images[0].certificate.bits_stored == bits
    monkeypatch.setattr(limits, "ARRAY_LIMIT_BYTES", size - 1)
    assert outcome(render(saved(dataset))[1]) == "FAILED IMAGE_TOO_LARGE"
