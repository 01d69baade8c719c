"""How a report looks: what the request says, then the organization's folder, then Fluoro."""

import re
import tomllib
from io import BytesIO
from pathlib import Path
from typing import Final

from fluoro.v1.export_pb2 import ReportStyle
from fluoro_jobs.errors import FluoroError, Reason
from google.protobuf.json_format import ParseDict, ParseError
from PIL import Image

from export_worker.model import Look
from export_worker.wording import printable
from export_worker.words import LANGUAGES

ACCENT: Final = "#0b6e7f"
COLOR: Final = re.compile(r"#[0-9a-fA-F]{6}")
LEAST_CONTRAST: Final = 4.5
"""Of headings on white (WCAG 2.2, 1.4.3)."""
LOGO_PIXELS: Final = 600
"""Longer side of the logo as it is printed."""
MOST_LOGO_BYTES: Final = 256 * 1024
MOST_LOGO_AREA: Final = 16_000_000
"""Most pixels that a logo may have."""
FILES: Final = ("logo.png", "logo.jpg")


def style_of(request: ReportStyle, folder: Path | None) -> ReportStyle:
    """The request's style, with what it leaves empty from `style.toml` and the logo in the folder.

    FluoroError INVALID_ARGUMENT if a colour is too light, REPORT_FAILED if the folder is not as it
    should be.
    """
    style = ReportStyle(language=LANGUAGES[0], accent_color=ACCENT)
    if folder is not None:
        # In this order: what is set later wins, and empty fields do not count.
        style.MergeFrom(_of_folder(folder))
    style.MergeFrom(request)
    if not COLOR.fullmatch(style.accent_color) or contrast(style.accent_color) < LEAST_CONTRAST:
        raise FluoroError(
            Reason.INVALID_ARGUMENT,
            f"style.accent_color is no colour, or too light to be read on white: choose one with "
            f"a contrast of {LEAST_CONTRAST} or more.",
        )
    if style.language not in LANGUAGES:
        raise FluoroError(
            Reason.INVALID_ARGUMENT, f"style.language must be one of {', '.join(LANGUAGES)}."
        )
    return style


def _of_folder(folder: Path) -> ReportStyle:
    style = ReportStyle()
    try:
        # Read anew for each report: a change of the mounted folder needs no restart.
        file = folder / "style.toml"
        fields = tomllib.loads(file.read_text("utf-8")) if file.exists() else {}
        ParseDict(fields, style)
        for path in (folder / name for name in FILES):
            if path.exists():
                style.logo = path.read_bytes()
    except (OSError, ValueError, ParseError) as error:
        raise FluoroError(
            Reason.REPORT_FAILED,
            "style.toml or the logo in the operator's folder cannot be used. The file may hold "
            "language, organization, footer and accent_color, each a string.",
        ) from error
    return style


def look(style: ReportStyle, folder: Path) -> Look:
    """What the templates need; writes the logo into the folder.

    FluoroError INVALID_ARGUMENT if the logo is no picture.
    """
    if style.logo:
        _save_logo(style.logo, folder / "logo.png")
    return {
        "organization": printable(style.organization, 120),
        "footer": printable(style.footer, 200),
        "accent": style.accent_color,
        "logo": "/logo.png" if style.logo else "",
    }


def _save_logo(data: bytes, path: Path) -> None:
    small = _decoded(data) if len(data) <= MOST_LOGO_BYTES else None
    if small is None:
        raise FluoroError(
            Reason.INVALID_ARGUMENT,
            "style.logo is no PNG or JPEG picture of at most 256 KiB and 16 million pixels.",
        )
    small.save(path, "PNG")


def _decoded(data: bytes) -> Image.Image | None:
    try:
        with Image.open(BytesIO(data), formats=("PNG", "JPEG")) as picture:
            # Known from the header, before a pixel is decoded: 256 KiB of PNG can hold gigabytes of
            # white.
            if picture.width * picture.height > MOST_LOGO_AREA:
                return None
            small = picture.convert("RGBA")
            small.thumbnail((LOGO_PIXELS, LOGO_PIXELS), Image.Resampling.LANCZOS)
            return small
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def contrast(color: str) -> float:
    """Of the colour `#rrggbb` to white, 1 to 21 (WCAG 2.2)."""
    values = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4  # noqa: PLR2004 - sRGB
        for value in values
    ]
    luminance = sum(
        weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True)
    )
    return 1.05 / (luminance + 0.05)
