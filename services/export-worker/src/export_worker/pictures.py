"""One image of a report: its pictures with captions and scale bar, and its findings."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

from fluoro.v1 import dicom_pb2, job_pb2, ml_pb2, slide_pb2

from export_worker import verdicts, wording
from export_worker.images import NO_CLASS, Finding, Image
from export_worker.model import Classified, ImageBlock, Likelihood, Measure, Picture, ScaleBar
from export_worker.sights import Row, Sight
from export_worker.verdicts import SHOWN_CLASSES, SHOWN_FRAMES
from export_worker.words import Words

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


def model_name(model: ml_pb2.ModelReference) -> str:
    """`ct-tissue 1.0.0`."""
    return wording.printable(f"{model.name} {model.version}", 80)


def measured_name(entry: ml_pb2.Measurement, words: Words) -> str:
    """What the class is called."""
    if entry.label == NO_CLASS:
        return words("no_class")
    return wording.printable(entry.display_name, 64) or str(entry.label)


def measurement(entry: ml_pb2.Measurement, words: Words) -> Measure:
    """One class of a model in one image."""
    return {
        # A colour comes from a model's manifest and goes into markup: nothing but a colour may.
        "color": entry.color if COLOR.fullmatch(entry.color) else None,
        "share": wording.share(entry.fraction),
        "name": measured_name(entry, words),
        "voxels": words.count(entry.voxels),
        "percent": words.percent(entry.fraction),
        "volume": words.number(entry.volume_ml, 2) if entry.HasField("volume_ml") else wording.NONE,
        "mean": words.number(entry.mean_value, 1) if entry.HasField("mean_value") else wording.NONE,
    }


def likelihood(score: ml_pb2.ClassScore, words: Words) -> Likelihood:
    """One class that a model thinks possible."""
    return {
        "name": wording.printable(score.display_name, 64) or str(score.label),
        "percent": words.percent(score.probability),
        "share": wording.share(score.probability),
    }


def classified(finding: Finding, words: Words) -> list[Classified]:
    """The most probable classes, by frame, of the first few frames."""
    frames: dict[int, list[ml_pb2.ClassScore]] = {}
    for score in finding.classes:
        frames.setdefault(score.frame, []).append(score)
    return [
        {
            "model": model_name(finding.model),
            "use": finding.model.intended_use,
            "frame": words("frame", frame=str(frame)) if len(frames) > 1 else "",
            "rows": [likelihood(score, words) for score in scores[:SHOWN_CLASSES]],
        }
        # A film has thousands of frames, and paper has room for a few.
        for frame, scores in islice(sorted(frames.items()), SHOWN_FRAMES)
    ]


def beside(sight: Sight, files: Mapping[str, str], words: Words) -> Classified:
    """Objects in the image, the images most like it, or the tiles that stand out."""
    key = wording.printable(wording.key(sight.key), 64)
    return {
        "model": ", ".join(
            part
            for part in (
                words(sight.kind),
                wording.printable(sight.said, 64),
                model_name(sight.model) if sight.model else "",
            )
            if part
        ),
        "use": sight.model.intended_use if sight.model else 0,
        "frame": words("frame", frame=str(sight.frame)) if sight.frame > 1 else "",
        "rows": [
            {
                "name": row_name(row, words),
                # Scores and likenesses are no probabilities, so they get no percent sign.
                "percent": words.number(row.value, 2),
                "share": wording.share(row.value),
                "file": files.get(row.picture.blob, "") if row.picture else "",
                "alt": f"{words('input')} {key}, {row_name(row, words)}",
            }
            for row in sight.rows[:SHOWN_CLASSES]
        ],
    }


def row_name(row: Row, words: Words) -> str:
    """What a row is about: another input, a tile, or a thing."""
    if row.key:
        return f"{words('input')} {wording.key(wording.printable(row.key, 128))}"
    if row.place:
        return words("tile_place", row=str(row.place[0]), column=str(row.place[1]))
    return wording.printable(row.name, 64)


def image_block(image: Image, files: Mapping[str, str], words: Words) -> ImageBlock:
    """One image. files: path below typst's root by blob."""
    rendered = image.rendered or dicom_pb2.RenderedImage()
    shape = Shape.of(rendered)
    key = wording.printable(wording.key(image.key), 64)
    pictures = []
    if image.preview:
        pictures.append(
            picture(
                files,
                image.preview,
                words("preview"),
                _window(rendered, words),
                words("preview_alt", key=key),
            )
        )
    for finding in image.findings:
        if finding.overlay:
            name = model_name(finding.model)
            alt = words("overlay_alt", model=name, key=key)
            kind = words("slide_map" if finding.of_tiles else "overlay")
            pictures.append(picture(files, finding.overlay, kind, name, alt))
    for sight in image.sights:
        if sight.picture and sight.model:
            name = ", ".join(
                filter(None, (wording.printable(sight.said, 64), model_name(sight.model)))
            )
            alt = words(f"{sight.kind}_alt", key=key, model=model_name(sight.model))
            pictures.append(picture(files, sight.picture, words(sight.kind), name, alt))
    unit = wording.unit(rendered.certificate.unit)
    # A slide is not rendered, so its size comes from the step that tiled it.
    facts = shape.facts(words) if image.tiled is None else slide_facts(image.tiled, words)
    return {
        "input": key,
        "facts": [fact for fact in (wording.printable(rendered.modality, 16), *facts) if fact],
        "aspect": shape.aspect if image.tiled is None else slide_aspect(image.tiled),
        "scale_bar": shape.scale_bar(),
        "pictures": pictures,
        "findings": [
            {
                "model": model_name(finding.model),
                "of_tiles": finding.of_tiles,
                "unit": unit,
                "rows": [measurement(entry, words) for entry in finding.measurements],
            }
            for finding in image.findings
            if finding.measurements
        ],
        "verdicts": verdicts.verdicts_of(image.judged, image.scored, words),
        "classes": [
            *verdicts.opinions(image.judged, words),
            *(one for finding in image.findings for one in classified(finding, words)),
        ],
        "others": [beside(sight, files, words) for sight in image.sights if sight.rows][
            :SHOWN_FRAMES
        ],
    }


