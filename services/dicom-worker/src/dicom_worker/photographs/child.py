"""What the codecs' child does for a photograph; it talks in plain values."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_worker.photographs.decoding import Pictures, examine
from dicom_worker.photographs.found import Format, Found, Kind
from dicom_worker.photographs.refusals import Refusal, RefusedError

kept: dict[str, Pictures] = {}
"""The file that is open, by its path. One at most: its pictures are asked for in order."""


def answer(request: dict[str, Any]) -> tuple[dict[str, Any], NDArray[Any] | None]:
    """What a file holds (`picture` is None), or one of its pictures.

    RefusedError: whatever a decoder raises is one, but for a lack of memory.
    """
    path, index = request["path"], request["picture"]
    try:
        if index is None:
            kept.clear()
            return {"found": told(examine(Path(path).read_bytes()))}, None
        if path not in kept:
            kept.clear()
            kept[path] = Pictures(Path(path).read_bytes())
        picture = kept[path].picture(index)
    except (RefusedError, MemoryError):
        kept.clear()
        raise
    except Exception:  # noqa: BLE001 - its text may quote the file
        kept.clear()
        raise RefusedError(Refusal.DECODER) from None
    # Nobody asks for more, and the child outlives the file.
    if index == kept[path].found.frames - 1:
        kept.clear()
    return {"converted": picture.converted, "composited": picture.composited}, picture.array


def told(found: Found) -> dict[str, Any]:
    """A walk's findings as JSON has them."""
    return asdict(found) | {"profile": None, "removed": dict(+found.removed)}


def understood(message: dict[str, Any]) -> Found:
    """The same, back again."""
    counts = Counter({Kind(kind): count for kind, count in message["removed"].items()})
    known = {"format": Format(message["format"]), "removed": counts, "profile": b""}
    return Found(**message | known)


def fits(array: NDArray[Any], found: Found) -> bool:
    """Whether an array is one that a photograph with these findings can become."""
    return (
        array.shape[:2] == found.size
        and array.shape[2:] in ((), (3,))
        and array.dtype == (np.uint16 if found.bits > 8 else np.uint8)  # noqa: PLR2004 - bits of a byte
    )
