"""Directory records (PS3.3 F.5): which kind an instance has, and what its records say."""

from itertools import chain
from typing import Final, NamedTuple

from fluoro_jobs.errors import FluoroError, Reason
from pydicom import uid
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.fileset import _FOUR_LEVEL_SOP_CLASSES
from pydicom.tag import BaseTag, Tag

from export_worker.dicom.sources import IDENTITY


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
"""What records tell of an instance."""


def kind_of(header: Dataset) -> str:
    """Of the record below its SERIES. FluoroError DICOM_INVALID if there is none for it."""
    sop_class = needed(header, "SOPClassUID").value
    if sop_class in CLASSES:
        return CLASSES[sop_class]
    if header.get("Rows") and header.get("Columns"):
        return "IMAGE"
    raise FluoroError(Reason.DICOM_INVALID, "No directory record is for a file of its SOP class.")


def record_of(kind: str, header: Dataset, number: int) -> Dataset:
    """A record, not yet in its place. number: among those beside it, from 1.

    FluoroError DICOM_INVALID without a key that it needs and nobody may invent.
    """
    _, required, empty, known = KINDS[kind]
    record = Dataset()
    record.OffsetOfTheNextDirectoryRecord = 0
    record.RecordInUseFlag = 0xFFFF
    record.OffsetOfReferencedLowerLevelDirectoryEntity = 0
    record.DirectoryRecordType = kind
    if "SpecificCharacterSet" in header:
        record.SpecificCharacterSet = header.SpecificCharacterSet
    for keyword in required:
        record.add(invented(header, keyword, number) or needed(header, keyword))
    if record.get("VerificationFlag") == "VERIFIED":
        record.VerificationDateTime = last_verified(header)
    for keyword in (*empty, *known):
        if element := told(header, keyword):
            record.add(element)
        elif keyword in empty:
            setattr(record, keyword, None)
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
    return max(str(needed(one, "VerificationDateTime").value) for one in observers)


def needed(header: Dataset, keyword: str) -> DataElement:
    """FluoroError DICOM_INVALID if nothing is known of it."""
    if element := told(header, keyword):
        return element
    raise FluoroError(
        Reason.DICOM_INVALID, f"The file has no valid {keyword}, so no directory can list it."
    )


def told(header: Dataset, keyword: str) -> DataElement | None:
    """What a header tells, if it has a value."""
    if keyword not in header or header[keyword].is_empty:
        return None
    return header[keyword]
