"""Where devices write what they know of the patient: masked before anybody looks for text.

Ultrasound says where its images are, so everything around them goes. Some models write into strips
at a fixed place; the table has those that users of RSNA's CTP published for their scanners.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_worker.attributes import text, value
from dicom_worker.pixels.image import Image

Box = tuple[int, int, int, int]
"""Left, top, right and bottom; the last two are one past the end."""
REGION: Final = (
    "RegionLocationMinX0",
    "RegionLocationMinY0",
    "RegionLocationMaxX1",
    "RegionLocationMaxY1",
)


class Layout(NamedTuple):
    """A model whose screens have a strip of text. model: part of its name, in upper case.

    height: rows of the strip at the top, over the whole width.
    """

    model: str
    rows: int
    columns: int
    height: int


LAYOUTS: Final = (
    Layout("IU22", 480, 640, 47),
    Layout("IU22", 600, 800, 59),
    Layout("IU22", 768, 1024, 75),
    Layout("SEQUOIA", 480, 640, 30),
    Layout("AIXPLORER", 1050, 1400, 89),
)


def rule(header: Dataset, image: Image) -> tuple[str, NDArray[np.bool_] | None]:
    """The name of the rule for this device and what it masks, (rows, columns); "" and None."""
    if regions := ultrasound_regions(header, image):
        outside = np.ones((image.rows, image.columns), bool)
        for left, top, right, bottom in regions:
            outside[top:bottom, left:right] = False
        return "outside the ultrasound regions", outside
    model = text(header, "ManufacturerModelName").upper()
    for layout in LAYOUTS:
        # The size as well: the same model exports screens of several sizes, with strips of other
        # heights.
        if layout.model in model and (layout.rows, layout.columns) == (image.rows, image.columns):
            strip = np.zeros((image.rows, image.columns), bool)
            strip[: layout.height] = True
            return "known layout", strip
    return "", None


def ultrasound_regions(header: Dataset, image: Image) -> list[Box]:
    """Sequence of Ultrasound Regions (PS3.3 C.8.5.5), within the image.

    [] if there is none, or if one contradicts the image: then nobody knows what is outside.
    """
    found: Any = value(header, "SequenceOfUltrasoundRegions") or ()
    boxes: list[Box] = []
    for item in found:
        edges = [value(item, keyword) for keyword in REGION]
        # A mask by half a description would hide anatomy and show names.
        if not all(isinstance(edge, int) for edge in edges):
            return []
        left, top, right, bottom = edges
        if not (0 <= left < right <= image.columns and 0 <= top < bottom <= image.rows):
            return []
        # The region's last pixels belong to it (PS3.3 C.8.5.5); slices end one past them.
        boxes.append((left, top, right + 1, bottom + 1))
    return boxes
