"""Every pipeline that ships, and every way to run one, with real workers."""

import asyncio
import zipfile
from pathlib import Path
from typing import Any

import pytest
from fluoro.v1 import job_pb2
from fluoro_client import AsyncClient
from fluoro_client.jobs import imaging_report
from fluoro_local.testing import OWNER, RunningFluoro

SECONDS = 60
OWN_TO_A_JOB = ("report.pdf", "result.json")
"""Artifacts that name their job."""
WINDOW = {"window_center": 40, "window_width": 400}


def results(job: job_pb2.Job) -> list[Any]:
    """What came of a job, without what is its own: names and times."""
    return [
        (
            step.name,
            step.state,
            [(item.key, item.state, item.reason) for item in step.items],
            getattr(step, step.WhichOneof("result") or "").SerializeToString(deterministic=True),
            [
                (one.name, one.role, one.key, "" if one.name in OWN_TO_A_JOB else one.sha256)
                for one in step.artifacts
            ],
        )
        for step in job.steps
    ]


def test_waiting_streaming_and_explicit_steps_give_the_same_results(
    fluoro: RunningFluoro, ct: Path, mr: Path
) -> None:
    async def streamed() -> job_pb2.Job:
        async with AsyncClient(fluoro.endpoint, owner=OWNER) as client:
            return await client.run("ct-tissue", [ct, mr], WINDOW)

    async def watched(blobs: list[str]) -> job_pb2.Job:
        async with AsyncClient(fluoro.endpoint, owner=OWNER) as client:
            job = imaging_report(blobs)
            job.steps[1].render_dicom.window.center = 40
            job.steps[1].render_dicom.window.width = 400
            job.steps[3].export_report.title = "Imaging report"
            name = (await client.submit(job)).name
            async for _ in client.watch(name):
                pass
            return await client.get(name)

    with fluoro.client() as client:
        blobs = [client.upload(path).name for path in (ct, mr)]
        submitted = client.submit({"inputs": blobs}, pipeline="ct-tissue", parameters=WINDOW)
        waited = client.wait(submitted.name, timeout_seconds=SECONDS)
        blocked = client.run("ct-tissue@1", blobs, WINDOW)
    assert waited.state == job_pb2.Job.STATE_SUCCEEDED, fluoro.logs()
    assert [len(step.items) for step in waited.steps] == [2, 2, 2, 0]
    others = (blocked, asyncio.run(streamed()), asyncio.run(watched(blobs)))
    for other in others:
        assert results(other) == results(waited)
    assert [job.pipeline for job in others] == ["pipelines/ct-tissue/versions/1"] * 2 + [""]


@pytest.mark.parametrize(
    ("pipeline", "roles"),
    [
        ("dicom-intake", {"metadata", "preview", "pixels"}),
        (
            "deidentify",
            {"instance", "deidentification-report", "preview", "pixels", "report", "result"},
        ),
        ("ct-volume", {"instance", "deidentification-report", "volume", "geometry"}),
        ("imaging-report", {"metadata", "preview", "pixels", "report", "result"}),
        (
            "ct-tissue-dicom",
            {"preview", "pixels", "label-map", "overlay", "report", "result", "instance"},
        ),
        (
            "archive-report",
            {"member", "members", "metadata", "preview", "pixels", "report", "result"},
        ),
    ],
)
def test_a_pipeline_that_ships_leaves_what_it_says(
    fluoro: RunningFluoro, ct: Path, mr: Path, tmp_path: Path, pipeline: str, roles: set[str]
) -> None:
    files = [ct, mr]
    if pipeline == "archive-report":
        files = [tmp_path / "study.zip"]
        with zipfile.ZipFile(files[0], "w") as archive:
            archive.write(ct, "a/1.dcm")
            archive.write(mr, "2.dcm")
    with fluoro.client() as client:
        job = client.run(pipeline, files)
    assert job.state == job_pb2.Job.STATE_SUCCEEDED, fluoro.logs()
    assert {one.role for step in job.steps for one in step.artifacts} == roles
    shown = "volume" if "volume" in roles else "preview"
    assert sum(one.role == shown for step in job.steps for one in step.artifacts) == 2
