"""Directory records (PS3.3 F.5): which kind an instance has, and what its records say."""

from collections.abc import Sequence
from itertools import chain
from typing import Any, Final, NamedTuple
from unicodedata import category

from fluoro_jobs.errors import FluoroError, Reason
from pydicom import config, uid
from pydicom.charset import python_encoding
from pydicom.datadict import dictionary_VM, dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.fileset import _FOUR_LEVEL_SOP_CLASSES
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.valuerep import BYTES_VR

from export_worker.dicom.sources import BINARY, CODE, IDENTITY, is_valid


class Kind(NamedTuple):
    """A kind of records. prefix: of File IDs, two letters.

    required: keywords of its keys of Type 1. empty: of Type 2. known: of Types 1C and 3.
    """

    prefix: str
    required: tuple[str, ...]
    empty: tuple[str, ...] = ()
    known: tuple[str, ...] = ()


CONTENT: Final = ("InstanceNumber", "ContentDate", "ContentTime")
DESCRIPTION: Final = ("ContentDescription", "ContentCreatorName")

KINDS: Final = {
    "PATIENT": Kind("PT", ("PatientID",), ("PatientName",), ("IssuerOfPatientID",)),
    "STUDY": Kind(
        "ST",
        ("StudyDate", "StudyTime", "StudyInstanceUID", "StudyID"),
        ("StudyDescription", "AccessionNumber"),
    ),
    "SERIES": Kind("SE", ("Modality", "SeriesInstanceUID", "SeriesNumber")),
    "IMAGE": Kind("IM", ("InstanceNumber",)),
    "RT DOSE": Kind("RD", ("InstanceNumber", "DoseSummationType")),
    "RT STRUCTURE SET": Kind(
        "RS", ("InstanceNumber", "StructureSetLabel"), ("StructureSetDate", "StructureSetTime")
    ),
    "RT PLAN": Kind("RP", ("InstanceNumber", "RTPlanLabel"), ("RTPlanDate", "RTPlanTime")),
    "RT TREAT RECORD": Kind("RX", ("InstanceNumber",), ("TreatmentDate", "TreatmentTime")),
    "PRESENTATION": Kind(
        "PR",
        (
            *("PresentationCreationDate", "PresentationCreationTime"),
            *("InstanceNumber", "ContentLabel"),
        ),
        DESCRIPTION,
        ("ReferencedSeriesSequence", "BlendingSequence"),
    ),
    "WAVEFORM": Kind("WV", CONTENT),
    "SR DOCUMENT": Kind(
        "SR",
        (*CONTENT, "CompletionFlag", "VerificationFlag", "ConceptNameCodeSequence"),
    ),
    "KEY OBJECT DOC": Kind("KY", (*CONTENT, "ConceptNameCodeSequence")),
    "SPECTROSCOPY": Kind(
        "SP",
        (
            *(*CONTENT, "ImageType", "NumberOfFrames", "Rows", "Columns"),
            *("DataPointRows", "DataPointColumns"),
        ),
        (),
        ("ReferencedImageEvidenceSequence",),
    ),
    "RAW DATA": Kind("RW", CONTENT),
    "REGISTRATION": Kind("RG", (*CONTENT, "ContentLabel"), DESCRIPTION),
    "FIDUCIAL": Kind("FD", (*CONTENT, "ContentLabel"), DESCRIPTION),
    "ENCAP DOC": Kind(
        "ED",
        ("InstanceNumber", "MIMETypeOfEncapsulatedDocument"),
        ("ContentDate", "ContentTime", "DocumentTitle", "ConceptNameCodeSequence"),
        ("HL7InstanceIdentifier",),
    ),
    "VALUE MAP": Kind("VM", (*CONTENT, "ContentLabel"), DESCRIPTION),
    "STEREOMETRIC": Kind("SX", (), DESCRIPTION, ("InstanceNumber", "ContentLabel")),
    "PLAN": Kind("PL", ()),
    "MEASUREMENT": Kind("MX", (*CONTENT, "ContentLabel"), DESCRIPTION),
    "SURFACE": Kind("SF", (*CONTENT, "ContentLabel"), DESCRIPTION),
    "SURFACE SCAN": Kind("SS", ("ContentDate", "ContentTime")),
    "TRACT": Kind("TR", (*CONTENT, "ContentLabel"), DESCRIPTION),
    "ASSESSMENT": Kind("AS", ("InstanceNumber", "InstanceCreationDate"), ("InstanceCreationTime",)),
    "RADIOTHERAPY": Kind(
        "RT", ("InstanceNumber",), DESCRIPTION, ("UserContentLabel", "UserContentLongLabel")
    ),
    "ANNOTATION": Kind("AN", (*CONTENT, "ContentLabel"), DESCRIPTION),
}

