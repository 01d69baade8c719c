"""From the values of a frame to its picture: VOI LUT, Presentation LUT Shape, overlays.

PS3.3 C.11.2, C.11.6, C.9.2, in the order of PS3.4 N.2.
"""

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dicom_worker.attributes import text
from dicom_worker.pixels.colour import eight_bits
from dicom_worker.pixels.lut import Lut
from dicom_worker.pixels.overlays import Overlay
from dicom_worker.pixels.pictures import Pixels
from dicom_worker.pixels.voi import (
    WHITE,
    Choice,
    Window,
    full_range,
    padding_mask,
    transform_of,
)
from dicom_worker.reading import DicomFile

INVERTED: Final = ("MONOCHROME1", "INVERSE")
"""Photometric Interpretation and Presentation LUT Shape that show the smallest value white.

Radiographs have both, and are inverted once (PS3.3 C.8.11.3.1.2).
"""


@dataclass(slots=True)
class Screen:
    """Shows the frames of one file.

    bits: of a sample of a colour.
    window: what the first frame was shown with; None where a VOI LUT or colour leaves nothing to
    choose. Frames without a window of their own have the range of the first one's values, so that
    an animation does not flicker.
    """

    file: DicomFile
    bits: int
    choice: Choice
    overlays: list[Overlay]
    window: Window | None = None
    _range: Window | None = field(default=None, init=False)
    _shown: bool = field(default=False, init=False)

    def show(self, frame: int, stored: NDArray[Any], values: NDArray[Any], unit: str) -> Pixels:
        """The picture of frame `frame` (0-based), 0 black to 255 white.

        values: modality values in `unit`, or RGB.
        """
        image = self.file.image
        assert image is not None
        if image.photometric.startswith("MONOCHROME"):
            picture = self._grey(frame, stored, values, unit)
        else:
            picture = eight_bits(values, self.bits)
        if self.overlays:
            # Pictures of colour may be the caller's own values, and nothing is drawn on those.
            picture = picture.copy()
            for overlay in self.overlays:
                overlay.draw(picture, frame)
        return picture

    def _grey(self, frame: int, stored: NDArray[Any], values: NDArray[Any], unit: str) -> Pixels:
        file = self.file
        transform = transform_of(
            file.header, frame, self.choice, unit, little_endian=file.little_endian
        )
        if transform is None:
            self._range = self._range or full_range(values, padding_mask(stored, file.header))
            transform = self._range
        if not self._shown:
            self.window = transform if isinstance(transform, Window) else None
            self._shown = True
        grey = (
            by_table(transform, values) if isinstance(transform, Lut) else transform.apply(values)
        )
        return ~grey if self._is_inverted() else grey

    def _is_inverted(self) -> bool:
        assert self.file.image is not None
        shape = text(self.file.header, "PresentationLUTShape")
        return self.file.image.photometric in INVERTED or shape in INVERTED


def by_table(table: Lut, values: NDArray[Any]) -> Pixels:
    """Grey values by a VOI LUT, whose largest output is white."""
    shown = table.apply(values) * (WHITE / ((1 << table.bits) - 1))
    grey: Pixels = np.rint(np.minimum(shown, WHITE)).astype(np.uint8)
    return grey
