"""What the codecs' child does for a slide; it talks in plain values."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_worker.photographs.refusals import Refusal, RefusedError
from dicom_worker.slides.tiff import Pyramid

kept: dict[tuple[str, float], Pyramid] = {}
"""The slide that is open, by its path and wanted pixel size. One at most."""


def answer(
    request: dict[str, Any], room: memoryview
) -> tuple[dict[str, Any], NDArray[np.uint8] | None]:
    """What the slide is like (`row` is None), or some tiles of a row, which lie in the room then.

    RefusedError: whatever a decoder raises is one, but for a lack of memory.
    """
    try:
        pyramid = opened(request["slide"], request["micrometres"])
        if request["row"] is None:
            return {"level": asdict(pyramid.level)}, None
        return {}, pyramid.tiles(request["row"], request["first"], request["count"], room)
    except (RefusedError, MemoryError):
        forget()
        raise
    except Exception:  # noqa: BLE001 - its text may quote the file
        forget()
        raise RefusedError(Refusal.BROKEN) from None


def opened(path: str, micrometres: float) -> Pyramid:
    """The slide, open."""
    key = (path, micrometres)
    if key not in kept:
        forget()
        kept[key] = Pyramid(Path(path), micrometres)
    return kept[key]


def forget() -> None:
    """Closes the slide that is open."""
    while kept:
        kept.popitem()[1].close()
