"""Codes of what models name: those of their manifests, else of SNOMED CT, else of our own."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from highdicom.sr import CodedConcept
from pydicom.sr.codedict import codes

from export_worker.dicom.origin import LO_BYTES, lo
from export_worker.findings import Class, Coding

SCHEME: Final = "99FLUORO"
"""Coding Scheme Designator of our own codes (PS3.16 8.2: private ones begin with 99)."""

CODE_VALUE: Final = re.compile(r"[!-\[\]-~]{1,200}")
"""A Code Value, or a Long Code Value (0008,0119): no space, no backslash."""
DESIGNATOR: Final = re.compile(r"[!-\[\]-~]{1,16}")
"""A Coding Scheme Designator (0008,0102), VR SH."""

CODE_CHARACTERS: Final = 16
"""Longest Code Value (0008,0100), VR SH."""
DIGEST_CHARACTERS: Final = 6
"""Of a digest in a code."""


@dataclass(frozen=True, slots=True)
class Coded:
    """A class of a model. category: Segmented Property Category; type: what it is."""

    category: CodedConcept
    type: CodedConcept


TISSUE: Final = CodedConcept("85756007", "SCT", "Tissue")
STRUCTURE: Final = CodedConcept("91723000", "SCT", "Anatomical Structure")
SUBSTANCE: Final = CodedConcept("91720002", "SCT", "Body Substance")
ABNORMAL: Final = CodedConcept.from_code(codes.SCT.MorphologicallyAbnormalStructure)

KNOWN: Final = {
    "air": Coded(SUBSTANCE, CodedConcept("15158005", "SCT", "Air")),
    "lung": Coded(STRUCTURE, CodedConcept("39607008", "SCT", "Lung")),
    "fat": Coded(TISSUE, CodedConcept("55603005", "SCT", "Adipose tissue")),
    "soft tissue": Coded(TISSUE, CodedConcept("87784001", "SCT", "Soft tissue")),
    "bone": Coded(TISSUE, CodedConcept("3138006", "SCT", "Bone")),
    "brain": Coded(STRUCTURE, CodedConcept("12738006", "SCT", "Brain")),
    "face": Coded(STRUCTURE, CodedConcept.from_code(codes.SCT.Face)),
    "eye": Coded(STRUCTURE, CodedConcept.from_code(codes.SCT.Eye)),
    "nose": Coded(STRUCTURE, CodedConcept.from_code(codes.SCT.Nose)),
    "mouth": Coded(STRUCTURE, CodedConcept.from_code(codes.SCT.Mouth)),
    "skin": Coded(STRUCTURE, CodedConcept.from_code(codes.SCT.Skin)),
    "lesion": Coded(ABNORMAL, CodedConcept.from_code(codes.SCT.Lesion)),
}
"""By display name in lower case (CID 7150 and 7151 of PS3.16)."""

SIDES: Final = {
    "left": CodedConcept.from_code(codes.SCT.Left),
    "right": CodedConcept.from_code(codes.SCT.Right),
}
OF_BODY: Final = re.compile("(?P<side>left|right) (?P<thing>.+)")
IN_IMAGE: Final = re.compile("(?P<thing>.+), (?:left|right) in the image")
"""Names with a side: of the patient, and of the picture."""
SIDED: Final = {
    "left eye": CodedConcept("8966001", "SCT", "Left eye structure"),
    "right eye": CodedConcept("18944008", "SCT", "Right eye structure"),
}
"""Codes that tell the side, for records without a place for it."""

NAMED: Final = {
    "Area": CodedConcept("42798000", "SCT", "Area"),
    "Largest diameter": CodedConcept("103339001", "SCT", "Long axis"),
    "Probability": CodedConcept.from_code(codes.DCM.Probability),
}
"""What is measured, where a standard has a code."""
UNITS: Final = {
    "1": CodedConcept("1", "UCUM", "no units"),
    "%": CodedConcept("%", "UCUM", "Percent"),
    "mm": CodedConcept("mm", "UCUM", "millimeter"),
    "mm2": CodedConcept("mm2", "UCUM", "square millimeter"),
}
"""Of measures, by unit in UCUM."""

FRACTION: Final = CodedConcept("fraction", SCHEME, "Fraction of image voxels")
VOXELS: Final = CodedConcept("voxels", SCHEME, "Number of voxels")
"""What no standard code says."""


def coded(of: Class) -> Coded:
    """Codes of a class: what the model's manifest says, else what its name says.

    Of our own scheme for a name that is not known.
    """
    # By name, because models number their classes each in their own way.
    known = KNOWN.get(of.name.lower())
    if (stated := stated_in(of.codes)) is not None:
        # The category is of Type 1. A class of which nobody knows better gets the widest one.
        return Coded(known.category if known else TISSUE, stated)
    return known or Coded(TISSUE, own_of(of))


def own_of(of: Class) -> CodedConcept:
    """The code of our own scheme for a class."""
    return own(lo(of.name) or f"Class {of.label}")


def name_beside(of: Class, code: CodedConcept) -> CodedConcept | None:
    """Our own code of a class whose name this code does not tell; None if it does.

    A manifest may call several classes the same, and a result need not have all of them.
    """
    mine = own_of(of)
    return None if code.meaning.lower() == mine.meaning.lower() else mine


def located(of: Class) -> tuple[CodedConcept, CodedConcept | None]:
    """Code of a thing in an image, and the side of the patient's body that its name tells.

    `left eye` is the patient's; `eye, left in the image` may be either.
    """
    if stated_in(of.codes) is None:
        for pattern in (OF_BODY, IN_IMAGE):
            found = pattern.fullmatch(of.name.lower())
            # Only `left eye` is of the patient. A camera may mirror, so left in the image is no
            # side of the body.
            if found and (known := KNOWN.get(found["thing"])):
                return known.type, SIDES.get(found["side"]) if pattern is OF_BODY else None
    return coded(of).type, None


def stated_in(codes: Iterable[Coding]) -> CodedConcept | None:
    """The first of these codes that DICOM can write, SNOMED CT before others."""
    # SNOMED CT is what PS3.16 takes its own codes from, so most readers know it.
    for code in sorted(codes, key=lambda one: one.scheme != "SCT"):
        if CODE_VALUE.fullmatch(code.value) and DESIGNATOR.fullmatch(code.scheme):
            return CodedConcept(code.value, code.scheme, lo(code.meaning) or code.value[:LO_BYTES])
    return None


def concept(name: str) -> CodedConcept:
    """Code of what is measured or said; of our own scheme if no standard has one."""
    return NAMED.get(name) or own(name)


def own(meaning: str) -> CodedConcept:
    """A code of our own scheme: the words of its meaning.

    It ends with a digest if these do not fit or are not all of it: two meanings have two codes.
    """
    meaning = lo(meaning)
    word = re.sub(r"[^a-z0-9]+", "-", meaning.lower()).strip("-")
    # Cut to 16 characters, two classes may begin alike, and a reader would take them for one.
    if len(word) > CODE_CHARACTERS or not meaning.isascii():
        digest = hashlib.sha256(meaning.encode()).hexdigest()[:DIGEST_CHARACTERS]
        kept = word[: CODE_CHARACTERS - DIGEST_CHARACTERS - 1].strip("-")
        word = f"{kept}-{digest}" if kept else digest
    return CodedConcept(word, SCHEME, meaning)
