"""Pipelines by the client and the command: what there is, and runs from files to the ended job."""

import asyncio
import json

import pytest
from fluoro.v1 import job_pb2
from fluoro.v1.pipeline_service_pb2 import PipelineParameter
from fluoro_client import AsyncClient, Client, FluoroApiError
from fluoro_client.files import BadPathError
from fluoro_client.jobs import render
from fluoro_client.testing import FakeGateway, Fault, File, Outcome
from fluoro_client.testing.pipelines import SHIPPED

SUCCEEDED = job_pb2.Job.STATE_SUCCEEDED


@pytest.fixture
async def client(gateway):
    async with AsyncClient(gateway.endpoint, owner="ada", deadline_seconds=10) as client:
        yield client


async def test_a_run_uploads_what_it_is_given_and_returns_the_ended_job(gateway, client, tmp_path):
    gateway.hold = False
    gateway.script("report", Outcome(artifacts=[File("report.pdf", b"%PDF-", "report")]))
    (tmp_path / "study").mkdir()
    for name in ("1", "2"):
        (tmp_path / "study" / name).write_bytes(name.encode())
    given = gateway.add_blob(b"3")
    inputs = [tmp_path / "study", b"4", given, given.name]
    told = []
    job = await client.run(
        "ct-tissue",
        inputs,
        {"window_center": 40, "window_width": 400},
        labels={"study": "a"},
        priority=3,
        told=told.append,
    )
    assert (job.state, job.pipeline) == (SUCCEEDED, "pipelines/ct-tissue/versions/1")
    assert (dict(job.labels), job.priority) == ({"study": "a"}, 3)
    assert [gateway.data[name] for name in job.inputs] == [b"1", b"2", b"4", b"3", b"3"]
    assert job.steps[1].render_dicom.window.width == 400
    assert [artifact.name for artifact in job.steps[3].artifacts] == ["report.pdf"]
    assert told[0].snapshot.state == job_pb2.Job.STATE_PENDING
    assert told[-1].event.job_changed.state == SUCCEEDED


@pytest.mark.parametrize("after", [0, 1, 3])
async def test_a_run_that_breaks_goes_on_and_tells_each_event_once(gateway, client, after):
    gateway.hold = False
    gateway.fail("RunJob", Fault(after=after))
    told = []
    job = await client.run("dicom-intake", [b"x"], told=told.append)
    assert job.state == SUCCEEDED
    assert len(gateway.jobs) == 1
    events = [one.event.sequence for one in told if one.HasField("event")]
    first = told[0].snapshot.last_sequence
    assert events == list(range(first + 1, job.last_sequence + 1))


async def test_an_interrupted_run_leaves_the_job_alone(gateway, client):
    seen = asyncio.Event()
    run = asyncio.create_task(client.run("ct-tissue", [b"x"], told=lambda _: seen.set()))
    async with asyncio.timeout(30):
        await seen.wait()
    run.cancel()
    await asyncio.wait([run])
    [job] = gateway.jobs.values()
    assert job.state == job_pb2.Job.STATE_PENDING


async def test_what_a_pipeline_does_not_take_is_refused_with_the_parameter(gateway, client):
    for parameters, fields in (
        ({"colour": "red"}, ['submit.parameters["colour"]']),
        ({"window_width": "wide"}, ['submit.parameters["window_width"]']),
    ):
        with pytest.raises(FluoroApiError) as refused:
            await client.run("ct-tissue", [b"x"], parameters)
        assert refused.value.reason == "INVALID_ARGUMENT"
        assert [bad.field for bad in refused.value.violations] == fields
    with pytest.raises(FluoroApiError) as refused:
        await client.submit({"inputs": [gateway.add_blob(b"x").name]}, pipeline="ct-tissue@2")
    assert refused.value.reason == "PIPELINE_NOT_FOUND"
    with pytest.raises(BadPathError):
        await client.run("ct-tissue", ["/no/such/file"])
    assert not gateway.jobs


