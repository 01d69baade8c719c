"""ImportImages: the right pixels or a refusal, and nothing of what a file tells beside them."""

import io
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from dicom_worker.limits import MIB
from dicom_worker.operations.import_images import import_images
from dicom_worker.photographs import importing
from dicom_worker.photographs.decoding import Pictures
from dicom_worker.photographs.refusals import RefusedError
from dicom_worker.photographs.testing import (
    COLUMNS,
    HEIC,
    HEIC_10,
    LOSSLESS,
    NAME,
    ROWS,
    STORED,
    chunk,
    exif,
    gradient,
    png,
    saved,
    segment,
    tiff,
    with_property,
)
from dicom_worker.pixels.sandbox import Sandbox
from dicom_worker.testing import array_of, outcome, preview_of, wheel_file
from fluoro.v1.dicom_pb2 import PixelCertificate
from fluoro.v1.photograph_pb2 import (
    ImportedImage,
    ImportImages,
    ImportImagesResult,
    RemovedMetadata,
)
from fluoro_jobs.testing import Attempt, operate
from imagecodecs import cms_profile, cms_transform, png_encode
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import ImageFileDirectory_v2

Import = Callable[..., tuple[ImportImagesResult, Attempt]]
FORMATS = [*LOSSLESS, "JPEG"]
RGB = gradient()


@pytest.fixture
def take_in(tmp_path: Path) -> Import:
    def run(*inputs: bytes | Path) -> tuple[ImportImagesResult, Attempt]:
        return operate(import_images, ImportImages(), tmp_path, inputs)

    return run


def counts(image: ImportedImage) -> dict[str, int]:
    return {
        RemovedMetadata.Kind.Name(each.kind).removeprefix("KIND_"): each.count
        for each in image.removed
    }


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_stands_upright_however_its_file_says_that_it_is_stored(
    take_in: Import, orientation: int
) -> None:
    picture = Image.fromarray(RGB)
    stored = picture.transpose(STORED[orientation]) if orientation > 1 else picture
    wide = np.asarray(stored).astype(np.uint16) * 257
    files = [
        saved(stored, format_, exif=exif(orientation), **options)
        for format_, options in LOSSLESS.items()
    ]
    # Pillow turns TIFF by itself, and imagecodecs does not: both must be turned once.
    block = exif(orientation).tobytes().removeprefix(b"Exif\0\0")
    files.append(png_encode(wide)[:33] + chunk(b"eXIf", block) + png_encode(wide)[33:])
    files.append(saved(stored, "JPEG", quality=100, subsampling=0, exif=exif(orientation)))
    result, attempt = take_in(*files)
    assert [each.orientation for each in result.images] == [orientation] * 5
    for number in range(3):
        assert np.array_equal(array_of(attempt, number)[0], RGB)
        assert np.array_equal(preview_of(attempt, number), RGB)
    assert np.array_equal(array_of(attempt, 3)[0], RGB.astype(np.uint16) * 257)
    assert np.abs(array_of(attempt, 4)[0].astype(int) - RGB).max() < 8


def test_a_heic_is_turned_and_mirrored_as_its_container_says_and_not_as_exif_does(
    take_in: Import,
) -> None:
    red, green, blue, white = (200, 40, 40), (40, 200, 40), (40, 40, 200), (230, 230, 230)
    corners = {
        b"": (red, green, blue, white),
        b"\0\0\0\x09irot\1": (green, white, red, blue),
        b"\0\0\0\x09irot\2": (white, blue, green, red),
        b"\0\0\0\x09imir\1": (green, red, white, blue),
    }
    result, attempt = take_in(*(with_property(box) if box else HEIC for box in corners))
    for number, expected in enumerate(corners.values()):
        picture = array_of(attempt, number)[0].astype(int)
        found = (picture[5, 5], picture[5, -5], picture[-5, 5], picture[-5, -5])
        assert np.abs(np.array(found) - expected).max() < 5
    assert {each.format for each in result.images} == {ImportedImage.FORMAT_HEIC}
    assert "libheif" in result.images[0].rendered.certificate.decoder


