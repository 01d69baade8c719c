"""TileSlide: which tiles are left of a slide, and which slides are refused."""

import hashlib
import struct
import zlib
from contextlib import closing
from io import BytesIO
from pathlib import Path
from threading import Barrier

import imagecodecs
import numpy as np
import pydicom
import pytest
import tifffile
from dicom_worker.operations.tile import tile_slide
from dicom_worker.photographs.refusals import RefusedError
from dicom_worker.pixels.codestream import DATA, jpeg_segments
from dicom_worker.slides.source import RUN_BYTES
from dicom_worker.slides.testing import GLASS, instance, stained, tiff
from dicom_worker.slides.tiff import Pyramid, confirm, jpeg, threads
from fluoro.v1.job_pb2 import Item
from fluoro.v1.slide_pb2 import TiledSlide, TileSlide
from fluoro_jobs.testing import Attempt, operate
from PIL import Image

SIDE = 128
TABLES = (0xC4, 0xDB)


def cut(folder: Path, data: bytes, **fields: float) -> tuple[TiledSlide | None, Item, Attempt]:
    request = TileSlide(**{"tile_size": SIDE, **fields})
    result, attempt = operate(tile_slide, request, folder, [data])
    (item,) = attempt.context.items.values()
    return next(iter(result.slides), None), item, attempt


def cut_well(folder: Path, data: bytes, **fields: float) -> tuple[TiledSlide, np.ndarray]:
    slide, item, attempt = cut(folder, data, **fields)
    assert slide, item
    pixels = np.frombuffer(attempt.read(slide.tiles_artifact), np.uint8)
    assert attempt.context.artifacts[slide.tiles_artifact].size_bytes == len(pixels)
    return slide, pixels.reshape(-1, slide.tile_size, slide.tile_size, 3)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"compression": "lzw", "predictor": True},
        {"compression": "zlib", "predictor": True, "tile": (64, 256)},
        {"compression": "jpeg"},
        {"compression": "jpeg2000"},
        {"tile": None, "rowsperstrip": 50},
    ],
    ids=["raw", "lzw", "deflate", "jpeg", "jpeg2000", "strips"],
)
def test_tiles_hold_what_tifffile_reads_of_the_same_place(
    tmp_path: Path, how: dict[str, object]
) -> None:
    data = tiff(stained(700, 900), **how)
    expected = np.full((768, 1024, 3), 255, np.uint8)
    expected[:700, :900] = tifffile.imread(BytesIO(data))
    slide, tiles = cut_well(tmp_path, data)
    assert (slide.rows, slide.columns, slide.microns_per_pixel) == (700, 900, 0.5)
    assert 0.2 < slide.tissue_share < 0.3
    assert {(tile.row, tile.column) for tile in slide.tiles} >= {(2, 3), (3, 4)}
    assert (0, 0) not in {(tile.row, tile.column) for tile in slide.tiles}
    assert len(tiles) == len(slide.tiles)
    for tile, pixels in zip(slide.tiles, tiles, strict=True):
        place = np.s_[tile.row * SIDE :, tile.column * SIDE :]
        np.testing.assert_array_equal(pixels, expected[place][:SIDE, :SIDE])
        assert hashlib.sha256(pixels.tobytes()).digest() == tile.sha256
    assert slide.stain.hematoxylin[0] > slide.stain.eosin[0]


@pytest.mark.parametrize("side", [SIDE, 96])
def test_rows_of_tiles_too_long_for_one_request_are_whole(tmp_path: Path, side: int) -> None:
    picture = np.tile(stained(160, 1100), (1, 45, 1))
    assert picture[:SIDE].nbytes > RUN_BYTES
    slide, tiles = cut_well(tmp_path, tiff(picture), tile_size=side, min_tissue=0)
    assert {tile.row for tile in slide.tiles} == ({0} if side == SIDE else {0, 1})
    assert max(tile.column for tile in slide.tiles) * side > RUN_BYTES // (SIDE * 3)
    padded = np.full((256, 49_536, 3), 255, np.uint8)
    padded[:160, :49_500] = picture
    for tile, pixels in zip(slide.tiles, tiles, strict=True):
        place = np.s_[tile.row * side :, tile.column * side :]
        np.testing.assert_array_equal(pixels, padded[place][:side, :side])


