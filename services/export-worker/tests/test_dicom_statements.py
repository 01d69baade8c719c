"""ExportDicom: reports of what models said of images, label maps aside."""

import os
import shutil
import subprocess
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import pydicom
import pytest
from export_worker.dicom import statements
from export_worker.dicom.codes import CODE_CHARACTERS, own
from export_worker.operations.dicom import export_dicom
from export_worker.testing import CLASSIFIER, Study, ct_slices, dermoscopies, looks, verdicts
from fluoro.v1 import (
    classify_pb2,
    compare_pb2,
    dermoscopy_pb2,
    detect_pb2,
    embedding_pb2,
    job_pb2,
    ml_pb2,
    slide_pb2,
)
from fluoro.v1.export_pb2 import ExportDicom, ExportDicomResult
from fluoro.v1.model_pb2 import Model
from fluoro_jobs.errors import FluoroError
from fluoro_jobs.testing import Attempt, step_context
from fluoro_jobs.worker.context import Upstream
from google.protobuf.message import Message
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    VLPhotographicImageStorage,
    VLWholeSlideMicroscopyImageStorage,
)

MEASUREMENTS: Final = [ExportDicom.KIND_MEASUREMENTS]
NOT_FOR_DIAGNOSIS: Final = "Made by a demonstration model. Not for diagnosis."


def photographs(count: int, sop_class: UID = VLPhotographicImageStorage) -> list[Dataset]:
    """A series of colour images of one patient."""
    images = []
    for number in range(count):
        data = pydicom.dcmread(str(get_testdata_file("SC_rgb.dcm")))
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = sop_class
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = UID(f"1.2.3.5.{number}")
        data.Modality = "SM" if sop_class == VLWholeSlideMicroscopyImageStorage else "XC"
        data.InstanceNumber = number + 1
        images.append(data)
    return images


def of_images(folder: Path, images: list[Dataset]) -> Study:
    study = Study.of_slices(folder, images)
    study.maps = [None] * len(images)
    return study


def left(folder: Path, step: str, result: Message) -> Upstream:
    """The step, which leaves but a result."""
    return step_context(folder, step=step).as_upstream(result)


def exported(
    study: Study, *upstream: Upstream, kinds: Any = MEASUREMENTS
) -> tuple[ExportDicomResult, Attempt]:
    attempt = study.attempt(*upstream)
    return export_dicom(ExportDicom(kinds=kinds), attempt.context), attempt


def opened(attempt: Attempt, name: str = "measurements-0000.dcm") -> Dataset:
    return pydicom.dcmread(attempt.context.fetch(attempt.context.artifacts[name].blob))


def ran(program: str, *arguments: str, attempt: Attempt, name: str) -> str:
    """What a program says of an object."""
    if shutil.which(program) is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{program} is not installed")
    path = attempt.context.fetch(attempt.context.artifacts[name].blob)
    done = subprocess.run([program, *arguments, path], capture_output=True, check=False, timeout=60)
    return (done.stdout + done.stderr).decode("utf-8", "replace")


def dumped(attempt: Attempt, name: str = "measurements-0000.dcm") -> str:
    """What dsrdump reads, once dciodvfy has found no error and the object says what it is for."""
    verdict = ran("dciodvfy", attempt=attempt, name=name)
    assert [line for line in verdict.splitlines() if line.startswith("Error")] == []
    assert "Comprehensive3DSR" in verdict
    text = ran("dsrdump", "+Pl", attempt=attempt, name=name)
    assert "Comprehensive 3D SR" in text
    data = opened(attempt, name)
    assert data.SeriesDescription.endswith("DEMONSTRATION")
    groups = data.ContentSequence[-1].ContentSequence
    assert text.count(NOT_FOR_DIAGNOSIS) == len(groups)
    return text


def assert_lines(text: str, *lines: str) -> None:
    for line in lines:
        assert line in text, f"{line}\n{text}"


