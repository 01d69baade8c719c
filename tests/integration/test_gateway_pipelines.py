"""Pipelines through the gateway: what there is, jobs made of them, and refusals."""

from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fluoro.v1.blob_service_pb2 import UploadBlobHeader, UploadBlobRequest
from fluoro.v1.job_pb2 import Job, Step
from fluoro.v1.job_service_pb2 import (
    BatchSubmitJobsRequest,
    GetJobRequest,
    ListJobsRequest,
    SubmitJobRequest,
)
from fluoro.v1.pipeline_service_pb2 import GetPipelineRequest, ListPipelinesRequest
from gateway.testing import Client, refused, serving

SHIPPED = files("fluoro_jobs") / "pipelines" / "shipped"

TWICE = """\
name: twice
version: {version}
title: Two renderings
parameters:
  width: {{type: number, min: 1, max: 5000, default: 400}}
steps:
  - name: first
    render_dicom: {{window: {{center: 40, width: "${{width}}"}}}}
  - name: second
    render_dicom: {{}}
"""


@pytest.fixture
async def client(
    database_url: str, redis_url: str, blob_url: str, tmp_path: Path
) -> AsyncIterator[Client]:
    """Of a gateway that has the pipeline `twice`, version 1."""
    folder = tmp_path / "pipelines"
    folder.mkdir()
    (folder / "twice.yaml").write_text(TWICE.format(version=1))
    async with serving(database_url, redis_url, blob_url, pipelines_folder=str(folder)) as made:
        yield made


async def asking(client: Client, pipeline: str, **parameters: Any) -> SubmitJobRequest:
    """A submit for one blob."""
    parts = [
        UploadBlobRequest(header=UploadBlobHeader(size_bytes=1)),
        UploadBlobRequest(chunk=b"x"),
    ]
    blob = (await client.blobs.UploadBlob(iter(parts))).blob.name
    request = SubmitJobRequest(job=Job(inputs=[blob], labels={"ward": "7"}), pipeline=pipeline)
    request.parameters.update(parameters)
    return request


async def test_a_job_of_a_pipeline_has_its_steps_and_says_which_version_it_was(
    client: Client, database_url: str
) -> None:
    accepted = await client.jobs.SubmitJob(await asking(client, "pipelines/twice", width=80))
    job = (await client.jobs.GetJob(GetJobRequest(name=accepted.job.name))).job
    [listed] = (await client.jobs.ListJobs(ListJobsRequest())).jobs
    assert {accepted.job.pipeline, job.pipeline, listed.pipeline} == {"pipelines/twice/versions/1"}
    assert [step.name for step in job.steps] == ["first", "second"]
    assert job.steps[0].render_dicom.window.width == 80
    assert dict(job.labels) == {"ward": "7"}
    with psycopg.connect(database_url) as connection:
        row = connection.execute("SELECT pipeline, pipeline_version FROM jobs").fetchone()
    assert row == ("twice", 1)


async def test_a_job_submitted_as_steps_says_no_pipeline_whatever_the_caller_sends(
    client: Client,
) -> None:
    asked = await asking(client, "")
    asked.job.steps.add(name="a", inspect_dicom={})
    asked.job.pipeline = "pipelines/twice/versions/1"
    assert (await client.jobs.SubmitJob(asked)).job.pipeline == ""


async def test_the_service_tells_what_there_is_with_types_defaults_and_steps(
    client: Client,
) -> None:
    listed = (await client.pipelines.ListPipelines(ListPipelinesRequest())).pipelines
    shipped = [file.name.rpartition("-")[0] for file in SHIPPED.iterdir()]
    assert "deidentify-and-export" in shipped
    assert [one.name for one in listed] == [
        f"pipelines/{name}/versions/1" for name in sorted([*shipped, "twice"])
    ]
    assert not any(one.steps for one in listed)
    for name in ("pipelines/twice", "pipelines/twice/versions/1"):
        one = (await client.pipelines.GetPipeline(GetPipelineRequest(name=name))).pipeline
        [width] = one.parameters
        assert (width.name, width.type, width.required) == ("width", width.TYPE_NUMBER, False)
        assert [v.number_value for v in (width.default_value, width.minimum, width.maximum)] == [
            400,
            1,
            5000,
        ]
        assert one.steps[0].render_dicom.window.width == 400


