"""Scales pictures to what paper can show: reports of large radiographs stay small."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from fluoro_jobs.errors import FluoroError, Reason
from PIL import Image

MOST_PIXELS: Final = 1200
"""Longer side of a picture: 400 dots per inch at the 77 mm that a picture gets."""

SCALABLE: Final = frozenset({"L", "LA", "RGB", "RGBA"})
"""Pillow modes of eight bits a channel; others are shown as they are."""
FORMATS: Final = ("PNG", "JPEG", "WEBP")
"""What RenderDicom and models make pictures in."""


THUMBNAIL_PIXELS: Final = 240
"""Longer side of a thumbnail: 200 dots per inch at the 30 mm that it gets."""


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        # Pillow knows some fifty formats. Hostile bytes reach three of their decoders.
        with Image.open(path, formats=FORMATS) as picture:
            yield picture
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FluoroError(
            Reason.REPORT_FAILED,
            "A picture of an earlier step is no PNG, JPEG or WebP, or is too large to be shown.",
        ) from error


def scale(path: Path, most: int = MOST_PIXELS) -> None:
    """Scales the picture down in place if a side is longer than `most` pixels.

    One picture is in memory at a time.

    FluoroError with REPORT_FAILED if it is no PNG, JPEG or WebP, is truncated, or is so large (178
    million pixels) that Pillow takes it for an attack.
    """
    with _opened(path) as picture:
        # As it is: encoding it again would lose a little of it for nothing.
        if max(picture.size) <= most or picture.mode not in SCALABLE:
            return
        kind = picture.format
        picture.thumbnail((most, most), Image.Resampling.LANCZOS)
        picture.save(path, kind)


def thumbnail(path: Path, target: Path) -> None:
    """Writes the picture in little, as JPEG. Raises as `scale` does."""
    with _opened(path) as picture:
        # A JPEG is then decoded at a fraction of its size. Twice the thumbnail leaves enough for a
        # clean reduction.
        picture.draft("RGB", (2 * THUMBNAIL_PIXELS, 2 * THUMBNAIL_PIXELS))
        # JPEG has neither palettes nor alpha.
        small = picture if picture.mode in {"L", "RGB"} else picture.convert("RGB")
        small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), Image.Resampling.LANCZOS)
        small.save(target, "JPEG", quality=85)