def test_detected_objects_are_outlined_and_scored(tmp_path: Path) -> None:
    result = detect_pb2.DetectObjectsResult(model=CLASSIFIER)
    found = result.images.add(item="0")
    for label, name in enumerate(("face", "lesion")):
        found.objects.add(
            frame=1,
            label=label,
            display_name=name,
            score=0.75,
            left=10.5,
            top=20,
            width=30,
            height=8,
        )
    result.images.add(item="1")
    told, attempt = exported(of_images(tmp_path, photographs(2)), left(tmp_path, "detect", result))
    [one] = told.objects
    assert (one.step, one.sources) == ("detect", 2)
    assert one.intended_use == Model.INTENDED_USE_DEMONSTRATION
    assert_lines(
        text := dumped(attempt),
        'NUM:(,,"Number of objects")="2.0" (1,UCUM,"no units")',
        'NUM:(,,"Number of objects")="0.0" (1,UCUM,"no units")',
        'CODE:(,,"Finding")=(52988006,SCT,"Lesion")',
        'NUM:(,,"Score")="0.75" (1,UCUM,"no units")',
        'SCOORD:(,,"Image Region")=(POLYLINE,10.5/20,40.5/20,40.5/28,10.5/28,10.5/20)',
        'TEXT:(,,"Algorithm Name")="skin-demo, demonstration"',
    )
    assert text.count("Image Region") == 2


def test_landmarks_in_the_image_are_points(tmp_path: Path) -> None:
    result = detect_pb2.DetectObjectsResult(model=CLASSIFIER)
    face = result.images.add(item="0").objects.add(
        frame=1, label=1, display_name="face", score=0.5, left=10, top=20, width=30, height=40
    )
    face.landmarks.add(name="left eye", x=17.5, y=32)
    face.landmarks.add(name="nose", x=-3, y=40)
    face.landmarks.add(name="chin", x=float("nan"), y=40)
    face.landmarks.add(name="", x=0, y=0)
    face.landmarks.add(name="nose", x=20, y=45)
    _, attempt = exported(of_images(tmp_path, photographs(1)), left(tmp_path, "detect", result))
    assert_lines(
        text := dumped(attempt),
        'CODE:(,,"Finding")=(81745001,SCT,"Eye")',
        'CODE:(,,"Finding Site")=(81745001,SCT,"Eye")',
        'CODE:(,,"Laterality")=(7771000,SCT,"Left")',
        'SCOORD:(,,"Image Region")=(POINT,17.5/32)',
        'CODE:(,,"Finding")=(89545001,SCT,"Face")',
        'CODE:(,,"Finding")=(4,99FLUORO,"4")',
        'CODE:(,,"Finding")=(45206002,SCT,"Nose")',
        'SCOORD:(,,"Image Region")=(POINT,0/0)',
        'TEXT:(,,"Tracking Identifier")="detect 1 object 1 point 1"',
    )
    assert text.count("(POINT,") == 3
    tracked = [
        group.ContentSequence[1].UID
        for group in opened(attempt).ContentSequence[-1].ContentSequence
    ]
    assert len(set(tracked)) == len(tracked) == 5


def test_a_side_of_the_picture_is_no_side_of_the_patient(tmp_path: Path) -> None:
    result = detect_pb2.DetectObjectsResult(model=CLASSIFIER)
    found = result.images.add(item="0")
    face = found.objects.add(
        frame=1, label=1, display_name="Right eye", score=0.5, width=3, height=4
    )
    face.landmarks.add(name="eye, right in the image", x=1, y=1)
    _, attempt = exported(of_images(tmp_path, photographs(1)), left(tmp_path, "detect", result))
    text = dumped(attempt)
    assert text.count('CODE:(,,"Finding")=(81745001,SCT,"Eye")') == 2
    assert text.count('CODE:(,,"Laterality")=(24028007,SCT,"Right")') == 1
    assert_lines(text, '"Name in the model")=', '99FLUORO,"eye, right in the image")')


def test_abstention_is_a_finding_without_a_class(tmp_path: Path) -> None:
    _, attempt = exported(of_images(tmp_path, photographs(6)), verdicts(tmp_path)[1])
    assert_lines(
        text := dumped(attempt),
        'CODE:(,,"Class of the image by several models")=(nevus,99FLUORO,"nevus")',
        '"The models disagree.")',
        '"A model has not seen the like.")',
        '"The models are too uncertain.")',
        'NUM:(,,"Mean probability")="0.62" (1,UCUM,"no units")',
        "Classes of the image and their probabilities, not calibrated.",
        'NUM:(,,"melanoma")="0.62" (1,UCUM,"no units")',
        'CODE:(,,"Derivation")=(122157,DCM,"Probability")',
        'TEXT:(,,"Algorithm Name")="2 models together"',
    )
    assert text.count('"Class of the image by several models")=') == 6
    assert text.count('CODE:(,,"Finding")=') == 3  # of six images two have no class, and one is new


