"""A study that is split over many tasks has the results it has in one piece."""

from pathlib import Path

from fluoro.v1 import job_pb2
from fluoro_client.jobs import imaging_report
from fluoro_local.testing import JOB_SECONDS, RunningFluoro


def outputs(step: job_pb2.Step) -> tuple[object, ...]:
    """What a step brought, whoever brought it."""
    artifacts = sorted(
        (artifact.name, artifact.role, artifact.input, artifact.sha256)
        for artifact in step.artifacts
    )
    return (
        step.state,
        step.reason,
        step.message,
        list(step.items),
        artifacts,
        getattr(step, step.WhichOneof("result") or "name"),
    )


def test_in_shares_or_in_one_piece_the_results_are_the_same(
    fluoro: RunningFluoro, ct: Path, mr: Path
) -> None:
    with fluoro.client() as client:
        study = [client.upload(source) for source in (ct, mr, b"not DICOM", ct, ct)] * 4
        whole, shares = imaging_report(study), imaging_report(study)
        for step in whole.steps[:3]:
            step.max_inputs_per_task = 0
        for step in shares.steps[:3]:
            step.max_inputs_per_task = 3
        done = [
            client.wait(client.submit(job).name, timeout_seconds=JOB_SECONDS)
            for job in (whole, shares)
        ]
    assert [job.state for job in done] == [job_pb2.Job.STATE_PARTIALLY_SUCCEEDED] * 2, fluoro.logs()
    assert [[len(step.tasks) for step in job.steps] for job in done] == [
        [1, 1, 1, 1],
        [7, 7, 6, 1],
    ], "the files that are no DICOM leave nothing to analyze"
    for one, other in zip(*(job.steps[:3] for job in done), strict=True):
        assert outputs(one) == outputs(other)
