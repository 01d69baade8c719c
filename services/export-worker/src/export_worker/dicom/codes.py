"""Codes of what models name: SNOMED CT where there is one, else a code of our own."""

import re
from dataclasses import dataclass
from typing import Final

from highdicom.sr import CodedConcept

SCHEME: Final = "99FLUORO"
"""Coding Scheme Designator of our own codes (PS3.16 8.2: private ones begin with 99)."""

CODE_CHARACTERS: Final = 16
"""Longest Code Value (0008,0100), VR SH."""


@dataclass(frozen=True, slots=True)
class Coded:
    """A class of a model. category: Segmented Property Category; type: what it is."""

    category: CodedConcept
    type: CodedConcept


TISSUE: Final = CodedConcept("85756007", "SCT", "Tissue")
STRUCTURE: Final = CodedConcept("91723000", "SCT", "Anatomical Structure")
SUBSTANCE: Final = CodedConcept("91720002", "SCT", "Body Substance")

KNOWN: Final = {
    "air": Coded(SUBSTANCE, CodedConcept("15158005", "SCT", "Air")),
    "lung": Coded(STRUCTURE, CodedConcept("39607008", "SCT", "Lung")),
    "fat": Coded(TISSUE, CodedConcept("55603005", "SCT", "Adipose tissue")),
    "soft tissue": Coded(TISSUE, CodedConcept("87784001", "SCT", "Soft tissue")),
    "bone": Coded(TISSUE, CodedConcept("3138006", "SCT", "Bone")),
}
"""By display name in lower case (CID 7150 and 7151 of PS3.16)."""

FRACTION: Final = CodedConcept("fraction", SCHEME, "Fraction of image voxels")
VOXELS: Final = CodedConcept("voxels", SCHEME, "Number of voxels")
"""What no standard code says."""


def coded(display_name: str, label: int) -> Coded:
    """Codes of a class; of our own scheme for a name that is not known."""
    known = KNOWN.get(display_name.lower())
    if known is not None:
        return known
    word = re.sub(r"[^a-z0-9]+", "-", display_name.lower()).strip("-") or f"class-{label}"
    meaning = " ".join(display_name.replace("\\", " ").split())[:64] or f"Class {label}"
    return Coded(TISSUE, CodedConcept(word[:CODE_CHARACTERS], SCHEME, meaning))
