"""Variants and time points side by side."""

from typing import Any

import pytest
from export_worker.operations.comparison import export_comparison
from export_worker.testing import photographs
from fluoro.v1.export_pb2 import Difference, ExportComparison, ExportComparisonResult, ExportReport
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.testing import Attempt
from google.protobuf import json_format


def compare(clinic: Any, upstream: Any, **fields: Any) -> tuple[Attempt, ExportComparisonResult]:
    attempt = clinic.attempt(upstream)
    fields.setdefault("formats", [ExportReport.FORMAT_JSON])
    return attempt, export_comparison(ExportComparison(**fields), attempt.context)


def test_steps_are_compared_image_by_image(clinic: Any) -> None:
    clinic.inputs = 2
    changed = clinic.analyze("second")
    changed.result.findings[1].measurements[4].volume_ml = 20
    attempt, result = compare(clinic, [clinic.analyze("first"), changed])
    differing = [one for one in result.differences if one.reference_value != one.value]
    assert [(one.subject, one.display_name, one.variant) for one in differing] == [
        ("1", "soft tissue", "second")
    ]
    assert differing[0].quantity == Difference.QUANTITY_VOLUME_ML
    assert differing[0].reference_value == pytest.approx(14.8, abs=0.01)
    assert differing[0].value == 20
    told = json_format.Parse(attempt.read("comparison.json"), ExportComparisonResult())
    assert len(told.differences) == 12
    assert [run.step for run in told.provenance.runs] == ["first", "second"]
    assert [model.name for model in told.provenance.models] == ["ct-tissue"]
    assert not result.HasField("provenance")


def test_images_are_compared_as_time_points(clinic: Any) -> None:
    upstream = photographs(clinic.folder, 3)
    _, result = compare(clinic, upstream, items=["2", "0"], formats=[ExportReport.FORMAT_PDF])
    assert {(one.subject, one.reference, one.variant) for one in result.differences} == {
        ("classify", "2", "0")
    }
    assert {one.quantity for one in result.differences} == {Difference.QUANTITY_PROBABILITY}
    assert result.pages == 2
    assert list(result.artifacts) == ["comparison.pdf"]


def test_a_class_that_one_variant_lacks_has_no_value_there(clinic: Any) -> None:
    changed = clinic.analyze("second")
    del changed.result.findings[0].measurements[5]
    _, result = compare(clinic, [clinic.analyze("first"), changed])
    bone = result.differences[-1]
    assert bone.display_name == "bone"
    assert bone.HasField("reference_value")
    assert not bone.HasField("value")


@pytest.mark.parametrize(
    "fields",
    [{"steps": ["first"]}, {"steps": ["first", "gone"]}, {"items": ["0"]}, {"items": ["0", "9"]}],
    ids=["one step", "no such step", "one image", "no such image"],
)
def test_what_is_not_there_is_refused(clinic: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(FluoroError) as refusal:
        compare(clinic, [clinic.analyze("first"), clinic.analyze("second")], **fields)
    assert refusal.value.reason is Reason.INVALID_ARGUMENT


def test_a_single_finding_is_no_comparison(clinic: Any) -> None:
    with pytest.raises(FluoroError) as refusal:
        compare(clinic, [clinic.analyze()])
    assert refusal.value.reason is Reason.NO_APPLICABLE_INPUT