async def test_checking_only_checks_parameters_too(client: Client) -> None:
    asked = await asking(client, "pipelines/twice", width=80)
    asked.validate_only = True
    assert (await client.jobs.SubmitJob(asked)).job.pipeline == "pipelines/twice/versions/1"
    asked.parameters.update({"width": 0})
    told = await refused(client.jobs.SubmitJob(asked))
    assert (told.reason, told.violations) == (
        "INVALID_ARGUMENT",
        {'parameters["width"]': "Must be a number from 1 to 5000."},
    )
    assert not (await client.jobs.ListJobs(ListJobsRequest())).jobs


async def test_what_cannot_be_made_into_a_job_is_refused_with_the_field(client: Client) -> None:
    both = await asking(client, "pipelines/twice")
    both.job.steps.append(Step(name="a", inspect_dicom={}))
    neither = await asking(client, "", width=1)
    neither.job.steps.append(Step(name="a", inspect_dicom={}))
    cases = [
        (await asking(client, "pipelines/thrice"), "PIPELINE_NOT_FOUND", "pipeline"),
        (await asking(client, "pipelines/twice/versions/2"), "PIPELINE_NOT_FOUND", "pipeline"),
        (await asking(client, "twice"), "INVALID_ARGUMENT", "pipeline"),
        (await asking(client, "pipelines/twice", height=1), "INVALID_ARGUMENT", None),
        (both, "INVALID_ARGUMENT", "job.steps"),
        (neither, "INVALID_ARGUMENT", "parameters"),
    ]
    for request, reason, field in cases:
        told = await refused(client.jobs.SubmitJob(request))
        assert (told.reason, list(told.violations)) == (reason, [field or 'parameters["height"]'])
    gone = await refused(client.pipelines.GetPipeline(GetPipelineRequest(name="pipelines/no")))
    assert (gone.code.name, gone.reason) == ("NOT_FOUND", "PIPELINE_NOT_FOUND")


async def test_a_submit_that_is_repeated_after_an_upgrade_returns_the_first_job_with_its_version(
    client: Client, database_url: str, redis_url: str, blob_url: str, tmp_path: Path
) -> None:
    asked = await asking(client, "pipelines/twice", width=80)
    asked.request_id = "once"
    first = (await client.jobs.SubmitJob(asked)).job
    newer = tmp_path / "newer"
    newer.mkdir()
    for version in (1, 2):
        (newer / f"{version}.yaml").write_text(TWICE.format(version=version))
    async with serving(database_url, redis_url, blob_url, pipelines_folder=str(newer)) as upgraded:
        again = (await upgraded.jobs.SubmitJob(asked)).job
        assert (again.name, again.pipeline) == (first.name, "pipelines/twice/versions/1")
        asked.parameters.update({"width": 81})
        told = await refused(upgraded.jobs.SubmitJob(asked))
        assert told.reason == "REQUEST_ID_REUSED"
        asked.request_id = "twice"
        fresh = (await upgraded.jobs.SubmitJob(asked)).job
        assert fresh.pipeline == "pipelines/twice/versions/2"


@pytest.mark.parametrize("change", ["narrower", "gone"])
async def test_a_submit_that_is_repeated_returns_the_first_job_also_if_it_is_not_taken_any_more(
    client: Client, database_url: str, redis_url: str, blob_url: str, tmp_path: Path, change: str
) -> None:
    asked = await asking(client, "pipelines/twice", width=80)
    asked.request_id = "once"
    first = (await client.jobs.SubmitJob(asked)).job
    newer = tmp_path / "newer"
    newer.mkdir()
    if change == "narrower":
        text = TWICE.format(version=2).replace("max: 5000, default: 400", "max: 50, default: 40")
        (newer / "2.yaml").write_text(text)
    async with serving(database_url, redis_url, blob_url, pipelines_folder=str(newer)) as upgraded:
        again = (await upgraded.jobs.SubmitJob(asked)).job
        assert (again.name, again.pipeline) == (first.name, "pipelines/twice/versions/1")
        other, unnamed = SubmitJobRequest(), SubmitJobRequest()
        other.CopyFrom(asked)
        other.parameters.update({"width": 81})
        unnamed.CopyFrom(asked)
        unnamed.request_id = ""
        batch = BatchSubmitJobsRequest(requests=[other, asked, unnamed])
        one, two, three = (await upgraded.jobs.BatchSubmitJobs(batch)).outcomes
        assert two.job.name == first.name
        assert one.refusal.reason == three.refusal.reason != ""
        asked.parameters.update({"width": 81})
        told = await refused(upgraded.jobs.SubmitJob(asked))
        assert told.reason == {"narrower": "INVALID_ARGUMENT", "gone": "PIPELINE_NOT_FOUND"}[change]