CLASSES: Final = {
    **_FOUR_LEVEL_SOP_CLASSES,
    **dict.fromkeys(
        (
            *(uid.EncapsulatedPDFStorage, uid.EncapsulatedCDAStorage, uid.EncapsulatedSTLStorage),
            *(uid.EncapsulatedOBJStorage, uid.EncapsulatedMTLStorage),
        ),
        "ENCAP DOC",
    ),
    **dict.fromkeys((uid.RTPlanStorage, uid.RTIonPlanStorage), "RT PLAN"),
    **dict.fromkeys(
        (
            uid.GrayscalePlanarMPRVolumetricPresentationStateStorage,
            uid.CompositingPlanarMPRVolumetricPresentationStateStorage,
            uid.AdvancedBlendingPresentationStateStorage,
            uid.VolumeRenderingVolumetricPresentationStateStorage,
            uid.SegmentedVolumeRenderingVolumetricPresentationStateStorage,
            uid.MultipleVolumeRenderingVolumetricPresentationStateStorage,
            uid.VariableModalityLUTSoftcopyPresentationStateStorage,
        ),
        "PRESENTATION",
    ),
    uid.General32bitECGWaveformStorage: "WAVEFORM",
    uid.IntraocularLensCalculationsStorage: "MEASUREMENT",
    uid.EnhancedXRayRadiationDoseSRStorage: "SR DOCUMENT",
    uid.WaveformAnnotationSRStorage: "SR DOCUMENT",
    uid.MicroscopyBulkSimpleAnnotationsStorage: "ANNOTATION",
    **dict.fromkeys(
        (
            *(uid.RTPhysicianIntentStorage, uid.RTSegmentAnnotationStorage),
            *(uid.RTRadiationSetStorage, uid.CArmPhotonElectronRadiationStorage),
            *(uid.TomotherapeuticRadiationStorage, uid.RoboticArmRadiationStorage),
            *(uid.RTRadiationRecordSetStorage, uid.RTRadiationSalvageRecordStorage),
            uid.TomotherapeuticRadiationRecordStorage,
            uid.CArmPhotonElectronRadiationRecordStorage,
            uid.RoboticRadiationRecordStorage,
            uid.RTRadiationSetDeliveryInstructionStorage,
            uid.RTTreatmentPreparationStorage,
            uid.RTPatientPositionAcquisitionInstructionStorage,
        ),
        "RADIOTHERAPY",
    ),
    uid.RTBeamsDeliveryInstructionStorage: "PLAN",
    uid.RTBrachyApplicationSetupDeliveryInstructionStorage: "PLAN",
}
"""Kinds by SOP class, where they are not IMAGE. pydicom's table lacks the newer ones."""

NUMBERED: Final = ("StudyID", "SeriesNumber", "InstanceNumber")
"""Keys that the creator of a file-set may number (PS3.3 F.5), as `dcmgpdir +I` does."""
INSTEAD: Final = {
    "StudyDate": ("SeriesDate", "AcquisitionDate", "ContentDate"),
    "StudyTime": ("SeriesTime", "AcquisitionTime", "ContentTime"),
}
"""Of keys, what tells nearly the same."""
UNKNOWN: Final = {"DA": "19000101", "TM": "000000"}
"""By VR, what stands for a moment that nothing is known of: keys of Type 1 cannot be empty."""

UNICODE: Final = "ISO_IR 192"
FREE: Final = ("LT", "ST", "UT")
"""VRs of text with lines."""
FLAGS: Final = {
    "CompletionFlag": {"PARTIAL", "COMPLETE"},
    "VerificationFlag": {"UNVERIFIED", "VERIFIED"},
}
"""Enumerated Values of keys."""

BESIDE: Final = (
    *("SOPClassUID", "SOPInstanceUID", "Rows", "Columns"),
    *("VerifyingObserverSequence", "VerificationDateTime"),
)
"""Keywords of what is read beside keys and who the patient is."""

TAGS: Final[list[BaseTag | int]] = [
    Tag(keyword)
    for keyword in sorted(
        {
            *IDENTITY,
            *BESIDE,
            *chain(*INSTEAD.values()),
            *(keyword for kind in KINDS.values() for keys in kind[1:] for keyword in keys),
        }
    )
]
"""What records say of an instance."""


def identity_of(header: Dataset) -> tuple[str, ...]:
    """Who the patient is. FluoroError DICOM_INVALID if a part of that is no name or number."""
    return tuple(
        str(needed(header, keyword).value) if has(header, keyword) else "" for keyword in IDENTITY
    )


def kind_of(header: Dataset) -> str:
    """Of the record below its SERIES. FluoroError DICOM_INVALID if there is none for it."""
    sop_class = needed(header, "SOPClassUID").value
    if sop_class in CLASSES:
        return CLASSES[sop_class]
    # An image of a class that is newer than the table is an image all the same.
    if header.get("Rows") and header.get("Columns"):
        return "IMAGE"
    raise FluoroError(Reason.DICOM_INVALID, "No directory record is for a file of its SOP class.")


