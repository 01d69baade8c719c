"""ExportDicom: codes that the manifests of models give their classes."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pydicom
import pytest
from export_worker.operations.dicom import export_dicom
from export_worker.testing import CLASSIFIER, Study, ct_slices, verdicts
from fluoro.v1 import classify_pb2, detect_pb2, ml_pb2, slide_pb2
from fluoro.v1.export_pb2 import ExportDicom
from fluoro.v1.model_pb2 import Code
from fluoro_jobs.testing import Attempt, step_context
from fluoro_jobs.worker.context import Upstream
from google.protobuf.message import Message
from pydicom.dataset import Dataset

MEASUREMENTS: Final = [ExportDicom.KIND_MEASUREMENTS]


def left(folder: Path, step: str, result: Message) -> Upstream:
    """The step, which leaves but a result."""
    return step_context(folder, step=step).as_upstream(result)


def exported(folder: Path, *upstream: Upstream) -> Attempt:
    """Of an image without a label map."""
    study = Study.of_slices(folder, ct_slices(1))
    study.maps = [None]
    return written(study.attempt(*upstream))


def written(attempt: Attempt, kinds: Any = MEASUREMENTS) -> Attempt:
    """The attempt, once dciodvfy has found no error in what it wrote."""
    export_dicom(ExportDicom(kinds=kinds), attempt.context)
    for name in attempt.context.artifacts:
        verdict = read_by("dciodvfy", attempt, name)
        assert [line for line in verdict.splitlines() if line.startswith("Error")] == []
    return attempt


def read_by(program: str, attempt: Attempt, name: str) -> str:
    if shutil.which(program) is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{program} is not installed")
    path = attempt.context.fetch(attempt.context.artifacts[name].blob)
    done = subprocess.run([program, path], capture_output=True, check=False, timeout=60)
    return (done.stdout + done.stderr).decode("utf-8", "replace")


def dumped(attempt: Attempt, name: str = "measurements-0000.dcm") -> str:
    """What dsrdump reads."""
    return read_by("dsrdump", attempt, name)


def opened(attempt: Attempt, name: str = "measurements-0000.dcm") -> Dataset:
    return pydicom.dcmread(attempt.context.fetch(attempt.context.artifacts[name].blob))


def assert_lines(text: str, *lines: str) -> None:
    for line in lines:
        assert line in text, f"{line}\n{text}"


NAEVUS: Final = Code(value="400010006", scheme="SCT", meaning="Melanocytic naevus of skin")


def test_classes_have_the_codes_of_the_models_manifest(tmp_path: Path) -> None:
    asked = verdicts(tmp_path, 1)[1]
    assert isinstance(asked.result, classify_pb2.ClassifyImagesResult)
    [frame] = asked.result.images[0].frames
    frame.codes.append(NAEVUS)
    for one in frame.opinions[0].classes:
        if one.display_name == "nevus":
            one.codes.extend([Code(value="RID34616", scheme="RADLEX", meaning="nevus"), NAEVUS])
    detected = detect_pb2.DetectObjectsResult(model=CLASSIFIER)
    detected.images.add(item="0").objects.add(
        frame=1, display_name="spot", score=0.5, width=3, height=4, codes=[NAEVUS]
    )
    slides = slide_pb2.AnalyzeSlideResult(model=CLASSIFIER)
    slide = slides.slides.add(item="0", tiles=4)
    slide.classes.add(label=1, display_name="nests", tiles=1, share=0.25, codes=[NAEVUS])
    steps = [asked, left(tmp_path, "detect", detected), left(tmp_path, "slide", slides)]
    attempt = exported(tmp_path, *steps)
    code = '(400010006,SCT,"Melanocytic naevus of skin")'
    assert_lines(
        text := dumped(attempt),
        f'CODE:(,,"Finding")={code}',
        f'CODE:(,,"Class of the image by several models")={code}',
        'NUM:(,,"Melanocytic naevus of skin")="0.91" (1,UCUM,"no units")',
    )
    assert "RADLEX" not in text
    assert f'CODE:(,,"Finding")={code}' in dumped(attempt, "measurements-0001.dcm")
    assert_lines(
        dumped(attempt, "measurements-0002.dcm"),
        'NUM:(,,"Melanocytic naevus of skin")="25.0" (%,UCUM,"Percent")',
        f'CODE:(,,"Finding")={code}',
    )


@pytest.mark.parametrize(
    "other",
    [NAEVUS, Code(value="M-87200", scheme="SRT", meaning=NAEVUS.meaning)],
    ids=["code", "meaning"],
)
def test_classes_that_share_a_code_or_its_meaning_keep_their_names(
    tmp_path: Path, other: Code
) -> None:
    result = ml_pb2.AnalyzeImagesResult(model=CLASSIFIER)
    classes = result.findings.add(item="0").classes
    for name, code in (("flat", NAEVUS), ("raised", other)):
        classes.add(frame=1, display_name=name, probability=0.5, codes=[code])
    attempt = exported(tmp_path, left(tmp_path, "classify", result))
    assert_lines(dumped(attempt), 'NUM:(,,"flat")="0.5"', 'NUM:(,,"raised")="0.5"')


def test_a_verdict_names_a_class_that_shares_its_code(tmp_path: Path) -> None:
    result = classify_pb2.ClassifyImagesResult()
    frame = result.images.add(item="0").frames.add(
        frame=1,
        verdict=classify_pb2.ClassifiedFrame.VERDICT_CLASSIFIED,
        label=1,
        display_name="raised",
        codes=[NAEVUS],
    )
    opinion = frame.opinions.add(model=CLASSIFIER)
    for label, name in enumerate(("flat", "raised")):
        opinion.classes.add(label=label, display_name=name, probability=0.5, codes=[NAEVUS])
    attempt = exported(tmp_path, left(tmp_path, "ask", result))
    assert_lines(
        dumped(attempt),
        'CODE:(,,"Finding")=(400010006,SCT,"Melanocytic naevus of skin")',
        'CODE:(,,"Class of the image by several models")=(raised,99FLUORO,"raised")',
    )


def test_a_verdict_names_its_class_where_no_other_of_its_code_was_found(tmp_path: Path) -> None:
    asked = verdicts(tmp_path, 1)[1]
    assert isinstance(asked.result, classify_pb2.ClassifyImagesResult)
    asked.result.images[0].frames[0].codes.append(NAEVUS)
    name = 'CODE:(,,"Name in the model")=(nevus,99FLUORO,"nevus")'
    assert_lines(dumped(exported(tmp_path, asked)), name)


def test_each_object_has_the_name_of_its_class_beside_a_shared_code(tmp_path: Path) -> None:
    result = detect_pb2.DetectObjectsResult(model=CLASSIFIER)
    objects = result.images.add(item="0").objects
    for name in ("flat", "raised", "Melanocytic naevus of skin"):
        objects.add(frame=1, display_name=name, score=0.5, width=3, height=4, codes=[NAEVUS])
    text = dumped(exported(tmp_path, left(tmp_path, "detect", result)))
    assert text.count('CODE:(,,"Finding")=(400010006,SCT,"Melanocytic naevus of skin")') == 3
    assert text.count('CODE:(,,"Name in the model")=') == 2
    for name in ("flat", "raised"):
        assert_lines(text, f'CODE:(,,"Name in the model")=({name},99FLUORO,"{name}")')


def test_each_class_of_a_slide_has_its_name_and_its_own_tracking_identifier(
    tmp_path: Path,
) -> None:
    result = slide_pb2.AnalyzeSlideResult(model=CLASSIFIER)
    slide = result.slides.add(item="0", tiles=4)
    for label, name in enumerate(("flat", "raised")):
        slide.classes.add(label=label, display_name=name, tiles=1, share=0.25, codes=[NAEVUS])
    attempt = exported(tmp_path, left(tmp_path, "s" * 63, result))
    text = dumped(attempt)
    for name in ("flat", "raised"):
        assert_lines(text, f'CODE:(,,"Tiles of the slide of one class")=({name},99FLUORO,"{name}")')
    groups = opened(attempt).ContentSequence[-1].ContentSequence
    identifiers = [group.ContentSequence[0].TextValue for group in groups]
    assert identifiers == [f"{'s' * 63} 1 slide{label}" for label in ("", " 0", " 1")]


def test_a_code_that_two_models_name_differently_is_not_shared(tmp_path: Path) -> None:
    result = classify_pb2.ClassifyImagesResult()
    frame = result.images.add(item="0").frames.add(frame=1)
    for name in ("nevus", "mole"):
        opinion = frame.opinions.add(model=CLASSIFIER)
        opinion.model.name = f"of-{name}"
        opinion.classes.add(display_name=name, probability=0.5, codes=[NAEVUS])
    text = dumped(exported(tmp_path, left(tmp_path, "ask", result)))
    assert text.count('NUM:(,,"Melanocytic naevus of skin")="0.5"') == 2


def test_a_class_is_called_the_same_in_all_of_a_report(tmp_path: Path) -> None:
    result = ml_pb2.AnalyzeImagesResult(model=CLASSIFIER)
    scores = result.findings.add(item="0").classes
    for frame, name in ((1, "flat"), (1, "raised"), (2, "raised")):
        scores.add(frame=frame, display_name=name, probability=0.5, codes=[NAEVUS])
    text = dumped(exported(tmp_path, left(tmp_path, "classify", result)))
    assert text.count('NUM:(,,"raised")="0.5"') == 2


@pytest.mark.parametrize(
    "code",
    [
        Code(value="", scheme="SCT", meaning="empty"),
        Code(value="1 2", scheme="SCT", meaning="space"),
        Code(value="1\\2", scheme="SCT", meaning="backslash"),
        Code(value="痣", scheme="SCT", meaning="other script"),
        Code(value="1", scheme="x" * 17, meaning="long designator"),
        Code(value="1", scheme="", meaning="no designator"),
        Code(value="1" * 201, scheme="99X", meaning="too long"),
    ],
    ids=lambda code: code.meaning,
)
def test_a_code_that_dicom_cannot_write_is_left_out(tmp_path: Path, code: Code) -> None:
    result = ml_pb2.AnalyzeImagesResult(model=CLASSIFIER)
    finding = result.findings.add(item="0")
    finding.classes.add(frame=1, display_name="spot", probability=0.5, codes=[code])
    attempt = exported(tmp_path, left(tmp_path, "classify", result))
    assert_lines(dumped(attempt), 'NUM:(,,"spot")="0.5"')


@pytest.mark.parametrize("value", ["1251000119106123456", "urn:example:melanocytic-naevus"])
def test_long_codes_and_meanings_are_written(tmp_path: Path, value: str) -> None:
    result = ml_pb2.AnalyzeImagesResult(model=CLASSIFIER)
    code = Code(value=value, scheme="99X", meaning="黑色素细胞痣 " * 20)
    finding = result.findings.add(item="0")
    finding.classes.add(frame=1, display_name="spot", probability=0.5, codes=[code])
    attempt = exported(tmp_path, left(tmp_path, "classify", result))
    assert "黑色素" in dumped(attempt)
    written = {
        one.value
        for one in opened(attempt).iterall()
        if one.keyword in {"LongCodeValue", "URNCodeValue"}
    }
    assert written == {value}


def test_segments_have_the_codes_of_the_models_manifest(tmp_path: Path) -> None:
    study = Study.of_slices(tmp_path, ct_slices(2))
    analyzed = study.analyze()
    assert isinstance(analyzed.result, ml_pb2.AnalyzeImagesResult)
    for finding in analyzed.result.findings:
        finding.measurements[5].codes.append(NAEVUS)
    kinds = [ExportDicom.KIND_SEGMENTATION, ExportDicom.KIND_MEASUREMENTS]
    attempt = written(study.attempt(study.render(), analyzed), kinds)
    named = {
        segment.SegmentNumber: segment.SegmentedPropertyTypeCodeSequence[0].CodeValue
        for segment in opened(attempt, "segmentation-0000.dcm").SegmentSequence
    }
    assert named[5] == "400010006"
    assert_lines(dumped(attempt), 'CODE:(,,"Finding")=(400010006,SCT,"Melanocytic naevus of skin")')