def slide_facts(slide: slide_pb2.TiledSlide, words: Words) -> list[str]:
    """What the heading says of a slide: size, of its pixels too, and share of tissue."""
    facts = [
        words("rows_columns", rows=words.count(slide.rows), columns=words.count(slide.columns))
    ]
    if _plausible(slide.microns_per_pixel / 1000):
        length = words.marked(f"{slide.microns_per_pixel:.3g}")
        facts.append(words("micron_pixels", length=length))
    facts.append(words("tissue", share=words.percent(slide.tissue_share)))
    return facts


def slide_aspect(slide: slide_pb2.TiledSlide) -> float | None:
    """Width over height of its heat map, which shows whole tiles."""
    if not (slide.rows and slide.columns and slide.tile_size):
        return None
    return -(-slide.columns // slide.tile_size) / -(-slide.rows // slide.tile_size)


def picture(
    files: Mapping[str, str], artifact: job_pb2.Artifact, kind: str, caption: str, alt: str
) -> Picture:
    """A picture with what stands below it."""
    return {"file": f"/{files[artifact.blob]}", "kind": kind, "caption": caption, "alt": alt}


def _window(rendered: dicom_pb2.RenderedImage, words: Words) -> str:
    if not rendered.HasField("window"):
        return ""
    return words(
        "window",
        center=words.short(rendered.window.center),
        width=words.short(rendered.window.width),
        unit=wording.unit(rendered.certificate.unit),
    ).strip()


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
            # A scale bar of a wrong spacing is worse than none.
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

    def facts(self, words: Words) -> list[str]:
        """What the heading says: size, frames, spacing, thickness."""
        facts = (
            [words("rows_columns", rows=str(self.rows), columns=str(self.columns))]
            if self.rows and self.columns
            else []
        )
        if self.frames > 1:
            facts.append(words("first_frame", frames=str(self.frames)))
        # 0 stands for unknown here, see `Shape.of`.
        if self.row_mm:
            row, column = (
                words.marked(f"{length:.3g}") for length in (self.row_mm, self.column_mm)
            )
            facts.append(words("pixel_spacing", row=row, column=column))
        if self.thickness_mm > 0:
            facts.append(words("slice_thickness", thickness=words.short(self.thickness_mm)))
        return facts

    def scale_bar(self) -> ScaleBar | None:
        """A length and its share of the image's width, or None if the spacing is unknown."""
        width_mm = self.columns * self.column_mm
        # The table runs from long to short, so the first that fits is the longest.
        length = next((length for length in SCALE_BARS if length <= 0.3 * width_mm), None)
        if length is None:
            return None
        return {"share": length / width_mm, "text": SCALE_BARS[length]}