def test_ten_bits_of_a_heic_fill_sixteen(take_in: Import) -> None:
    _, attempt = take_in(HEIC_10)
    [picture] = array_of(attempt)
    corners = (picture[5, 5], picture[5, -5], picture[-5, 5], picture[-5, -5])
    full, half = 65535, round(511 / 1023 * 65535)
    expected = ((full, 0, 0), (0, full, 0), (0, 0, full), (half,) * 3)
    # A step of ten bits is 64 here, and the colours of a HEIC are YCbCr.
    assert np.abs(np.array(corners, int) - expected).max() <= 64
    assert len(np.unique(picture >> 6)) > 3


def planted() -> dict[str, tuple[bytes, dict[str, int]]]:
    """Files that tell a name wherever their format lets them, and what has to be counted."""
    block = exif(told=True)
    told = {"EXIF": 1, "GPS": 1, "MAKER_NOTE": 1}
    name, packet = NAME.encode(), b"<x:xmpmeta>" + NAME.encode() + b"</x:xmpmeta>"
    plain = saved(RGB, "JPEG", exif=block, comment=name, xmp=packet)
    iptc = b"Photoshop 3.0\x008BIM\x04\x04\0\0" + len(name).to_bytes(4) + name
    jpeg = plain[:2] + segment(0xED, iptc) + segment(0xEB, name) + plain[2:] + b"PK\3\4" + name
    texts = PngInfo()
    texts.add_text("Author", NAME)
    texts.add_itxt("Comment", NAME, zip=True)
    texts.add_itxt("XML:com.adobe.xmp", packet.decode())
    texts.add_text("Raw profile type iptc", NAME)
    pixel = saved(RGB, "PNG", exif=block, pnginfo=texts) + name
    pixel = pixel[:33] + chunk(b"tIME", bytes(7)) + pixel[33:]
    page = ImageFileDirectory_v2()
    page[0x8769], page[0x8825] = {0x927C: name}, {29: NAME}
    page[700], page[33723], page[315], page[270], page[50000] = packet, name, NAME, NAME, NAME
    return {
        "JPEG": (
            jpeg,
            {**told, "XMP": 1, "COMMENT": 1, "IPTC": 1, "OTHER": 1, "TRAILING_DATA": 1},
        ),
        "PNG": (pixel, {**told, "TEXT": 2, "XMP": 1, "IPTC": 1, "OTHER": 1, "TRAILING_DATA": 1}),
        "WEBP": (saved(RGB, "WEBP", exif=block, xmp=packet), {**told, "XMP": 1}),
        "TIFF": (
            saved(RGB, "TIFF", tiffinfo=page),
            {**told, "XMP": 1, "IPTC": 1, "TEXT": 2, "OTHER": 1},
        ),
    }


@pytest.mark.parametrize("format_", FORMATS)
def test_what_a_file_tells_is_counted_by_kind_and_found_in_nothing_that_is_left(
    take_in: Import, format_: str
) -> None:
    data, expected = planted()[format_]
    assert NAME.encode() in data
    result, attempt = take_in(data)
    assert counts(result.images[0]) == expected
    assert NAME not in str(result)
    for name in attempt.context.artifacts:
        assert NAME.encode() not in attempt.read(name)
        assert b"Exif" not in attempt.read(name)
    picture = Image.open(io.BytesIO(attempt.read("preview-0000.png")))
    assert not picture.info
    assert result.images[0].format == ImportedImage.Format.Value(f"FORMAT_{format_}")


def test_the_array_is_certified_as_the_pixels_of_dicom_are(take_in: Import) -> None:
    result, attempt = take_in(saved(RGB, "PNG"))
    (image,) = result.images
    certificate: PixelCertificate = image.rendered.certificate
    assert (image.rendered.item, image.rendered.modality) == ("0", "XC")
    assert (list(certificate.shape), certificate.dtype) == ([1, ROWS, COLUMNS, 3], "|u1")
    assert (certificate.unit, certificate.bits_stored) == ("1", 8)
    assert (certificate.minimum, certificate.maximum) == (0, RGB.max())
    assert (
        certificate.sha256 == importing.certified(importing.StoredFrame(RGB, 8)).certificate.sha256
    )
    (frame,) = certificate.frames
    assert frame.sha256 == certificate.sha256
    assert frame.entropy_bits > 4
    assert {each.role for each in attempt.context.artifacts.values()} == {"preview", "pixels"}


