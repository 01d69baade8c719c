"""DICOMDIR: what its records say of instances, and of which it has none."""

import io
import os
import shutil
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any, Final

import pytest
from export_worker.dicom.directory import Directory
from export_worker.dicom.records import KINDS
from export_worker.operations.archive import export_archive
from export_worker.testing import JOB, ct_slices
from fluoro.v1 import dicom_pb2
from fluoro.v1.export_pb2 import ExportArchive, ExportArchiveResult
from fluoro_jobs.testing import step_context
from pydicom import dcmread, uid
from pydicom.dataset import Dataset
from pydicom.fileset import FileSet
from pydicom.uid import UID


def archived(folder: Path, *files: bytes) -> ExportArchiveResult:
    """What an archive of these says, which stands in the folder `disc`."""
    left = step_context(folder, step="fetch")
    for number, data in enumerate(files):
        left.context.put(f"instance-{number}.dcm", "instance", "application/dicom", data)
    upstream = left.as_upstream(dicom_pb2.InspectDicomResult())
    attempt = step_context(folder, (), [upstream], step="pack")
    attempt.context.job = JOB
    result = export_archive(ExportArchive(dicomdir=True), attempt.context)
    zipfile.ZipFile(io.BytesIO(attempt.read("archive.zip"))).extractall(folder / "disc")
    return result


def saved(data: Dataset) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that are wrong on purpose
        data.save_as(file := io.BytesIO(), enforce_file_format=True)
    return file.getvalue()


def valid(directory: Path) -> list[Dataset]:
    """Its records, in which dicom3tools finds no fault."""
    program = Path(sys.executable).with_name("dciodvfy")
    told = subprocess.run([program, directory], capture_output=True, check=False, timeout=60)
    errors = (line for line in told.stderr.splitlines() if line.startswith(b"Error"))
    # It does not know the youngest kinds.
    assert not [line for line in errors if not line.endswith(b"<Directory Record Type>")]
    return list(dcmread(directory).DirectoryRecordSequence)


def listed(folder: Path, *instances: Dataset) -> tuple[ExportArchiveResult, list[Dataset]]:
    """What an archive of them says, and the records of its DICOMDIR."""
    result = archived(folder, *map(saved, instances))
    records = valid(folder / "disc" / "DICOMDIR")
    for record in records:
        if "ReferencedFileID" in record:
            data = dcmread((folder / "disc").joinpath(*record.ReferencedFileID))
            assert data.SOPInstanceUID == record.ReferencedSOPInstanceUIDInFile
    return result, records


def one_of_each(instances: int) -> list[Dataset]:
    """Slices in studies of their own."""
    slices = ct_slices(instances)
    for number, data in enumerate(slices):
        data.StudyInstanceUID, data.SeriesInstanceUID = f"2.25.1{number}", f"2.25.2{number}"
    return slices


def test_patients_with_one_id_have_records_of_their_own(tmp_path: Path) -> None:
    patients = [("17", "North", "Doe^Jane"), ("17", "South", "Doe^Jane"), ("17", "", "Roe^Rick")]
    slices = one_of_each(6)
    for data, patient in zip(slices, patients * 2, strict=True):
        data.PatientID, data.IssuerOfPatientID, data.PatientName = patient
    _, records = listed(tmp_path, *slices)
    kinds = [record.DirectoryRecordType for record in records]
    assert kinds == ["PATIENT", *["STUDY", "SERIES", "IMAGE"] * 2] * 3
    names = [str(record.PatientName) for record in records if "PatientName" in record]
    assert names == [name for _, _, name in patients]


def test_a_dicomdir_has_the_bytes_that_pydicom_writes(tmp_path: Path) -> None:
    ours, theirs = Directory("2.25.1"), FileSet()
    theirs.UID = UID("2.25.1")
    staged = [theirs._stage["t"]]
    for number, data in enumerate(ct_slices(6)):
        data.PatientID = f"patient {number % 2}"
        data.SeriesInstanceUID = f"2.25.{number % 3}"
        name = ours.add(data)
        assert theirs.add(data).FileID == name
    theirs.write(tmp_path)
    for folder in (*staged, theirs._stage["t"]):
        folder.cleanup()  # pydicom leaves that to a finalizer, which warns
    assert ours.written() == (tmp_path / "DICOMDIR").read_bytes()


