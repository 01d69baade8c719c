"""Codes of classes as FHIR writes them."""

from typing import Any, Final

from export_worker.dicom.codes import CODE_VALUE, SIDED, located
from export_worker.findings import Class
from export_worker.wording import printable

DCM: Final = "http://dicom.nema.org/resources/ontology/DCM"
SYSTEMS: Final = {
    "SCT": "http://snomed.info/sct",
    "LN": "http://loinc.org",
    "DCM": DCM,
    "RADLEX": "urn:oid:2.16.840.1.113883.6.256",
    "NCIt": "http://ncicb.nci.nih.gov/xml/owl/EVS/Thesaurus.owl",
    "UMLS": "http://www.nlm.nih.gov/research/umls",
    "FMA": "urn:oid:2.16.840.1.113883.6.119",
}
"""What FHIR calls the coding schemes of PS3.16 table 8-1. A code of another means nothing here."""


def concept_of(of: Class) -> dict[str, Any]:
    """CodeableConcept of a class: codes of its manifest, else of its name where that is known."""
    codings = [
        {"system": SYSTEMS[one.scheme], "code": one.value, **displayed(one.meaning)}
        for one in of.codes
        # A manifest is written by hand, and one code that is none makes a validator refuse the
        # Bundle.
        if one.scheme in SYSTEMS and CODE_VALUE.fullmatch(one.value)
    ]
    if not codings:
        # Codes of a scheme that FHIR does not know must not hide what the name says.
        known = SIDED.get(of.name.lower()) or located(of._replace(codes=()))[0]
        # A code of our own scheme means nothing to an electronic record; the words do.
        if known.scheme_designator in SYSTEMS:
            codings = [
                {
                    "system": SYSTEMS[known.scheme_designator],
                    "code": known.value,
                    "display": known.meaning,
                }
            ]
    return {**({"coding": codings} if codings else {}), "text": of.text}


def displayed(meaning: str) -> dict[str, Any]:
    """What a code means, if that can be read."""
    text = printable(meaning)
    return {"display": text} if text else {}