def test_a_profile_is_converted_to_srgb_at_any_depth_and_one_that_is_srgb_changes_nothing(
    take_in: Import,
) -> None:
    adobe, srgb = bytes(cms_profile("adobergb")), bytes(cms_profile("srgb"))
    wide = RGB.astype(np.uint16) * 257
    body = b"adobe\0\0" + zlib.compress(adobe)
    deep = png_encode(wide)[:33] + chunk(b"iCCP", body) + png_encode(wide)[33:]
    files = [saved(RGB, each, icc_profile=adobe, **LOSSLESS[each]) for each in LOSSLESS]
    files += [deep, *(saved(RGB, each, icc_profile=srgb, **LOSSLESS[each]) for each in LOSSLESS)]
    result, attempt = take_in(*files)
    assert [each.colors_converted for each in result.images] == [True] * 4 + [False] * 3
    assert [counts(each) for each in result.images] == [{"COLOR_PROFILE": 1}] * 7
    spaces = {"colorspace": "rgb", "outcolorspace": "rgb", "intent": 1}
    expected = cms_transform(RGB, adobe, srgb, **spaces)
    for number in range(3):
        assert np.array_equal(array_of(attempt, number)[0], expected)
        assert np.array_equal(array_of(attempt, 4 + number)[0], RGB)
    assert np.array_equal(array_of(attempt, 3)[0], cms_transform(wide, adobe, srgb, **spaces))


def test_a_camera_that_names_adobe_rgb_in_exif_alone_is_understood(take_in: Import) -> None:
    block = Image.Exif()
    block.get_ifd(0x8769)[0xA001] = 0xFFFF
    block.get_ifd(0x8769)[0xA005] = {1: "R03"}
    result, _ = take_in(saved(RGB, "JPEG", exif=block))
    assert result.images[0].colors_converted


def test_transparent_pictures_lie_on_white(take_in: Import) -> None:
    clear = np.dstack([RGB, np.full((ROWS, COLUMNS), 51, np.uint8)])
    wide = clear.astype(np.uint16) * 257
    grey = Image.fromarray(RGB[..., 0])
    palette = Image.fromarray(RGB).quantize(8)
    result, attempt = take_in(
        saved(clear, "PNG"),
        saved(clear, "WEBP", lossless=True, exact=True),
        png_encode(wide),
        saved(grey, "PNG", transparency=int(RGB[0, 1, 0])),
        saved(palette, "PNG", transparency=0),
    )
    assert [each.laid_on_white for each in result.images] == [True] * 5
    on_white = RGB * 0.2 + 255 * 0.8
    assert np.abs(array_of(attempt, 0)[0] - on_white).max() <= 1
    assert np.array_equal(array_of(attempt, 0), array_of(attempt, 1))
    assert np.abs(array_of(attempt, 2)[0] / 257 - on_white).max() <= 1
    assert array_of(attempt, 3).shape == (1, ROWS, COLUMNS)
    assert (array_of(attempt, 3)[0, :, 1] == 255).all()
    assert (array_of(attempt, 4)[0][np.asarray(palette) == 0] == 255).all()


def test_16_bits_stay_in_the_array_and_the_picture_has_8(take_in: Import) -> None:
    wide = np.random.default_rng(7).integers(0, 65536, (30, 40, 3)).astype(np.uint16)
    tiffs = [
        bytes(cv2.imencode(".tiff", wide[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, code])[1])
        for code in (1, 5)
    ]
    grey = saved(wide[..., 0].copy(), "TIFF")
    result, attempt = take_in(png_encode(wide), *tiffs, png_encode(wide[..., 0].copy()), grey)
    assert {each.rendered.certificate.bits_stored for each in result.images} == {16}
    for number in range(3):
        assert np.array_equal(array_of(attempt, number)[0], wide)
        assert np.array_equal(preview_of(attempt, number), wide >> 8)
    for number in (3, 4):
        assert np.array_equal(array_of(attempt, number)[0], wide[..., 0])


