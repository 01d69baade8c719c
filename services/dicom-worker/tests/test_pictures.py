"""Pictures as files: formats, thumbnails, animations, pictures of frames, contact sheets."""

import io
from typing import Any

import numpy as np
import pytest
from dicom_worker import limits
from dicom_worker.pixels import animation
from dicom_worker.testing import Render, array_of, edited, preview_of, saved, wheel_file
from fluoro.v1.dicom_pb2 import Animation, ContactSheetLayout, FrameRange, RenderDicom
from fluoro_jobs.testing import Attempt
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread

US = wheel_file("examples_ybr_color")
"""30 frames of 240 x 320 in colour, Frame Time 33.33 ms."""


def picture(attempt: Attempt, name: str) -> Image.Image:
    return Image.open(io.BytesIO(attempt.read(name)))


def rgb(image: Image.Image) -> NDArray[np.int64]:
    return np.asarray(image.convert("RGB")).astype(np.int64)


@pytest.mark.parametrize(
    ("format_", "name", "quality"),
    [("JPEG", "preview-0000.jpg", 90), ("WEBP", "preview-0000.webp", 90), ("WEBP", "", 100)],
)
def test_previews_come_in_three_formats(
    format_: str, name: str, quality: int, render: Render
) -> None:
    result, attempt = render(US, format=f"PICTURE_FORMAT_{format_}", quality=quality)
    shown = picture(attempt, result.images[0].preview)
    assert (shown.format, shown.size) == (format_, (320, 240))
    assert name in ("", result.images[0].preview)
    difference = np.abs(rgb(shown) - array_of(attempt)[0])
    assert difference.mean() < 3
    assert quality < 100 or not difference.any()
    media_type = attempt.context.artifacts[result.images[0].preview].media_type
    assert media_type == f"image/{format_.lower()}"


def test_a_thumbnail_has_the_longest_side_asked_for_and_small_images_stay(render: Render) -> None:
    result, attempt = render(US, wheel_file("MR_small"), thumbnail_px=100)
    sizes = [picture(attempt, image.thumbnail).size for image in result.images]
    assert sizes == [(100, 75), (64, 64)]
    assert attempt.context.artifacts[result.images[0].thumbnail].role == "thumbnail"


def test_the_frames_asked_for_are_in_pictures_and_all_are_in_the_array(render: Render) -> None:
    result, attempt = render(US, every_frame=True, frames=FrameRange(first=3, last=20, step=8))
    image = result.images[0]
    assert [(each.frame, each.name) for each in image.frame_pictures] == [
        (3, "frame-3-0000.png"),
        (11, "frame-11-0000.png"),
        (19, "frame-19-0000.png"),
    ]
    array = array_of(attempt)
    assert array.shape[0] == 30
    for each in image.frame_pictures:
        assert np.array_equal(rgb(picture(attempt, each.name)), array[each.frame - 1])
    assert image.preview_frame == 3
    assert np.array_equal(preview_of(attempt), array[2])


@pytest.mark.parametrize(
    ("format_", "suffix"), [(Animation.FORMAT_WEBP, ".webp"), (Animation.FORMAT_GIF, ".gif")]
)
def test_an_animation_has_the_frames_their_size_and_their_time(
    format_: Animation.Format, suffix: str, render: Render
) -> None:
    result, attempt = render(
        US,
        wheel_file("MR_small"),
        animation=Animation(format=format_, longest_side_px=160),
    )
    several, single = result.images
    assert (several.animation, single.animation) == (f"animation-0000{suffix}", "")
    moving = picture(attempt, several.animation)
    assert (moving.n_frames, moving.size, moving.info["loop"]) == (30, (160, 120), 0)
    array = array_of(attempt)
    for frame in (0, 17, 29):
        moving.seek(frame)
        small = Image.fromarray(array[frame]).resize((160, 120), Image.Resampling.LANCZOS)
        assert np.abs(rgb(moving) - rgb(small)).mean() < 4
        assert abs(moving.info["duration"] - 33) <= 3


def test_a_grey_animation_does_not_flicker_and_says_how_long_its_frames_last(
    render: Render,
) -> None:
    result, attempt = render(
        wheel_file("rtdose"), animation=Animation(format=Animation.FORMAT_GIF, frame_ms=250)
    )
    moving = picture(attempt, result.images[0].animation)
    window = result.images[0].window
    values = array_of(attempt).astype(float)
    for frame in range(15):
        moving.seek(frame)
        assert moving.info["duration"] == 250
        ramp = (values[frame] - (window.center - 0.5)) / (window.width - 1) + 0.5
        assert np.abs(rgb(moving)[..., 0] - np.clip(ramp * 255, 0, 255)).max() <= 1