def test_a_lesion_has_its_scores_and_size_in_ucum(tmp_path: Path) -> None:
    steps = dermoscopies(tmp_path)[1:]
    _, attempt = exported(of_images(tmp_path, photographs(2)), *steps)
    assert_lines(
        dumped(attempt),
        'NUM:(,,"Total dermatoscopy score")="6.1" (1,UCUM,"no units")',
        'NUM:(,,"Share of the image")="21.4" (%,UCUM,"Percent")',
        'NUM:(,,"Long axis")="7.4" (mm,UCUM,"millimeter")',
        'NUM:(,,"Area")="38.2" (mm2,UCUM,"square millimeter")',
        '"Highly suspicious.")',
        'CODE:(,,"Colour")=(blue-grey,99FLUORO,"blue-grey")',
        'CODE:(,,"Structure")=(globules,99FLUORO,"globules")',
        "Against relying on it: Ahnlide 2016",
    )


def test_the_outline_of_a_lesion_is_no_unfit_label_map(tmp_path: Path) -> None:
    study = of_images(tmp_path, photographs(2))
    [assess] = dermoscopies(tmp_path)[1:]
    attempt = step_context(tmp_path, step="assess")
    for one in (0, 1):
        attempt.context.put(
            f"map-{one}.npy", "label-map", "application/x-npy", b"any", key=str(one)
        )
    maps = attempt.as_upstream(assess.result)
    steps = Upstream("assess", assess.result, (), (*assess.artifacts, *maps.artifacts))
    kinds = [ExportDicom.KIND_MEASUREMENTS, ExportDicom.KIND_PICTURES]
    result, done = exported(study, steps, kinds=kinds)
    assert [item.state for item in done.context.items.values()] == [
        job_pb2.Item.STATE_SUCCEEDED
    ] * 2
    pictures = [one for one in result.objects if one.kind == ExportDicom.KIND_PICTURES]
    assert len(pictures) == 2
    for one in pictures:
        assert one.intended_use == Model.INTENDED_USE_DEMONSTRATION
        assert opened(done, one.artifact).ImageComments == NOT_FOR_DIAGNOSIS


def test_a_slide_has_its_tissue_and_the_scores_of_its_tiles(tmp_path: Path) -> None:
    result = slide_pb2.AnalyzeSlideResult(model=CLASSIFIER)
    slide = result.slides.add(item="0", tissue_share=0.375, tiles=40, novel_tiles=7)
    fibres = slide.classes.add(
        label=1, display_name="fibres", tiles=10, share=0.25, mean_probability=0.5
    )
    fibres.top.add(row=3, column=5, probability=0.9375)
    study = of_images(tmp_path, photographs(1, VLWholeSlideMicroscopyImageStorage))
    _, attempt = exported(study, left(tmp_path, "slide", result))
    assert_lines(
        dumped(attempt),
        'NUM:(,,"Share of the slide that is tissue")="37.5" (%,UCUM,"Percent")',
        'NUM:(,,"Number of tiles unlike the training data")="7.0" (1,UCUM,"no units")',
        'NUM:(,,"fibres")="25.0" (%,UCUM,"Percent")',
        'CODE:(,,"Finding")=(fibres,99FLUORO,"fibres")',
        'NUM:(,,"Probability of a tile")="0.9375" (1,UCUM,"no units")',
        "Most probable tiles, by row and column: 3, 5: 0.9375.",
    )


def likeness(folder: Path) -> Upstream:
    result = compare_pb2.CompareImagesResult(model=CLASSIFIER)
    result.images.add(item="0")
    result.images.add(item="1", similarity=0.5)
    return left(folder, "compare", result)