def test_planes_and_tiles_of_a_tiff_are_put_together(take_in: Import) -> None:
    wide = np.random.default_rng(7).integers(0, 65536, (16, 16, 3)).astype("<u2")
    tags = {256: (4, 1, 16), 257: (4, 1, 16), 258: (3, 1, 16), 259: (3, 1, 1), 262: (3, 1, 2)}
    tags |= {277: (3, 1, 3), 284: (3, 1, 2), 273: (4, 3, 0), 278: (4, 1, 16), 279: (4, 3, 0)}
    start = len(tiff(tags))
    offsets = [start + 24 + 512 * plane for plane in range(3)]
    tags |= {273: (4, 3, start), 279: (4, 3, start + 12)}
    numbers = struct.pack("<6I", *offsets, *[512] * 3)
    planes = tiff(tags) + numbers + np.moveaxis(wide, -1, 0).tobytes()
    tiled = {key: tags[key] for key in tags if key not in (273, 278, 279, 284)}
    tiled |= {322: (4, 1, 16), 323: (4, 1, 16), 325: (4, 1, wide.nbytes), 324: (4, 1, 0)}
    tiled[324] = (4, 1, len(tiff(tiled)))
    _, attempt = take_in(planes, tiff(tiled) + wide.tobytes())
    for number in (0, 1):
        assert np.array_equal(array_of(attempt, number)[0], wide)


def test_damaged_files_come_to_an_end_with_a_reason(take_in: Import) -> None:
    chance, small = random.Random(7), gradient(24, 32)
    options: dict[str, dict[str, Any]] = {**LOSSLESS, "JPEG": {}}
    whole = [HEIC, *(saved(small, each, exif=exif(6), **options[each]) for each in options)]
    files = []
    for number in range(250):
        data = bytearray(whole[number % len(whole)])
        for _ in range(chance.choice((1, 2, 8))):
            at = chance.randrange(len(data))
            data[at : at + 4] = chance.choice((b"\xff" * 4, bytes(4), chance.randbytes(1)))
        files.append(bytes(data))
    _, attempt = take_in(*files)
    reasons = {item.reason for item in attempt.context.items.values()}
    assert reasons <= {
        *("", "NOT_AN_IMAGE", "IMAGE_UNSUPPORTED", "IMAGE_TOO_LARGE", "PIXELS_UNDECODABLE"),
    }
    assert len(reasons) > 3


def test_other_kinds_of_pictures_become_grey_or_rgb(take_in: Import) -> None:
    picture = Image.fromarray(RGB)
    files = [
        saved(picture.convert("CMYK"), "JPEG"),
        saved(picture.convert("CMYK"), "TIFF"),
        saved(picture, "TIFF", compression="jpeg"),
        saved(picture, "TIFF", big_tiff=True),
        saved(picture, "JPEG", progressive=True),
        saved(picture.quantize(), "TIFF"),
        saved(picture.convert("L"), "JPEG"),
        saved(picture.convert("1"), "TIFF", compression="group4"),
        saved(picture.convert("L"), "JPEG", icc_profile=bytes(cms_profile("srgb"))),
    ]
    result, attempt = take_in(*files)
    shapes = [array_of(attempt, number).shape[3:] for number in range(len(files))]
    assert shapes == [(3,)] * 6 + [()] * 3
    for number in range(6):
        assert np.abs(array_of(attempt, number)[0].astype(int) - RGB).mean() < 8
    assert len(result.images) == len(files)


def test_pictures_of_one_file_are_frames_in_its_order(take_in: Import) -> None:
    pictures = [Image.fromarray(np.roll(RGB, 7 * number, axis=1)) for number in range(4)]
    film = {"save_all": True, "append_images": pictures[1:]}
    files = [saved(pictures[0], each, **options, **film) for each, options in LOSSLESS.items()]
    result, attempt = take_in(*files)
    for number in range(len(files)):
        assert np.array_equal(array_of(attempt, number), np.stack(pictures))
        assert np.array_equal(preview_of(attempt, number), RGB)
        assert len(result.images[number].rendered.certificate.frames) == 4