@pytest.mark.parametrize("tile", [SIDE, 96])
@pytest.mark.parametrize("how", [{}, {"sparse": True}, {"jpeg": True}], ids=str)
def test_a_dicom_slide_gives_the_tiles_of_its_matrix(
    tmp_path: Path, how: dict[str, bool], tile: int
) -> None:
    picture = stained(500, 700)
    slide, tiles = cut_well(tmp_path, instance(picture, tile=tile, **how))
    assert (slide.rows, slide.columns, slide.microns_per_pixel) == (500, 700, 0.5)
    padded = np.full((512, 768, 3), 255, np.uint8)
    padded[:500, :700] = picture
    for each, pixels in zip(slide.tiles, tiles, strict=True):
        place = np.s_[each.row * SIDE :, each.column * SIDE :]
        difference = np.abs(pixels.astype(int) - padded[place][:SIDE, :SIDE])
        assert difference.mean() < (6 if "jpeg" in how else 0.01)


@pytest.mark.parametrize("steps", [(1, 2, 4), (4, 1, 2)])
def test_of_a_pyramid_the_nearest_level_is_read_and_the_label_never(
    tmp_path: Path, steps: tuple[int, ...]
) -> None:
    picture, file = stained(1024, 1024), BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for step in steps:
            unit = 20_000 // step
            writer.write(
                picture[::step, ::step],
                tile=(128, 128),
                photometric="rgb",
                resolution=(unit, unit),
                resolutionunit="CENTIMETER",
            )
        # What a scanner took of the label, which names the patient; and as tiles, in its shape.
        label = np.zeros((128, 512, 3), np.uint8)
        label[...] = (225, 150, 190)
        writer.write(label, photometric="rgb", tile=(128, 128), description="label")
        writer.write(label, photometric="rgb", description="macro")
    for wanted, side in ((0, 1024), (0.4, 1024), (1.1, 512), (9, 256)):
        slide, _ = cut_well(tmp_path / str(wanted), file.getvalue(), microns_per_pixel=wanted)
        assert (slide.rows, slide.columns) == (side, side)
        assert slide.microns_per_pixel == pytest.approx(0.5 * 1024 / side)


@pytest.mark.parametrize("kind", ["LABEL", "OVERVIEW", "THUMBNAIL"])
def test_dicom_pictures_that_may_name_the_patient_are_skipped(tmp_path: Path, kind: str) -> None:
    data = instance(stained(256, 256), ImageType=["ORIGINAL", "PRIMARY", kind, "NONE"])
    _, item, attempt = cut(tmp_path, data)
    assert (item.state, item.reason) == (Item.STATE_SKIPPED, "NO_APPLICABLE_INPUT")
    assert not attempt.context.artifacts


def test_glass_and_grey_pen_are_no_tissue(tmp_path: Path) -> None:
    picture = np.full((512, 512, 3), 243, np.uint8)
    picture[100:300, 100:300] = 60
    _, item, attempt = cut(tmp_path, tiff(picture))
    assert (item.state, item.reason) == (Item.STATE_SKIPPED, "NO_APPLICABLE_INPUT")
    assert not attempt.context.artifacts