async def test_a_test_may_add_pipelines_and_versions(gateway, client):
    width = PipelineParameter(name="width", type=PipelineParameter.TYPE_NUMBER, required=True)
    gateway.add_pipeline("mine", [render()])
    gateway.add_pipeline(
        "mine", lambda given: [render(window=(0, given.get("width", 1)))],
        version=2, parameters=[width],
    )  # fmt: skip
    names = [one.name async for one in client.pipelines(all_versions=True)]
    assert [name for name in names if "mine" in name] == [
        "pipelines/mine/versions/2",
        "pipelines/mine/versions/1",
    ]
    assert "pipelines/mine/versions/1" not in [one.name async for one in client.pipelines()]
    assert [step.name for step in (await client.pipeline("mine@1")).steps] == ["render"]
    inputs = {"inputs": [gateway.add_blob(b"x").name]}
    with pytest.raises(FluoroApiError, match="Required"):
        await client.submit(inputs, pipeline="mine")
    await client.submit(inputs, pipeline="mine", parameters={"width": 80})
    [job] = gateway.jobs.values()
    assert job.steps[0].render_dicom.window.width == 80


def test_the_sync_client_runs_what_the_async_one_does():
    with FakeGateway() as gateway, Client(gateway.endpoint, owner="ada") as client:
        assert client.run("dicom-intake", [b"x"]).state == SUCCEEDED
        assert "pipelines/ct-tissue/versions/1" in [one.name for one in client.pipelines()]
        assert client.pipeline("ct-tissue").parameters[0].name == "title"


async def test_the_command_lists_pipelines_and_shows_one(fluoro):
    code, out, _ = await fluoro("pipelines")
    assert code == 0
    assert ["ct-tissue@1", "ct-tissue", "title", "window_center", "window_width"] in [
        line.split() for line in out.splitlines()
    ]
    code, out, _ = await fluoro("pipelines", "ct-tissue")
    assert code == 0
    assert "inspect → render → analyze → report" in out
    assert "--param title=  string, default Imaging report" in out.splitlines()
    code, out, _ = await fluoro("pipelines", "ct-tissue@1", "--output", "json")
    assert json.loads(out)["name"] == "pipelines/ct-tissue/versions/1"
    code, out, _ = await fluoro("pipelines", "--all", "--output", "json")
    assert len(json.loads(out)["pipelines"]) == len(SHIPPED)
    assert (await fluoro("pipelines", "no"))[0] == 3


async def test_the_command_gives_parameters_the_types_of_the_pipeline(gateway, fluoro):
    boolean = PipelineParameter(name="sure", type=PipelineParameter.TYPE_BOOLEAN)
    title = PipelineParameter(name="title", type=PipelineParameter.TYPE_STRING)
    seen = []
    gateway.add_pipeline(
        "mine", lambda given: seen.append(given) or [render()],
        parameters=[boolean, title],
    )  # fmt: skip
    words = ["submit", "--pipeline", "mine", "--input", gateway.add_blob(b"x").name]
    code, _, _ = await fluoro(*words, "--param", "sure=true", "--param", "title=7")
    assert code == 0
    assert seen[-1] == {"sure": True, "title": "7"}
    code, _, err = await fluoro(*words, "--param", "sure=maybe")
    assert (code, err) == (2, "Error: --param sure must be true or false.\n")
    code, _, err = await fluoro(*words, "--param", "colour=red")
    assert code == 3
    assert 'parameters["colour"]' in err


async def test_the_command_runs_a_pipeline_on_a_folder_and_downloads_what_its_last_step_left(
    gateway, fluoro, tmp_path
):
    gateway.hold = False
    gateway.script("render", Outcome(artifacts=[File("preview-0.png", b"\x89PNG", "preview")]))
    gateway.script(
        "report",
        Outcome(artifacts=[File("report.pdf", b"%PDF-", "report"), File("r.json", b"", "result")]),
    )
    study, results = tmp_path / "study", tmp_path / "results"
    study.mkdir()
    for name in ("1", "2"):
        (study / name).write_bytes(name.encode())
    words = ("run", "imaging-report@1", str(study), "--param", "title=Head", "--to", str(results))
    code, out, _ = await fluoro(*words, "--role", "report")
    assert code == 0
    [job] = gateway.jobs.values()
    assert (len(job.inputs), job.steps[-1].export_report.title) == (2, "Head")
    report = results / "report" / "report.pdf"
    assert out.splitlines()[-1] == str(report)
    assert [path for path in results.rglob("*") if path.is_file()] == [report]
    assert report.read_bytes() == b"%PDF-"


async def test_a_run_whose_job_fails_downloads_nothing(gateway, fluoro, tmp_path):
    gateway.hold = False
    gateway.script("render", Outcome("NOT_DICOM"))
    (tmp_path / "1").write_bytes(b"1")
    code, _, _ = await fluoro(
        "run", "imaging-report", str(tmp_path / "1"), "--to", str(tmp_path / "results")
    )
    assert code == 1
    assert not (tmp_path / "results").exists()
