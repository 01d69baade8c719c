"""Takes values under keys that name a patient's data out of a log event before it is written.

A net, not a licence: code does not log such values, and no net catches them inside a sentence.
"""

import re
from collections.abc import Mapping, MutableMapping
from typing import Any, Final

REDACTED: Final = "[redacted]"
"""What replaces a value."""

_KEYS: Final = frozenset(
    {
        "accessionnumber",
        "admissionid",
        "birthdate",
        "birthtime",
        "contentcreatorname",
        "currentpatientlocation",
        "dateofbirth",
        "dob",
        "ethnicgroup",
        "institutionaddress",
        "institutionname",
        "issuerofpatientid",
        "medicalrecordlocator",
        "medicalrecordnumber",
        "militaryrank",
        "mothersbirthname",
        "mrn",
        "nameofphysiciansreadingstudy",
        "occupation",
        "operatorsname",
        "originalfilename",
        "otherpatientids",
        "otherpatientidssequence",
        "otherpatientnames",
        "performingphysicianname",
        "personaddress",
        "personname",
        "persontelephonenumbers",
        "physiciansofrecord",
        "referringphysicianaddress",
        "referringphysicianname",
        "referringphysiciantelephonenumbers",
        "regionofresidence",
        "requestingphysician",
        "responsibleperson",
        "scheduledperformingphysicianname",
        "stationname",
        "studyid",
        "verifyingobservername",
    }
)
"""DICOM keywords that reveal who someone is (PS3.15 table E.1-1), and everyday words for them.

In lower case, letters only.
"""

_GROUP_0010: Final = re.compile(r"\(?0010,? ?[0-9a-f]{4}\)?", re.IGNORECASE)
"""A tag of the patient group, as pydicom prints it or as DICOM JSON does."""


def redact_patient_data(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Replaces values under patients' keys, at any depth, and whole pydicom objects, in a copy.

    A structlog processor.
    """
    return {key: _value(key, value) for key, value in event.items()}


def _value(key: object, value: Any) -> Any:
    # A pydicom object prints all that it holds, whatever its key is.
    if _names_patient_data(str(key)) or type(value).__module__.partition(".")[0] == "pydicom":
        return REDACTED
    if isinstance(value, Mapping):
        return {inner: _value(inner, each) for inner, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        # Elements of a list have no key of their own.
        return [_value("", each) for each in value]
    return value


def _names_patient_data(key: str) -> bool:
    # `PatientName`, `patient_name` and `patient-name` are one word.
    word = re.sub(r"[^a-z]", "", key.lower())
    return word.startswith("patient") or word in _KEYS or _GROUP_0010.fullmatch(key) is not None