def test_likeness_names_both_images(tmp_path: Path) -> None:
    images = photographs(2)
    result, attempt = exported(of_images(tmp_path, images), likeness(tmp_path))
    text = dumped(attempt)
    assert_lines(text, 'NUM:(,,"Cosine similarity")="0.5" (1,UCUM,"no units")')
    [group] = opened(attempt).ContentSequence[-1].ContentSequence
    named = {
        item.ConceptNameCodeSequence[0].CodeMeaning: item.ReferencedSOPSequence[0]
        for item in group.ContentSequence
        if item.ValueType == "IMAGE"
    }
    assert {name: one.ReferencedSOPInstanceUID for name, one in named.items()} == {
        "Source of Measurement": "1.2.3.5.1",
        "Image that it is compared with": "1.2.3.5.0",
    }
    assert len(result.objects) == 1
    states = [item.state for item in attempt.context.items.values()]
    assert states == [job_pb2.Item.STATE_SUCCEEDED] * 2


def test_likeness_to_another_patient_is_not_told(tmp_path: Path) -> None:
    images = photographs(2)
    images[0].PatientID = "other"
    result, attempt = exported(of_images(tmp_path, images), likeness(tmp_path))
    assert not result.objects
    reasons = [item.reason for item in attempt.context.items.values()]
    assert reasons == ["NO_APPLICABLE_INPUT"] * 2


def test_likeness_to_an_image_that_cannot_be_read_is_not_told(tmp_path: Path) -> None:
    study = of_images(tmp_path, photographs(2))
    study.files = [b"no DICOM", study.files[1]]
    _, attempt = exported(study, likeness(tmp_path))
    reasons = [item.reason for item in attempt.context.items.values()]
    assert reasons == ["NOT_DICOM", "NO_APPLICABLE_INPUT"]


def test_frames_that_a_model_classified_are_named(tmp_path: Path) -> None:
    data = pydicom.dcmread(str(get_testdata_file("emri_small.dcm")))
    result = ml_pb2.AnalyzeImagesResult(model=CLASSIFIER)
    finding = result.findings.add(item="0")
    for frame in (1, 7):
        finding.classes.add(frame=frame, label=2, display_name="brain", probability=0.25)
    finding.classes.add(frame=7, label=3, display_name="air", probability=float("nan"))
    _, attempt = exported(of_images(tmp_path, [data]), left(tmp_path, "classify", result))
    text = dumped(attempt)
    assert text.count('NUM:(,,"Brain")="0.25" (1,UCUM,"no units")') == 2
    groups = opened(attempt).ContentSequence[-1].ContentSequence
    frames = [
        item.ReferencedSOPSequence[0].ReferencedFrameNumber
        for group in groups
        for item in group.ContentSequence
        if item.ValueType == "IMAGE"
    ]
    assert frames == [1, 7]


def test_the_share_of_a_burn_is_measured(tmp_path: Path) -> None:
    study = Study.of_slices(tmp_path, photographs(1))
    study.unit = "1"
    shape = study.maps[0].shape  # type: ignore[union-attr]
    study.maps = [
        np.repeat([0, 5], shape[1] // 2).astype(np.uint8)[None, :, None] + np.zeros(shape, np.uint8)
    ]
    analyzed = study.analyze()
    assert isinstance(analyzed.result, ml_pb2.AnalyzeImagesResult)
    for one in analyzed.result.findings[0].measurements:
        one.ClearField("volume_ml")
        if one.label == 5:
            one.display_name = "partial thickness"
    _, attempt = exported(study, study.render(), analyzed)
    assert_lines(
        dumped(attempt),
        '"partial thickness")',
        'NUM:(,,"Fraction of image voxels")="50.0" (%,UCUM,"Percent")',
    )


def test_the_volume_is_that_of_the_model_that_saw_it(tmp_path: Path) -> None:
    study = Study.of_slices(tmp_path, ct_slices(3))
    analyzed = study.analyze()
    assert isinstance(analyzed.result, ml_pb2.AnalyzeImagesResult)
    volume = analyzed.result.volumes.add(items=["0", "1", "2"])
    volume.measurements.add(label=5, display_name="brain", volume_ml=1234.5)
    for finding in analyzed.result.findings:
        finding.measurements[5].display_name = "brain"
    _, attempt = exported(study, study.render(), analyzed)
    assert_lines(
        dumped(attempt),
        'CODE:(,,"Finding")=(12738006,SCT,"Brain")',
        'NUM:(,,"Volume")="1234.5" (ml,UCUM,"milliliter")',
    )


def test_vectors_are_no_measurements(tmp_path: Path) -> None:
    study = of_images(tmp_path, photographs(2))
    similar = looks(tmp_path, 2)[1]
    embedded = left(tmp_path, "embed", embedding_pb2.EmbedImagesResult(model=CLASSIFIER))
    for step in (similar, embedded):
        with pytest.raises(FluoroError, match="no measurements") as refused:
            exported(study, step)
        assert refused.value.reason == "CHOICE_UNAVAILABLE"


def test_too_many_statements_fail_their_series_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statements, "GROUPS_LIMIT", 2)
    images = photographs(2)
    images[1].SeriesInstanceUID = "1.2.3.6"
    result = detect_pb2.DetectObjectsResult(model=CLASSIFIER)
    found = result.images.add(item="0")
    for _ in range(2):
        found.objects.add(frame=1, display_name="face", score=0.5, width=1, height=1)
    result.images.add(item="1")
    told, attempt = exported(of_images(tmp_path, images), left(tmp_path, "detect", result))
    assert [one.sources for one in told.objects] == [1]
    failed, good = attempt.context.items[0], attempt.context.items[1]
    assert (failed.reason, good.reason) == ("RESULT_TOO_LARGE", "")