def refused() -> dict[str, tuple[bytes, str]]:
    """Files, and why they are refused."""
    picture = Image.fromarray(RGB)
    jpeg = saved(picture, "JPEG")
    mixed = saved(picture, "TIFF", save_all=True, append_images=[picture.resize((9, 9))])
    flipped = bytearray(saved(picture, "PNG"))
    flipped[60] ^= 1
    shorts = {256: (4, 1, 4), 257: (4, 1, 4), 259: (3, 1, 1), 262: (3, 1, 2), 277: (3, 1, 3)}
    many = jpeg[:-2] + segment(0xDA, b"\1\1\0\0\x3f\0") * 101 + jpeg[-2:]
    return {
        "text": (b"not a photograph", "NOT_AN_IMAGE"),
        "nothing": (b"", "NOT_AN_IMAGE"),
        "GIF": (saved(picture, "GIF"), "NOT_AN_IMAGE"),
        "DICOM": (wheel_file("CT_small").read_bytes(), "NOT_AN_IMAGE"),
        "AVIF": (saved(picture, "AVIF"), "NOT_AN_IMAGE"),
        "floats": (saved(picture.convert("F"), "TIFF"), "IMAGE_UNSUPPORTED"),
        "12 bits": (
            jpeg.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),
            "IMAGE_UNSUPPORTED",
        ),
        "lossless JPEG": (jpeg.replace(b"\xff\xc0", b"\xff\xc3"), "IMAGE_UNSUPPORTED"),
        "pages of two sizes": (mixed, "IMAGE_UNSUPPORTED"),
        "no profile": (saved(picture, "JPEG", icc_profile=b"x" * 300), "IMAGE_UNSUPPORTED"),
        "HDR": (png(4, 4, chunk(b"cICP", b"\x09\x10\0\1")), "IMAGE_UNSUPPORTED"),
        "a clear colour of 16 bits": (
            png(1, 1, chunk(b"tRNS", bytes(6)), depth=16),
            "IMAGE_UNSUPPORTED",
        ),
        "multiplied alpha of 16 bits": (
            tiff(shorts | {258: (3, 1, 16), 277: (3, 1, 4), 338: (3, 1, 1)}),
            "IMAGE_UNSUPPORTED",
        ),
        "raw": (tiff(shorts | {50706: (1, 4, 1)}), "IMAGE_UNSUPPORTED"),
        "too many scans": (many, "IMAGE_TOO_LARGE"),
        "checksum": (bytes(flipped), "PIXELS_UNDECODABLE"),
        "loop of pages": (
            tiff(shorts)[:-4] + (8).to_bytes(4, "little"),
            "PIXELS_UNDECODABLE",
        ),
    }


@pytest.mark.parametrize("name", refused())
def test_what_is_no_photograph_of_ours_is_refused_with_its_reason(
    take_in: Import, name: str
) -> None:
    data, reason = refused()[name]
    _, attempt = take_in(data, saved(RGB, "PNG"))
    assert outcome(attempt) == f"FAILED {reason}"
    assert outcome(attempt, 1) == "SUCCEEDED"