def test_a_long_animation_is_thinned(render: Render) -> None:
    dataset = dcmread(wheel_file("MR_small"))
    dataset.Rows = dataset.Columns = 8
    dataset.NumberOfFrames = frames = animation.FRAME_LIMIT + 100
    dataset.PixelData = np.arange(frames, dtype="<i2").repeat(64).tobytes()
    result, attempt = render(saved(dataset), animation=Animation())
    assert picture(attempt, result.images[0].animation).n_frames == animation.FRAME_LIMIT
    assert array_of(attempt).shape[0] == frames


def slice_at(position: float, number: int, series: str = "1.2.3", level: int = 0) -> bytes:
    return edited(
        "CT_small",
        ImagePositionPatient=[0, 0, position],
        ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
        InstanceNumber=number,
        SeriesInstanceUID=series,
        SOPInstanceUID=f"1.2.3.{number}",
        PixelData=np.full(128 * 128, level, "<i2").tobytes(),
    )


def test_a_contact_sheet_of_each_series_is_in_the_order_of_space(render: Render) -> None:
    result, attempt = render(
        slice_at(20, 1, level=1000),
        slice_at(-5, 2, level=0),
        wheel_file("MR_small"),
        slice_at(7, 3, level=500),
        wheel_file("rtplan"),
        contact_sheet=ContactSheetLayout(tile_px=32, columns=2),
        window=(-500, 1100),
    )
    ct, mr = result.contact_sheets
    assert [(tile.item, tile.frame) for tile in ct.tiles] == [("1", 1), ("3", 1), ("0", 1)]
    assert (ct.series_instance_uid, ct.columns, mr.columns) == ("1.2.3", 2, 1)
    pixels = np.asarray(picture(attempt, ct.name))
    assert pixels.shape == (64, 64)
    corners = [pixels[16, 16], pixels[16, 48], pixels[48, 16], pixels[48, 48]]
    assert corners[0] < corners[1] < corners[2]
    assert corners[3] == 0
    artifact = attempt.context.artifacts[ct.name]
    assert (artifact.role, artifact.media_type) == ("contact-sheet", "image/png")


@pytest.mark.parametrize(
    "missing", ["ImagePositionPatient", "ImageOrientationPatient"], ids=["place", "orientation"]
)
def test_without_a_place_the_instance_number_orders_a_sheet(missing: str, render: Render) -> None:
    changes: dict[str, Any] = {missing: None}
    result, _ = render(
        edited("CT_small", InstanceNumber=10, **changes),
        edited("CT_small", InstanceNumber=9, **changes),
        contact_sheet=ContactSheetLayout(),
    )
    assert [tile.item for tile in result.contact_sheets[0].tiles] == ["1", "0"]


def test_a_sheet_is_bounded_and_spread_over_the_frames(render: Render) -> None:
    result, attempt = render(
        US, contact_sheet=ContactSheetLayout(tile_px=64, max_tiles=4), frames=FrameRange(first=2)
    )
    found = result.contact_sheets[0]
    assert [tile.frame for tile in found.tiles] == [2, 11, 20, 30]
    assert picture(attempt, found.name).size == (128, 128)


@pytest.mark.parametrize(("name", "longest"), [("WEBP", 16_383), ("JPEG", 65_500)])
def test_what_a_format_cannot_hold_is_refused_and_costs_one_item(
    name: str, longest: int, render: Render
) -> None:
    def tall(rows: int) -> bytes:
        pixels = bytes(2 * rows)
        return edited("CT_small", Rows=rows, Columns=1, PixelData=pixels)

    format_ = RenderDicom.PictureFormat.Value(f"PICTURE_FORMAT_{name}")
    result, attempt = render(tall(longest + 1), tall(longest), format=format_)
    assert len(result.images) == 1
    refused, held = (attempt.context.items[number] for number in range(2))
    assert (refused.reason, held.reason) == ("IMAGE_TOO_LARGE", "")
    assert "PNG" in refused.message


def test_an_item_whose_tiles_are_too_many_leaves_nothing(
    render: Render, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "TILES_LIMIT_BYTES", 128 * 128)
    result, attempt = render(
        wheel_file("CT_small"), wheel_file("CT_small"), contact_sheet=ContactSheetLayout()
    )
    assert [image.input for image in result.images] == [0]
    assert attempt.context.items[1].reason == "IMAGE_TOO_LARGE"
    assert not any("0001" in name for name in attempt.context.artifacts)
