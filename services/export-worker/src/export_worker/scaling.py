"""Scales pictures to what paper can show: reports of large radiographs stay small."""

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


def scale(path: Path) -> None:
    """Scales the picture down in place if it is larger. One picture is in memory at a time.

    FluoroError with REPORT_FAILED if it is no PNG, JPEG or WebP, is truncated, or is so large (178
    million pixels) that Pillow takes it for an attack.
    """
    try:
        with Image.open(path, formats=FORMATS) as picture:
            if max(picture.size) <= MOST_PIXELS or picture.mode not in SCALABLE:
                return
            kind = picture.format
            picture.thumbnail((MOST_PIXELS, MOST_PIXELS), Image.Resampling.LANCZOS)
        picture.save(path, kind)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FluoroError(
            Reason.REPORT_FAILED,
            "A picture of an earlier step is no PNG, JPEG or WebP, or is too large to be shown.",
        ) from error