@pytest.mark.parametrize(
    "name", ["", "\x00\x1b\u202e", "a\\b\\c", "x" * 200, "<b>&amp;", "黑色素瘤" * 40]
)
@pytest.mark.parametrize("value", [0.5, -1e308, 1e-300, float("nan"), float("inf")])
def test_no_name_and_no_figure_of_a_model_breaks_a_report(
    tmp_path: Path, name: str, value: float
) -> None:
    classes = ml_pb2.AnalyzeImagesResult(model=CLASSIFIER)
    classes.model.name = name
    finding = classes.findings.add(item="0")
    finding.classes.add(frame=9, label=1, display_name="known", probability=0.5)
    finding.classes.add(frame=9, label=2, display_name=name, probability=value)
    detected = detect_pb2.DetectObjectsResult(model=CLASSIFIER)
    found = detected.images.add(item="0")
    found.objects.add(frame=9, label=3, display_name=name, score=0.5, left=value, width=1, height=1)
    lesions = dermoscopy_pb2.AssessDermoscopyResult()
    lesions.rule.source = name
    lesions.lesions.add(item="0", model=CLASSIFIER, colors=[name], total=value, area_mm2=value)
    steps = [
        left(tmp_path, f"step-{number}", result)
        for number, result in enumerate((classes, detected, lesions))
    ]
    result, attempt = exported(of_images(tmp_path, photographs(1)), *steps)
    assert len(result.objects) == 3
    for one in result.objects:
        dumped(attempt, one.artifact)


def test_groups_are_encoded_as_pydicom_does(tmp_path: Path) -> None:
    _, attempt = exported(of_images(tmp_path, photographs(6)), verdicts(tmp_path)[1])
    path = attempt.context.fetch(attempt.context.artifacts["measurements-0000.dcm"].blob)
    data = pydicom.dcmread(path)
    data.set_original_encoding(None, None)  # so that nothing is copied as it is
    for _ in data.iterall():
        pass
    file = BytesIO()
    data.save_as(file, enforce_file_format=True)
    assert file.getvalue() == path.read_bytes()


def test_another_attempt_writes_the_same_and_other_scores_another_instance(tmp_path: Path) -> None:
    study = of_images(tmp_path, photographs(6))
    [step] = verdicts(tmp_path)[1:]
    before, first = exported(study, step)
    again, second = exported(study, step)
    assert before == again
    name = before.objects[0].artifact
    assert first.context.artifacts[name].sha256 == second.context.artifacts[name].sha256
    assert isinstance(step.result, classify_pb2.ClassifyImagesResult)
    step.result.images[0].frames[0].opinions[0].novelty = 8
    after, _ = exported(study, step)
    assert after.objects[0].sop_instance_uid != before.objects[0].sop_instance_uid
    assert after.objects[0].series_instance_uid == before.objects[0].series_instance_uid


def test_different_names_have_different_codes() -> None:
    names = ["basal cell carcinoma, nodular", "basal cell carcinoma, superficial", "痣", "黑色素瘤"]
    codes = [own(name).value for name in names]
    assert len(set(codes)) == len(names)
    assert all(0 < len(code) <= CODE_CHARACTERS for code in codes)