@pytest.mark.parametrize("format_", [*FORMATS, "HEIC", "progressive"])
def test_a_file_that_is_cut_off_anywhere_is_refused(take_in: Import, format_: str) -> None:
    picture = gradient(120, 160)
    if format_ == "HEIC":
        whole = HEIC
    elif format_ == "progressive":
        whole = saved(picture, "JPEG", progressive=True)
    else:
        whole = saved(picture, format_, **LOSSLESS.get(format_, {}))
    cut = [whole[: len(whole) * tenth // 10] for tenth in range(10)] + [whole[:-1]]
    # libjpeg fills up what a scan lacks, and decodes without the last scans.
    ended = [whole[: whole.rfind(b"\xff\xda")], *cut[5:-1], whole[:-3]]
    cut += [data + b"\xff\xd9" for data in ended] if whole.startswith(b"\xff\xd8") else []
    _, attempt = take_in(*cut, whole)
    outcomes = [outcome(attempt, number) for number in range(len(cut))]
    assert set(outcomes) <= {"FAILED PIXELS_UNDECODABLE", "FAILED NOT_AN_IMAGE"}
    assert outcome(attempt, len(cut)) == "SUCCEEDED"


def test_a_decoder_that_fails_without_a_word_is_not_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noise = np.random.default_rng(7).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    pictures = Pictures(saved(noise, "JPEG", quality=100))
    assert pictures.picture(0).array.shape == noise.shape
    monkeypatch.setattr(Pictures, "_jpeg", lambda _: np.zeros_like(noise))
    with pytest.raises(RefusedError, match="SUSPICIOUS"):
        pictures.picture(0)


def bombs() -> dict[str, bytes]:
    """Files of at most some hundred KB that claim, or become, more than a photograph may."""
    zeros = zlib.compress(bytes(200 * MIB), 9)
    side = 30_000
    size = {256: (4, 1, side), 257: (4, 1, side), 262: (3, 1, 2), 277: (3, 1, 3)}
    webp = bytearray(saved(RGB, "WEBP", lossless=True, exif=exif()))
    webp[24:30] = b"\xff\x3f\0\xff\x3f\0"  # VP8X: 16,384 columns and rows
    jpeg = saved(RGB, "JPEG")
    frame = jpeg.index(b"\xff\xc0") + 5
    return {
        "PNG": png(side, side, chunk(b"IDAT", zeros)),
        "APNG": png(9_000, 6_000, chunk(b"acTL", b"\0\0\1\xf4\0\0\0\0"), chunk(b"IDAT", zeros)),
        "JPEG": jpeg[:frame] + b"\xff\xff\xff\xff" + jpeg[frame + 4 :],
        "TIFF": tiff(size | {258: (3, 1, 8)}),
        "tile": tiff(
            {
                256: (4, 1, 64),
                257: (4, 1, 64),
                258: (3, 1, 8),
                262: (3, 1, 2),
                277: (3, 1, 3),
                322: (4, 1, side),
                323: (4, 1, side),
            }
        ),
        "WebP": bytes(webp),
        "HEIC": HEIC.replace(
            b"ispe\0\0\0\0\0\0\0\x60\0\0\0\x40", b"ispe\0\0\0\0\0\0\x7f\xff\0\0\x7f\xff"
        ),
    }


@pytest.mark.parametrize("name", bombs())
def test_a_bomb_is_refused_before_anything_is_allocated(
    take_in: Import, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    child = Sandbox()
    monkeypatch.setattr(importing, "sandbox", lambda: child)
    take_in(saved(RGB, "PNG"), HEIC)
    before = peak(child)
    _, attempt = take_in(bombs()[name])
    assert outcome(attempt) == "FAILED IMAGE_TOO_LARGE"
    assert peak(child) - before < 64 * MIB
    child.close()


def peak(child: Sandbox) -> int:
    """The most memory that the child has had, in bytes."""
    assert child._child
    status = Path(f"/proc/{child._child.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def test_a_file_of_two_kinds_is_what_it_starts_as(take_in: Import, tmp_path: Path) -> None:
    _, attempt = take_in(saved(RGB, "PNG") + saved(RGB, "JPEG"), b"PK\3\4" + saved(RGB, "PNG"))
    assert [outcome(attempt, number) for number in (0, 1)] == ["SUCCEEDED", "FAILED NOT_AN_IMAGE"]
    assert not any(Path(tmp_path).rglob("*.npy"))


def test_a_cancel_is_seen_between_pictures(tmp_path: Path) -> None:
    pictures = [Image.fromarray(np.roll(RGB, number, axis=1)) for number in range(3)]
    path = tmp_path / "film.webp"
    path.write_bytes(saved(pictures[0], "WEBP", save_all=True, append_images=pictures[1:]))
    seen: list[Any] = []

    def tick() -> None:
        seen.append(len(seen))
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        importing.take_in(path, tmp_path / "pixels.npy", tick)
    assert seen == [0, 1]
