"""Brings the pictures of a report into the attempt's folder, in the size that paper can show."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fluoro.v1 import job_pb2
from fluoro_jobs.worker.context import StepContext

from export_worker import comparison
from export_worker.contents import THUMBNAILS, Pictures
from export_worker.images import PICTURED, Image, first
from export_worker.scaling import MOST_PIXELS, scale, thumbnail
from export_worker.verdicts import rank

CLASSIFIED: Final = 60
"""Most images that a skin check shows with their probabilities."""

CLASSIFIED_PIXELS: Final = 640
"""Of each: 260 dots per inch. Sixty photographs in full would weigh 150 MB."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a template shows. pictured: most images.

    classified, measured: only those that a model classified, or measured. scored: those, too, that
    were scored by a rule. slides: only slides. ranked: the most suspicious ones first.

    thumbnails: whether all inputs are shown in little. pixels: longer side of pictures.
    """

    pictured: int = PICTURED
    classified: bool = False
    measured: bool = False
    scored: bool = False
    slides: bool = False
    ranked: bool = False
    thumbnails: bool = False
    pixels: int = MOST_PIXELS

    def shown(self, images: Sequence[Image]) -> list[Image]:
        """The images with pictures."""
        chosen = [
            image
            for image in images
            if image.pictures
            and (not self.classified or self._classified(image))
            and (not self.measured or any(finding.measurements for finding in image.findings))
            and (not self.slides or any(finding.of_tiles for finding in image.findings))
        ]
        # Before the first so many are chosen, or the most suspicious might be left out.
        if self.ranks(images):
            chosen.sort(key=lambda image: rank(image.judged))
        return first(chosen, self.pictured)

    def ranks(self, images: Sequence[Image]) -> bool:
        """Whether there are verdicts to rank these by."""
        return self.ranked and any(image.judged for image in images)

    def _classified(self, image: Image) -> bool:
        return bool(
            any(finding.classes for finding in image.findings)
            or image.judged
            or (self.scored and image.scored)
        )


PLANS: Final = {
    "study": Plan(),
    "batch": Plan(pictured=0, thumbnails=True),
    "skin-check": Plan(
        pictured=CLASSIFIED,
        classified=True,
        ranked=True,
        thumbnails=True,
        pixels=CLASSIFIED_PIXELS,
    ),
    "dermoscopy": Plan(pictured=CLASSIFIED, classified=True, scored=True, pixels=CLASSIFIED_PIXELS),
    "burn": Plan(pictured=CLASSIFIED, measured=True, thumbnails=True, pixels=CLASSIFIED_PIXELS),
    "histopathology": Plan(pictured=CLASSIFIED, slides=True),
    "comparison": Plan(pictured=0),
    "deidentification": Plan(pictured=0),
}
OWN: Final = Plan(thumbnails=True)
"""For an organization's own template: everything."""


def gather(
    plan: Plan,
    images: Sequence[Image],
    compared: comparison.Compare | None,
    context: StepContext,
) -> Pictures:
    """Fetches and scales them, one at a time.

    FluoroError with BLOB_NOT_FOUND if one is gone, REPORT_FAILED if one is no picture.
    """
    # By blob: two images may share a picture, and it is fetched and scaled once.
    full = {one.blob: one for image in plan.shown(images) for one in image.pictures}
    if compared:
        # Pictures of a comparison may be of images that the template itself does not show.
        full |= {one.blob: one for one in comparison.picture_artifacts(compared)}
    little: list[job_pb2.Artifact] = []
    # Only where the template shows them: a batch may have thousands of images to fetch.
    if plan.thumbnails:
        little = [image.little for image in images[:THUMBNAILS] if image.little]
    total = len(full) + len(little)
    names: dict[str, str] = {}
    for blob in full:
        context.progress("collect", len(names), total)
        path = context.fetch(blob)
        # At once, so that neither the folder nor typst ever holds the pictures in full.
        scale(path, plan.pixels)
        names[blob] = path.name
    small: dict[str, str] = {}
    for one in little:
        context.progress("collect", len(names) + len(small), total)
        path = context.fetch(one.blob)
        target = context.scratch / f"little-{len(small):05}.jpg"
        # Into a file of its own: the picture may still be needed in full.
        thumbnail(path, target)
        # Otherwise it is shown large as well, and still needed.
        if one.blob not in full:
            path.unlink()
        small[one.blob] = target.name
    return Pictures(names, small)