def broken() -> dict[str, tuple[bytes, str]]:
    picture = stained(512, 512)
    whole = tiff(picture, compression="jpeg")
    jpeg = imagecodecs.jpeg8_encode(np.zeros((4096, 4096, 3), np.uint8))
    bomb = zlib.compress(bytes(64 * 2**20), 9)
    dicom = pydicom.dcmread(BytesIO(instance(picture)))
    dicom.PerFrameFunctionalGroupsSequence = None
    return {
        "cut off": (whole[: len(whole) // 2], "PIXELS_UNDECODABLE"),
        "a tile with a JPEG of another size": (with_tile(jpeg, 7), "PIXELS_UNDECODABLE"),
        "a tile that swells": (with_tile(bomb, 8), "PIXELS_UNDECODABLE"),
        "a tile that ends early": (with_tile(zlib.compress(bytes(99)), 8), "PIXELS_UNDECODABLE"),
        "half a tile of zeros": (with_tile(torn(zeros=True), 7), "PIXELS_UNDECODABLE"),
        "half a tile": (with_tile(torn(zeros=False), 7), "PIXELS_UNDECODABLE"),
        "more pictures than levels": (
            several(*[(picture[::4, ::4], {})] * 64, (picture, {})),
            "IMAGE_TOO_LARGE",
        ),
        "a mask alone": (several((MASK, BLACK), (MASK, BLACK)), "IMAGE_UNSUPPORTED"),
        "a tile in the header": (in_header(), "PIXELS_UNDECODABLE"),
        "a million rows": (with_sides(1_000_000, 1_000_000), "IMAGE_TOO_LARGE"),
        "a row of tiles without end": (with_sides(400_000, 499_999), "IMAGE_TOO_LARGE"),
        "more tiles claimed than listed": (with_sides(4096, 4096), "PIXELS_UNDECODABLE"),
        "16 bits": (tiff(picture.astype(np.uint16)), "IMAGE_UNSUPPORTED"),
        "no TIFF": (b"II*\0" + bytes(200), "IMAGE_UNSUPPORTED"),
        "no slide": (b"hello" * 99, "NOT_DICOM"),
        "DICOM with tiles missing": (
            instance(picture, TotalPixelMatrixRows=900),
            "IMAGE_UNSUPPORTED",
        ),
        "DICOM of a million rows": (
            instance(picture, TotalPixelMatrixRows=1_000_000),
            "IMAGE_TOO_LARGE",
        ),
        "DICOM tiles that overlap": (
            instance(picture, sparse=True, TotalPixelMatrixColumns=128),
            "IMAGE_UNSUPPORTED",
        ),
    }


MASK = np.zeros((256, 256), np.uint8)
BLACK = {"photometric": "minisblack"}


def several(*pictures: tuple[np.ndarray, dict[str, object]]) -> bytes:
    """A TIFF of these pictures, in tiles, each with arguments of its own for tifffile."""
    file = BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for picture, how in pictures:
            writer.write(picture, **{"tile": (128, 128), "photometric": "rgb", **how})
    return file.getvalue()


def torn(*, zeros: bool) -> bytes:
    """A tile of JPEG that ends in its middle, or goes on there with zeros."""
    noise = np.random.default_rng(1).integers(0, 256, (128, 128, 3), np.uint8)
    whole = bytes(imagecodecs.jpeg8_encode(noise, level=90))
    middle = len(whole) // 2
    return whole[:middle] + bytes(middle if zeros else 0) + b"\xff\xd9"


@pytest.mark.parametrize("how", [{}, {"compression": "jpeg"}], ids=str)
def test_neither_masks_nor_labels_stand_for_the_slide(
    tmp_path: Path, how: dict[str, object]
) -> None:
    picture, label = stained(512, 512), stained(900, 1200)
    scale = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER", **how}
    data = several(
        (picture, scale),
        (MASK, BLACK),
        (picture[::2, ::2], {"subfiletype": 1, **how}),
        (label, {"subfiletype": 1, **how}),
    )
    for wanted, side in ((0, 512), (1, 256)):
        slide, _ = cut_well(tmp_path / str(wanted), data, microns_per_pixel=wanted)
        assert (slide.rows, slide.columns) == (side, side)


def test_a_flat_tile_with_tables_of_its_own_page_is_no_hole() -> None:
    file = BytesIO()
    flat = np.full((256, 256, 3), GLASS, np.uint8)
    flat[:8, :8] = stained(32, 32)[8:16, 8:16]
    Image.fromarray(flat).save(file, "JPEG", optimize=True)
    whole = file.getvalue()
    kept = {True: b"", False: b""}
    for marker, start, end in jpeg_segments(whole):
        head = b"" if marker == DATA else whole[start - 4 : start]
        kept[marker in TABLES] += head + whole[start:end]
    tables, tile = (b"\xff\xd8" + kept[each] + b"\xff\xd9" for each in (True, False))
    assert bytes(64) in tile
    out = np.empty_like(flat)
    jpeg(tile, out, tables, "YCBCR")
    assert np.abs(out.astype(int) - flat)[16:].max() < 5
    with pytest.raises(RefusedError):
        confirm(whole[: len(whole) // 2] + b"\xff\xd9", flat.shape, "YCBCR")


def with_tile(data: bytes, compression: int) -> bytes:
    """A slide of which the first tile is this."""
    kinds = {7: "jpeg", 8: "zlib"}
    slide = bytearray(tiff(stained(512, 512), compression=kinds[compression], predictor=False))
    tags = tifffile.TiffFile(BytesIO(bytes(slide))).pages[0].tags
    for name, value in (("TileOffsets", len(slide)), ("TileByteCounts", len(data))):
        code, most = {3: ("<H", 2**16 - 1), 4: ("<I", 2**32 - 1)}[int(tags[name].dtype)]
        struct.pack_into(code, slide, tags[name].valueoffset, min(value, most))
    return bytes(slide) + data


def in_header() -> bytes:
    """A slide without compression whose first tile begins where the file does."""
    slide = bytearray(tiff(stained(512, 512)))
    offsets = tifffile.TiffFile(BytesIO(bytes(slide))).pages[0].tags["TileOffsets"]
    struct.pack_into("<I", slide, offsets.valueoffset, 0)
    return bytes(slide)


def with_sides(rows: int, columns: int) -> bytes:
    """A slide that claims to be so large."""
    slide = bytearray(tiff(stained(512, 512)))
    tags = tifffile.TiffFile(BytesIO(bytes(slide))).pages[0].tags
    for name, value in (("ImageLength", rows), ("ImageWidth", columns)):
        at = tags[name].valueoffset
        slide[at - 6 : at - 4] = struct.pack("<H", 4)  # the type: 32 bits, which the field holds
        struct.pack_into("<I", slide, at, value)
    return bytes(slide)


@pytest.mark.parametrize("name", broken())
def test_hostile_slides_are_refused_by_a_reason(tmp_path: Path, name: str) -> None:
    data, reason = broken()[name]
    _, item, attempt = cut(tmp_path, data)
    assert (item.state, item.reason) == (Item.STATE_FAILED, reason), item.message
    assert not attempt.context.artifacts


def test_nobody_writes_into_the_shared_memory_once_a_tile_is_refused(tmp_path: Path) -> None:
    path, side = tmp_path / "slide.tif", 2048
    slide = bytearray(
        tiff(np.tile(stained(256, 256), (8, 16, 1)), compression="jpeg", tile=(side, side))
    )
    sizes = tifffile.TiffFile(BytesIO(bytes(slide))).pages[0].tags["TileByteCounts"]
    struct.pack_into("<I", slide, sizes.valueoffset, 3)
    path.write_bytes(slide)
    room = bytearray(side * side * 2 * 3)
    with closing(Pyramid(path, 0)) as pyramid, pytest.raises(RefusedError):
        pyramid.tiles(0, 0, 2, memoryview(room))
    room[:] = bytes(len(room))
    every = Barrier(threads()._max_workers)
    # All of them wait here, so none is busy any more.
    list(threads().map(lambda _: every.wait(60), range(every.parties)))
    assert not any(room)