def record_of(kind: str, header: Dataset, number: int) -> Dataset:
    """A record, not yet in its place. number: among those beside it, from 1.

    FluoroError DICOM_INVALID without a key that it needs and nobody may invent.
    """
    _, required, empty, known = KINDS[kind]
    record = Dataset()
    # Offsets are filled in by `Directory.written`, when all records are known.
    record.OffsetOfTheNextDirectoryRecord = 0
    # In use (PS3.3 F.3.2.2).
    record.RecordInUseFlag = 0xFFFF
    record.OffsetOfReferencedLowerLevelDirectoryEntity = 0
    record.DirectoryRecordType = kind
    for keyword in required:
        record.add(invented(header, keyword, number) or needed(header, keyword))
    if record.get("VerificationFlag") == "VERIFIED":
        record.VerificationDateTime = last_verified(header)
    for keyword in empty:
        record.add(told(header, keyword) or DataElement(Tag(keyword), dictionary_VR(keyword), None))
    for keyword in known:
        if has(header, keyword):
            record.add(needed(header, keyword))
    if characters := characters_of(header, record):
        record.SpecificCharacterSet = characters
    return record


def invented(header: Dataset, keyword: str, number: int) -> DataElement | None:
    """A value for a key that a header does not tell; files without identity have few left."""
    if told(header, keyword):
        return None
    tag, vr = Tag(keyword), dictionary_VR(keyword)
    if keyword in NUMBERED:
        return DataElement(tag, vr, str(number))
    others = (told(header, other) for other in INSTEAD.get(keyword, ()))
    if other := next(filter(None, others), None):
        return DataElement(tag, vr, other.value)
    return DataElement(tag, vr, UNKNOWN[vr]) if vr in UNKNOWN else None


def last_verified(header: Dataset) -> str:
    """When somebody last verified a document. FluoroError DICOM_INVALID if it does not say so."""
    observers = header.get("VerifyingObserverSequence") or [header]
    # Several may have verified it, and the record has room for the last one.
    return max(str(needed(one, "VerificationDateTime").value) for one in observers)


def needed(header: Dataset, keyword: str) -> DataElement:
    """FluoroError DICOM_INVALID if nothing is known of it."""
    if element := told(header, keyword):
        return element
    raise FluoroError(
        Reason.DICOM_INVALID, f"The file has no valid {keyword}, so no directory can list it."
    )


def told(header: Dataset, keyword: str) -> DataElement | None:
    """What a header tells, if that is valid: one value that is not makes a DICOMDIR invalid."""
    if not has(header, keyword):
        return None
    element = header[keyword]
    # A hostile file may call a name a sequence, and the record would be written so.
    if dictionary_VR(keyword) != element.VR or not is_sound(element):
        return None
    if element.VR == "SQ":
        codes = element.value if keyword == "ConceptNameCodeSequence" else ()
        return element if all(has(code, part) for code in codes for part in CODE) else None
    if element.VR not in BINARY:
        # As it was decoded: what its bytes said may not be text.
        texts = [str(value) for value in values_of(element)]
        element = DataElement(element.tag, element.VR, texts, validation_mode=config.IGNORE)
    return element


def has(header: Dataset, keyword: str) -> bool:
    """Whether there is a value."""
    return keyword in header and not header[keyword].is_empty


def is_sound(element: DataElement) -> bool:
    """Whether VR and VM allow the value, at any depth of a sequence."""
    if element.VR == "SQ":
        return all(is_sound(part) for item in element.value for part in item)
    if element.VR in BYTES_VR:
        return True
    values = values_of(element)
    return (
        (len(values) <= 1 or element.tag.is_private or dictionary_VM(element.tag) != "1")
        # A key that is none by its VR makes readers refuse the whole DICOMDIR, not this record.
        and is_valid(element.keyword, element.VR, values)
        and {str(value) for value in values} <= FLAGS.get(element.keyword, {*map(str, values)})
        and (
            element.VR in FREE
            # Only texts with lines may have control characters (PS3.5 6.1.3).
            or not any(category(one) == "Cc" for one in "".join(map(str, values)))
        )
    )


def values_of(element: DataElement) -> Sequence[Any]:
    """Its values, of which there may be none."""
    if element.is_empty:
        return []
    return element.value if isinstance(element.value, MultiValue) else [element.value]


def characters_of(header: Dataset, record: Dataset) -> Any:
    """Specific Character Set (0008,0005): Unicode if the texts need one and none is known."""
    # Values stand in the record in the character set of their file.
    if has(header, "SpecificCharacterSet"):
        element = header["SpecificCharacterSet"]
        known = all(name in python_encoding for name in values_of(element))
        return element.value if known else UNICODE
    texts = (str(part.value) for part in record.iterall() if part.VR != "SQ")
    return None if all(map(str.isascii, texts)) else UNICODE
