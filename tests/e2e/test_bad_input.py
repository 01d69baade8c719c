"""One bad file never hides the good ones: failures per item, through the API."""

import hashlib
from pathlib import Path

from fluoro.v1 import job_pb2
from fluoro_local.testing import RunningFluoro

Item = job_pb2.Item


def outcomes(step: job_pb2.Step) -> list[tuple[int, str, str]]:
    return [
        (item.input, Item.State.Name(item.state).removeprefix("STATE_"), item.reason)
        for item in step.items
    ]


def test_a_text_file_and_a_truncated_one_fail_alone(
    fluoro: RunningFluoro, ct: Path, mr: Path, tmp_path: Path
) -> None:
    job = fluoro.run([ct, b"Dear radiologist, here is the study.\n", ct.read_bytes()[:20_000], mr])
    assert (job.state, job.reason) == (job_pb2.Job.STATE_PARTIALLY_SUCCEEDED, "ITEMS_FAILED"), (
        fluoro.logs()
    )
    steps = {step.name: step for step in job.steps}
    for name in ("inspect", "render"):
        assert outcomes(steps[name]) == [
            (0, "SUCCEEDED", ""),
            (1, "FAILED", "NOT_DICOM"),
            (2, "FAILED", "DICOM_TRUNCATED"),
            (3, "SUCCEEDED", ""),
        ]
        assert steps[name].state == job_pb2.Step.STATE_PARTIALLY_SUCCEEDED
    assert [found.input for found in steps["inspect"].inspect_dicom_result.instances] == [0, 3]
    assert outcomes(steps["analyze"]) == [
        (0, "SUCCEEDED", ""),
        (3, "SKIPPED", "MODEL_NOT_APPLICABLE"),
    ]
    made = [
        (artifact.role, artifact.input)
        for step in job.steps
        for artifact in step.artifacts
        if artifact.HasField("input")
    ]
    assert sorted(made) == sorted(
        [(role, number) for role in ("metadata", "preview", "pixels") for number in (0, 3)]
        + [("label-map", 0), ("overlay", 0)]
    )
    with fluoro.client() as client:
        for artifact in (artifact for step in job.steps for artifact in step.artifacts):
            data = client.download(artifact, tmp_path / artifact.name).read_bytes()
            assert (len(data), hashlib.sha256(data).digest()) == (
                artifact.size_bytes,
                artifact.sha256,
            )


def test_a_job_with_nothing_but_bad_files_fails_and_says_so(fluoro: RunningFluoro) -> None:
    job = fluoro.run([b"not DICOM", b"neither is this"])
    steps = {step.name: step for step in job.steps}
    assert job.state == job_pb2.Job.STATE_FAILED, fluoro.logs()
    assert job.reason == "STEP_FAILED"
    assert "inspect" in job.message
    assert steps["inspect"].reason == "ALL_ITEMS_FAILED"
    assert [steps[name].reason for name in ("render", "analyze", "report")] == [
        "UPSTREAM_FAILED"
    ] * 3
    assert outcomes(steps["inspect"]) == [(0, "FAILED", "NOT_DICOM"), (1, "FAILED", "NOT_DICOM")]
