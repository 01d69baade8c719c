"""One image of a report: its pictures with captions and scale bar, and its measurements."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fluoro.v1 import dicom_pb2, job_pb2, ml_pb2

from export_worker import wording
from export_worker.images import Finding, Image

SCALE_BARS: Final = {
    200: "20 cm",
    100: "10 cm",
    50: "5 cm",
    20: "2 cm",
    10: "1 cm",
    5: "5 mm",
    2: "2 mm",
    1: "1 mm",
}
"""Lengths a scale bar may have, in millimetres.

The longest that fits into 30 % of the image's width is drawn.
"""

PLAUSIBLE_MM: Final = (1e-5, 1e3)
"""Spacings between a microscope's pixels and a metre. Others count as unknown."""

COLOR: Final = re.compile(r"#[0-9a-fA-F]{6}")

Fields = dict[str, object]


def model_name(model: ml_pb2.ModelReference) -> str:
    """`ct-tissue 1.0.0`."""
    return wording.printable(f"{model.name} {model.version}", 80)


def measurement(entry: ml_pb2.Measurement) -> Fields:
    """One class of a model in one image.

    share: for drawing, 0 to 1. color: `#rrggbb`, or none if the overlay does not draw it.
    """
    return {
        "color": entry.color if COLOR.fullmatch(entry.color) else None,
        "share": wording.share(entry.fraction),
        "name": wording.printable(entry.display_name, 64) or str(entry.label),
        "voxels": wording.count(entry.voxels),
        "percent": wording.percent(entry.fraction),
        "volume": wording.number(entry.volume_ml, 2)
        if entry.HasField("volume_ml")
        else wording.NONE,
        "mean": wording.number(entry.mean_value, 1)
        if entry.HasField("mean_value")
        else wording.NONE,
    }


def image_block(image: Image, files: Mapping[str, str]) -> Fields:
    """One image. files: path below typst's root by blob."""
    rendered = image.rendered or dicom_pb2.RenderedImage()
    shape = Shape.of(rendered)
    pictures = []
    if image.preview:
        pictures.append(
            _picture(
                files,
                image.preview,
                "Preview",
                _window(rendered),
                f"Preview of input {image.key}",
            )
        )
    for finding in image.findings:
        if finding.overlay:
            name = model_name(finding.model)
            pictures.append(
                _picture(
                    files,
                    finding.overlay,
                    "Overlay",
                    name,
                    f"Classes of {name} drawn over input {image.key}",
                )
            )
    return {
        "input": wording.key(image.key),
        "facts": [
            fact for fact in (wording.printable(rendered.modality, 16), *shape.facts()) if fact
        ],
        "aspect": shape.aspect,
        "scale_bar": shape.scale_bar(),
        "pictures": pictures,
        "findings": [
            _finding(finding, wording.unit(rendered.certificate.unit)) for finding in image.findings
        ],
    }


def _picture(
    files: Mapping[str, str], artifact: job_pb2.Artifact, kind: str, caption: str, alt: str
) -> Fields:
    return {"file": f"/{files[artifact.blob]}", "kind": kind, "caption": caption, "alt": alt}


def _window(rendered: dicom_pb2.RenderedImage) -> str:
    if not rendered.HasField("window"):
        return ""
    unit = wording.unit(rendered.certificate.unit)
    center, width = wording.short(rendered.window.center), wording.short(rendered.window.width)
    return f"window center {center}, width {width} {unit}".strip()


def _finding(finding: Finding, unit: str) -> Fields:
    return {
        "model": model_name(finding.model),
        "unit": unit,
        "rows": [measurement(entry) for entry in finding.measurements],
    }


def _plausible(length_mm: float) -> bool:
    least, most = PLAUSIBLE_MM
    return least < length_mm < most


@dataclass(frozen=True, slots=True)
class Shape:
    """Size of an image in pixels and, where its spacing is known, in millimetres."""

    frames: int
    rows: int
    columns: int
    row_mm: float
    column_mm: float
    thickness_mm: float

    @classmethod
    def of(cls, rendered: dicom_pb2.RenderedImage) -> "Shape":
        """Zero for what is unknown or impossible."""
        frames, rows, columns = (*rendered.certificate.shape, 0, 0, 0)[:3]
        match tuple(rendered.pixel_spacing_mm):
            case (row_mm, column_mm) if _plausible(row_mm) and _plausible(column_mm):
                spacing = (row_mm, column_mm)
            case _:
                spacing = (0.0, 0.0)
        return cls(frames, rows, columns, *spacing, rendered.slice_thickness_mm)

    @property
    def aspect(self) -> float | None:
        """Width over height as it is to be seen: pixels need not be square (PS3.3 10.7.1.3)."""
        if not (self.rows and self.columns):
            return None
        return self.columns * (self.column_mm or 1) / (self.rows * (self.row_mm or 1))

    def facts(self) -> list[str]:
        """What the heading says: size, frames, spacing, thickness."""
        facts = (
            [f"{self.rows} rows{wording.TIMES}{self.columns} columns"]
            if self.rows and self.columns
            else []
        )
        if self.frames > 1:
            facts.append(f"first of {self.frames} frames")
        if self.row_mm:
            facts.append(f"{self.row_mm:.3g}{wording.TIMES}{self.column_mm:.3g} mm pixels")
        if self.thickness_mm > 0:
            facts.append(f"{wording.short(self.thickness_mm)} mm slice")
        return facts

    def scale_bar(self) -> Fields | None:
        """A length and its share of the image's width, or None if the spacing is unknown."""
        width_mm = self.columns * self.column_mm
        length = next((length for length in SCALE_BARS if length <= 0.3 * width_mm), None)
        if length is None:
            return None
        return {"share": length / width_mm, "text": SCALE_BARS[length]}
