"""Attributes that enhanced multi-frame objects keep in functional groups (PS3.3 C.7.6.16).

Other objects keep them at the top.
"""

from collections.abc import Callable

from fluoro_jobs.errors import Reason
from pydicom.dataset import Dataset

from dicom_worker.attributes import item, value
from dicom_worker.blame import blame_file


def macro(header: Dataset, frame: int, keyword: str) -> Dataset:
    """The data set that holds the attributes of a macro.

    Its item for this frame (0-based), the shared one, or the header itself.
    """
    return macros(header, frame)(keyword)


def macros(header: Dataset, frame: int) -> Callable[[str], Dataset]:
    """What gives each macro of a frame, for those who ask for many."""
    with blame_file(Reason.DICOM_INVALID, "The functional groups cannot be read."):
        per_frame = (value(header, "PerFrameFunctionalGroupsSequence") or [])[frame : frame + 1]
        shared = (value(header, "SharedFunctionalGroupsSequence") or [])[:1]
        # A macro is in one of the two, never in both (PS3.3 C.7.6.16). Where a writer errs, the
        # frame's own item is the nearer truth.
        groups = (*per_frame, *shared)

    def find(keyword: str) -> Dataset:
        with blame_file(Reason.DICOM_INVALID, "The functional groups cannot be read."):
            found = (item(each, keyword) for each in groups if keyword in each)
            return next((each for each in found if each is not None), header)

    return find