OF_PLACE: Final = (0x00041400, 0x00041500)
"""Offset of the Next Directory Record, and File ID: in each file-set others."""
OTHER_KINDS: Final[dict[str, dict[str, Any]]] = {
    uid.RTDoseStorage: {"DoseSummationType": "PLAN"},
    uid.RTStructureSetStorage: {"StructureSetLabel": "Organs", "StructureSetDate": "20260102"},
    uid.RTPlanStorage: {"RTPlanLabel": "Plan", "RTPlanDate": "20260102", "RTPlanTime": ""},
    uid.RTBeamsTreatmentRecordStorage: {"TreatmentDate": "20260102", "TreatmentTime": "0910"},
    uid.RTPhysicianIntentStorage: {"UserContentLabel": "INTENT"},
    uid.RTBeamsDeliveryInstructionStorage: {},
    uid.GrayscaleSoftcopyPresentationStateStorage: {
        "PresentationCreationDate": "20260102",
        "PresentationCreationTime": "091011",
    },
    uid.GrayscalePlanarMPRVolumetricPresentationStateStorage: {
        "PresentationCreationDate": "20260102",
        "PresentationCreationTime": "091011",
    },
    uid.TwelveLeadECGWaveformStorage: {},
    uid.ComprehensiveSRStorage: {"CompletionFlag": "COMPLETE", "VerificationFlag": "VERIFIED"},
    uid.EnhancedXRayRadiationDoseSRStorage: {
        "CompletionFlag": "PARTIAL",
        "VerificationFlag": "UNVERIFIED",
    },
    uid.KeyObjectSelectionDocumentStorage: {},
    uid.MRSpectroscopyStorage: {"NumberOfFrames": 1, "DataPointRows": 1, "DataPointColumns": 512},
    uid.RawDataStorage: {},
    uid.SpatialRegistrationStorage: {},
    uid.SpatialFiducialsStorage: {},
    uid.RealWorldValueMappingStorage: {},
    uid.StereometricRelationshipStorage: {},
    uid.LensometryMeasurementsStorage: {},
    uid.SurfaceSegmentationStorage: {},
    uid.SurfaceScanMeshStorage: {},
    uid.TractographyResultsStorage: {},
    uid.ContentAssessmentResultsStorage: {"InstanceCreationDate": "20260102"},
    uid.MicroscopyBulkSimpleAnnotationsStorage: {},
    uid.EncapsulatedPDFStorage: {
        "DocumentTitle": "Letter",
        "MIMETypeOfEncapsulatedDocument": "application/pdf",
        "EncapsulatedDocument": b"%PDF-1.7",
    },
}


def of_kind(sop_class: str, attributes: dict[str, Any], number: int) -> Dataset:
    """An instance with what any of the kinds needs, and these attributes."""
    [data] = ct_slices(1)
    del data.PixelData
    if sop_class != uid.MRSpectroscopyStorage:
        del data.Rows, data.Columns
    verification = Dataset()
    verification.VerificationDateTime = f"2026010{1 + number % 9}"
    earlier = Dataset()
    earlier.VerificationDateTime = "20251231"
    [series] = data.ReferencedSeriesSequence = [Dataset()]
    [image] = series.ReferencedImageSequence = [Dataset()]
    series.SeriesInstanceUID, image.ReferencedSOPInstanceUID = "2.25.3", "2.25.4"
    image.ReferencedSOPClassUID = uid.CTImageStorage
    data.ReferencedImageEvidenceSequence = [image]
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = sop_class
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"2.25.1{number}"
    data.SeriesInstanceUID, data.SeriesNumber, data.Modality = f"2.25.2{number}", number, "OT"
    data.ContentDate, data.ContentTime, data.InstanceNumber = "20260102", "091011", number
    data.ContentLabel, data.ContentDescription, data.ContentCreatorName = "LABEL", "told", "Doe^A"
    [title] = data.ConceptNameCodeSequence = [Dataset()]
    title.CodeValue, title.CodingSchemeDesignator = "18748-4", "LN"
    title.CodeMeaning = "Diagnostic imaging study"
    data.VerifyingObserverSequence = [earlier, verification]
    for keyword, value in attributes.items():
        setattr(data, keyword, value)
    return data


