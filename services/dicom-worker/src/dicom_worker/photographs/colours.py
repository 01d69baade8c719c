"""From the colours of a file to sRGB on white."""

from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dicom_worker.photographs.refusals import Refusal, RefusedError

SPACES: Final = {"GRAY": ("gray", 1), "RGB ": ("rgb", 3), "CMYK": ("cmyk", 4)}
"""Colour space of a profile (ICC.1 7.2.6) → its name in imagecodecs, and its samples."""
INTENT: Final = 1
"""Relative colorimetric: what sRGB holds stays as it is, white is white."""
PROFILE_LIMIT_BYTES: Final = 16 * 1024 * 1024
"""The largest profiles of printing presses have some 3 MB."""
NEAR: Final = 1
"""Steps of 256 by which a profile that is sRGB's may differ from ours."""
STEPS: Final = 17
"""Values of each channel that a profile is tried with."""


@cache
def srgb() -> bytes:
    """The sRGB profile of Little CMS."""
    from imagecodecs import cms_profile  # noqa: PLC0415 - takes most of a second, in the child

    return bytes(cms_profile("srgb"))


@cache
def adobe_rgb() -> bytes:
    """Adobe RGB (1998), which cameras name in Exif and do not embed."""
    from imagecodecs import cms_profile  # noqa: PLC0415 - see above

    return bytes(cms_profile("adobergb"))


def to_srgb(array: NDArray[Any], profile: bytes) -> tuple[NDArray[Any], bool]:
    """The picture in sRGB, and whether that changed it.

    array: (rows, columns) grey, or (rows, columns, 3) RGB, or of 4 CMYK; uint8 or uint16. Result:
    the same depth, grey or RGB. RefusedError PROFILE if the profile is none, or of other colours.
    """
    samples = array.shape[2] if array.ndim > 2 else 1  # noqa: PLR2004 - grey has two
    space, expected = SPACES.get(profile[16:20].decode("latin-1"), ("", 0))
    if samples == 1 and space == "rgb":
        return array, False  # its grey axis is that of every RGB profile: grey
    if expected != samples or len(profile) > PROFILE_LIMIT_BYTES:
        raise RefusedError(Refusal.PROFILE)
    if samples != 4 and is_near(space, profile, samples):  # noqa: PLR2004 - CMYK is converted always
        return array, False
    rgb = transformed(array, space, profile)
    # What lcms makes of grey is grey, give or take one.
    return (np.ascontiguousarray(rgb[..., 1]) if samples == 1 else rgb), True


def is_near(space: str, profile: bytes, samples: int) -> bool:
    """Whether a profile says the same as sRGB's: nothing is rounded for nothing."""
    ramp = np.linspace(0, 255, STEPS).round().astype(np.uint8)
    if samples == 1:
        given = ramp[None]
        wanted = np.repeat(given[..., None], 3, axis=2)
    else:
        given = np.stack(np.meshgrid(ramp, ramp, ramp), axis=-1).reshape(1, -1, 3)
        wanted = given
    found = transformed(np.ascontiguousarray(given), space, profile)
    return bool(np.abs(found.astype(np.int16) - wanted).max() <= NEAR)


def transformed(array: NDArray[Any], space: str, profile: bytes) -> NDArray[Any]:
    """RGB by Little CMS. RefusedError PROFILE if it takes no such profile."""
    from imagecodecs import CmsError, cms_transform  # noqa: PLC0415 - see above

    try:
        return np.asarray(
            cms_transform(
                array, profile, srgb(), colorspace=space, outcolorspace="rgb", intent=INTENT
            )
        )
    except (CmsError, ValueError):
        raise RefusedError(Refusal.PROFILE) from None


def on_white(array: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
    """The picture over white, as paper and browsers show it. alpha: straight, of the same depth."""
    top = np.iinfo(array.dtype).max
    share = alpha if array.ndim == alpha.ndim else alpha[..., None]
    wide = np.uint16 if array.dtype == np.uint8 else np.uint32
    result = np.empty_like(array)
    # Row by row in blocks: the products need twice the room.
    for start in range(0, len(array), 256):
        rows = slice(start, start + 256)
        weight = share[rows].astype(wide)
        # Half of the divisor is added, so that the division rounds.
        mixed = array[rows] * weight + (top - weight) * top + top // 2
        result[rows] = mixed // top
    return result