def test_a_dicomdir_has_the_records_that_dcmtk_makes(tmp_path: Path) -> None:
    if not shutil.which("dcmgpdir"):
        (pytest.fail if os.environ.get("CI") else pytest.skip)("dcmtk is not installed")
    instances = [
        of_kind(sop_class, attributes, number)
        for number, (sop_class, attributes) in enumerate(OTHER_KINDS.items())
    ]
    result, ours = listed(tmp_path, *instances)
    assert (result.dicomdir_instances, result.dicomdir_left_out) == (len(OTHER_KINDS), 0)
    (theirs := tmp_path / "theirs").mkdir()
    for number, data in enumerate(instances):
        (theirs / f"{number}").write_bytes(saved(data))
    order = ["dcmgpdir", "-Nxc", "+I", "+D", "DICOMDIR", *(f"{n}" for n in range(len(instances)))]
    subprocess.run(order, cwd=theirs, check=True, capture_output=True, timeout=60)
    made = {
        record.ReferencedSOPInstanceUIDInFile: record
        for record in dcmread(theirs / "DICOMDIR").DirectoryRecordSequence
        if "ReferencedFileID" in record
    }
    kinds = set()
    for record in ours:
        if "ReferencedFileID" in record:
            other = made[record.ReferencedSOPInstanceUIDInFile]
            kinds.add(record.DirectoryRecordType)
            for element in other:
                if element.tag not in OF_PLACE:
                    assert record.get(element.tag) == element, record.DirectoryRecordType
    assert kinds == set(KINDS) - {"PATIENT", "STUDY", "SERIES", "IMAGE"}


def test_keys_that_files_without_identity_have_not_are_made(tmp_path: Path) -> None:
    first, second, third = slices = one_of_each(3)
    second.StudyInstanceUID = first.StudyInstanceUID
    for data in slices:
        for keyword in ("StudyID", "SeriesNumber", "InstanceNumber"):
            setattr(data, keyword, None)
        for event in ("Study", "Series", "Acquisition", "Content"):
            setattr(data, f"{event}Date", None)
            setattr(data, f"{event}Time", None)
    third.SeriesDate, third.SeriesTime = "20260102", "0304"
    third.PatientID = "another"
    result, records = listed(tmp_path, *slices)
    assert (result.dicomdir_instances, result.dicomdir_left_out) == (3, 0)
    studies = [one for one in records if one.DirectoryRecordType == "STUDY"]
    assert [(one.StudyID, one.StudyDate, one.StudyTime) for one in studies] == [
        ("1", "19000101", "000000"),
        ("1", "20260102", "0304"),
    ]
    assert [one.SeriesNumber for one in records if "SeriesNumber" in one] == [1, 2, 1]
    assert [one.InstanceNumber for one in records if "InstanceNumber" in one] == [1, 1, 1]


@pytest.mark.parametrize(
    ("keyword", "value", "is_listed"),
    [
        ("PatientID", "B" * 5000, False),
        ("PatientID", "17\n", False),
        ("PatientID", "17\\18", False),
        ("PatientName", "Doe^Jane" * 20, False),
        ("IssuerOfPatientID", "North\x01", False),
        ("StudyInstanceUID", "1.02", False),
        ("SeriesInstanceUID", "Doe^Jane", False),
        ("SOPInstanceUID", "1" * 65, False),
        ("SOPClassUID", "CT", False),
        ("Modality", "not a code string", False),
        ("StudyDate", "Jane Doe", True),
        ("StudyDate", "20261341", True),
        ("StudyTime", "99", True),
        ("StudyID", "B" * 17, True),
        ("StudyDescription", "B" * 65, True),
        ("StudyDescription", "M\u00fcller", True),
        ("AccessionNumber", "\x1b", True),
        ("SeriesNumber", "1234567890123", True),
        ("SpecificCharacterSet", "Jane Doe", True),
    ],
)
def test_no_file_makes_the_directory_invalid(
    tmp_path: Path, keyword: str, value: Any, is_listed: bool
) -> None:
    wrong, good = one_of_each(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        setattr(wrong, keyword, value)
        result, records = listed(tmp_path, wrong, good)
    assert (result.dicomdir_instances, result.dicomdir_left_out) == (1 + is_listed, not is_listed)
    told = [record.get(keyword) for record in records]
    assert (value in told) == ("\u00fc" in value)


def test_a_file_that_refers_to_too_much_is_left_out(tmp_path: Path) -> None:
    sop_class = uid.GrayscaleSoftcopyPresentationStateStorage
    small, large = (of_kind(sop_class, OTHER_KINDS[sop_class], number) for number in (1, 2))
    [series] = large.ReferencedSeriesSequence
    series.ReferencedImageSequence = list(series.ReferencedImageSequence) * 2000
    result, _ = listed(tmp_path, large, small)
    assert (result.dicomdir_instances, result.dicomdir_left_out) == (1, 1)


def test_a_file_with_a_wrong_reference_is_left_out(tmp_path: Path) -> None:
    sop_class = uid.GrayscaleSoftcopyPresentationStateStorage
    good, wrong = (of_kind(sop_class, OTHER_KINDS[sop_class], number) for number in (1, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrong.ReferencedSeriesSequence[0].SeriesInstanceUID = "Doe^Jane"
    result, _ = listed(tmp_path, wrong, good)
    assert (result.dicomdir_instances, result.dicomdir_left_out) == (1, 1)


@pytest.mark.parametrize(
    ("characters", "name", "read"),
    [
        ("ISO_IR 144", "Люк".encode("iso8859_5"), "Люк"),
        ("          ", "Müller".encode("latin-1"), "Müller"),
        ("LATIN-ONE ", "Müller".encode("latin-1"), "Müller"),
        ("ISO_IR 192", "Müller".encode("latin-1"), "M\ufffdller"),
    ],
)
def test_names_are_readable_whatever_a_file_says_of_its_letters(
    tmp_path: Path, characters: str, name: bytes, read: str
) -> None:
    [data] = ct_slices(1)
    data.SpecificCharacterSet, data.PatientName = "ISO_IR 100", "X" * len(name)
    file = saved(data).replace(b"ISO_IR 100", characters.encode())
    result = archived(tmp_path, file.replace(b"X" * len(name), name))
    assert result.dicomdir_instances == 1
    [patient, *_] = valid(tmp_path / "disc" / "DICOMDIR")
    assert patient.PatientName == read


def test_a_dicomdir_of_thousands_takes_time_in_proportion(tmp_path: Path) -> None:
    def seconds(count: int) -> float:
        directory, began = Directory("2.25.1"), time.process_time()
        for number in range(count):
            header.SOPInstanceUID = f"2.25.{number}"
            assert directory.add(header).endswith(f"IM{number:06}")
        (tmp_path / "DICOMDIR").write_bytes(directory.written())
        return time.process_time() - began

    [header] = ct_slices(1)
    hundreds, thousands = seconds(250), seconds(2500)
    assert len(dcmread(tmp_path / "DICOMDIR").DirectoryRecordSequence) == 2503
    assert thousands < 25 * hundreds


def test_what_cannot_be_listed_keeps_its_name(tmp_path: Path) -> None:
    nameless, good = ct_slices(2)
    nameless.PatientID = ""
    result = archived(tmp_path, *map(saved, (nameless, good, good)), b"no DICOM" * 99)
    assert (result.dicomdir_instances, result.dicomdir_left_out) == (1, 3)
    names = {path.name for path in (tmp_path / "disc" / "fetch").iterdir()}
    assert names == {"instance-0.dcm", "instance-2.dcm", "instance-3.dcm"}
