"""Unary calls, errors, and the blocking client."""

import asyncio
import inspect
import threading
import time

import grpc
import pytest
from fluoro.v1 import dicom_pb2, event_pb2, job_pb2, token_service_pb2
from fluoro_client import AsyncClient, Client
from fluoro_client.errors import (
    DeadlineExceededError,
    FieldViolation,
    FluoroApiError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnavailableError,
    UnreachableError,
)
from fluoro_client.jobs import InvalidJobError, imaging_report, parse_job, render, step
from fluoro_client.testing import Fault
from google.protobuf import json_format

State = job_pb2.Job.State
NOBODY = "jobs/00000000-0000-4000-8000-000000000000"


@pytest.fixture
async def client(gateway):
    async with AsyncClient(gateway.endpoint, owner="ada") as client:
        yield client


async def test_the_owner_travels_with_every_call(gateway, client, tmp_path):
    job = await client.submit(imaging_report([await client.upload(b"x")]))
    await client.cancel(job.name)
    await client.get(job.name)
    await client.wait(job.name)
    _ = [job async for job in client.list()]
    _ = [message async for message in client.watch(job.name)]
    [blob] = [name async for name in client.list_inputs(job.name)]
    await client.download(blob, tmp_path / "x")
    assert {owner for _, owner, _ in gateway.calls} == {"ada"}
    assert len(gateway.calls) == 10


async def test_a_submit_is_repeated_while_the_ledger_is_away_and_stores_one_job(gateway, client):
    gateway.fail("SubmitJob", Fault("LEDGER_UNAVAILABLE"), Fault(""), Fault("SHUTTING_DOWN"))
    await client.submit(imaging_report([gateway.add_blob(b"x")]))
    assert len(gateway.jobs) == 1
    assert len(gateway.calls) == 4


async def test_a_call_over_a_limit_is_repeated_when_the_gateway_says(gateway, client):
    limit = Fault("RATE_LIMITED", retry_seconds=0.3)
    gateway.fail("ListJobs", limit, times=2)
    began = time.monotonic()
    assert [job async for job in client.list()] == []
    assert time.monotonic() - began > 0.6
    # Of gRPC itself, when too many calls wait for it, at a gateway that is new to the client too.
    gateway.fail("ListJobs", Fault(code=grpc.StatusCode.CANCELLED), times=5)
    assert [job async for job in client.list()] == []
    gateway.fail("ListJobs", Fault("MESSAGE_TOO_LARGE"))
    with pytest.raises(ResourceExhaustedError):
        await anext(client.list())


async def test_each_submit_gets_its_own_request_id_unless_one_is_given(gateway, client):
    for request_id in ("", "", "mine", "mine"):
        await client.submit(imaging_report([gateway.add_blob(b"x")]), request_id=request_id)
    assert len(gateway.jobs) == 3


async def test_a_job_is_taken_as_message_dict_or_json(gateway, client):
    job = imaging_report([gateway.add_blob(b"x")])
    for source in (job, json_format.MessageToDict(job), json_format.MessageToJson(job)):
        steps = (await client.get((await client.submit(source)).name)).steps
        assert [(step.name, step.after) for step in steps] == [
            (step.name, step.after) for step in job.steps
        ]


@pytest.mark.parametrize("source", ["{", "[]", '{"stepz": []}', {"steps": 3}])
def test_json_that_is_no_job_is_refused_before_any_call(source):
    with pytest.raises(InvalidJobError):
        parse_job(source)


def test_the_imaging_report_runs_inspect_render_analyze_report():
    job = imaging_report(["blobs/1", "blobs/2"])
    assert list(job.inputs) == ["blobs/1", "blobs/2"]
    assert {step.name: (step.WhichOneof("operation"), list(step.after)) for step in job.steps} == {
        "inspect": ("inspect_dicom", []),
        "render": ("render_dicom", ["inspect"]),
        "analyze": ("analyze_images", ["render"]),
        "report": ("export_report", ["inspect", "render", "analyze"]),
    }
    assert job.steps[2].analyze_images.model == "ct-tissue"


def test_a_step_with_any_operation_is_named_after_it():
    made = step(dicom_pb2.RenderDicom(), after=["a"], inputs=[job_pb2.StepInput(step="b")])
    assert (made.name, made.WhichOneof("operation")) == ("render-dicom", "render_dicom")
    assert (list(made.after), made.inputs[0].step, made.max_inputs_per_task) == (["a"], "b", 0)
    with pytest.raises(ValueError, match="not an operation"):
        step(dicom_pb2.RenderDicomResult())


def test_a_window_overrides_the_files():
    assert render(window=(40, 400)).render_dicom.window.width == 400
    assert not render().render_dicom.HasField("window")


async def test_a_list_reads_on_over_pages_up_to_its_limit(gateway, client):
    names = [gateway.add_job(job_pb2.Job(labels={"study": "a"})).name for _ in range(7)][::-1]
    gateway.add_job()
    assert [job.name async for job in client.list(labels={"study": "a"}, page_size=3)] == names
    assert [
        job.name async for job in client.list(labels={"study": "a"}, page_size=3, limit=5)
    ] == names[:5]
    assert [job.name async for job in client.list(states=[State.STATE_FAILED])] == []


async def test_wait_returns_when_the_job_is_done_even_if_the_gateway_restarts(gateway, client):
    job = gateway.add_job()
    await client.get(job.name)
    gateway.fail("WaitJob", *[Fault()] * 5)
    waiter = asyncio.create_task(client.wait(job.name))
    gateway.finish(job.name)
    assert (await waiter).state == State.STATE_SUCCEEDED


async def test_wait_returns_the_job_as_it_is_when_time_is_up(gateway, client):
    job = gateway.add_job()
    assert (await client.wait(job.name, timeout_seconds=0.2)).state == State.STATE_PENDING


async def test_an_error_carries_code_reason_fields_and_metadata(gateway, client):
    gateway.fail(
        "SubmitJob",
        Fault(
            code=grpc.StatusCode.INVALID_ARGUMENT,
            reason="STEP_UNKNOWN",
            message="A step comes after one that is not in the job.",
            violations=(FieldViolation("job.steps[1].after[0]", "name a step of this job"),),
            metadata={"step": "rendr"},
            retry_seconds=3,
        ),
    )
    with pytest.raises(InvalidArgumentError) as caught:
        await client.submit(imaging_report([gateway.add_blob(b"x")]))
    error = caught.value
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "STEP_UNKNOWN")
    assert error.violations == (FieldViolation("job.steps[1].after[0]", "name a step of this job"),)
    assert (error.metadata, error.retry_seconds) == ({"step": "rendr"}, 3)
    assert str(error) == (
        "INVALID_ARGUMENT (STEP_UNKNOWN): A step comes after one that is not in the job.\n  "
        "job.steps[1].after[0]: name a step of this job"
    )


@pytest.mark.parametrize(
    "expected",
    [
        (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND", NotFoundError),
        (grpc.StatusCode.UNAUTHENTICATED, "", PermissionDeniedError),
        (grpc.StatusCode.UNAVAILABLE, "LEDGER_UNAVAILABLE", UnavailableError),
        (grpc.StatusCode.UNAVAILABLE, "", UnreachableError),
        (grpc.StatusCode.INTERNAL, "INTERNAL", FluoroApiError),
    ],
)
async def test_each_code_has_its_exception(gateway, expected):
    code, reason, kind = expected
    gateway.fail("GetJob", *[Fault(code=code, reason=reason)] * 100)
    async with AsyncClient(gateway.endpoint, deadline_seconds=0.5) as client:
        with pytest.raises(FluoroApiError) as caught:
            await client.get("jobs/any")
    assert type(caught.value) is kind
    assert caught.value.code is code


async def test_calls_wait_for_a_gateway_that_restarts(gateway, client):
    job = gateway.add_job()
    await client.get(job.name)
    gateway.stop()
    calls = [
        asyncio.create_task(client.get(job.name)),
        asyncio.create_task(client.submit(imaging_report([gateway.add_blob(b"x")]))),
    ]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(calls[0]), 2)
    gateway.start()
    assert [(await call).state for call in calls] == [State.STATE_PENDING] * 2
    assert len(gateway.jobs) == 2


async def test_a_gateway_that_stays_away_is_told_before_the_deadline(gateway):
    job = gateway.add_job()
    async with AsyncClient(gateway.endpoint, deadline_seconds=2) as client:
        await client.get(job.name)
        gateway.stop()
        with pytest.raises(UnreachableError):
            await client.get(job.name)


async def test_the_reason_of_earlier_refusals_is_told_when_time_is_up(gateway):
    gateway.fail("GetJob", Fault("LEDGER_UNAVAILABLE"), Fault(hang=True))
    async with AsyncClient(gateway.endpoint, deadline_seconds=1) as client:
        with pytest.raises(UnavailableError, match="LEDGER_UNAVAILABLE"):
            await client.get("jobs/any")


async def test_a_retry_whose_outcome_is_unknown_is_not_repeated(gateway, client):
    job = gateway.add_job()
    gateway.end(job.name, State.STATE_FAILED)
    gateway.fail("RetryJob", Fault("LEDGER_UNAVAILABLE"))
    with pytest.raises(UnavailableError):
        await client.retry(job.name)
    assert len(gateway.calls) == 1


async def test_a_gateway_that_does_not_answer_meets_the_deadline(gateway):
    gateway.fail("GetJob", Fault(hang=True))
    async with AsyncClient(gateway.endpoint, deadline_seconds=0.2) as client:
        with pytest.raises(DeadlineExceededError, match="No answer from 127"):
            await client.get("jobs/any")


async def test_a_wrong_endpoint_is_told_in_plain_words(unused_tcp_port):
    async with AsyncClient(f"127.0.0.1:{unused_tcp_port}") as client:
        with pytest.raises(UnreachableError, match="Cannot connect to a Fluoro gateway at 127"):
            await client.get("jobs/any")


async def test_a_new_client_does_not_share_the_back_off_of_another(gateway):
    gateway.stop()
    async with AsyncClient(gateway.endpoint) as early:
        for _ in range(4):
            with pytest.raises(UnreachableError):
                await early.get("jobs/any")
        gateway.start()
        async with AsyncClient(gateway.endpoint) as late:
            with pytest.raises(NotFoundError):
                await late.get(NOBODY)


async def test_an_owner_that_cannot_travel_as_metadata_is_refused(gateway):
    with pytest.raises(ValueError, match="printable ASCII"):
        AsyncClient(gateway.endpoint, owner="Ådå")


def public(kind):
    members = {name: getattr(kind, name) for name in dir(kind) if not name.startswith("_")}
    return {name: member for name, member in members.items() if callable(member)}


def test_the_blocking_client_has_every_method_with_the_same_parameters():
    theirs, ours = public(AsyncClient), public(Client)
    assert theirs.keys() == ours.keys()
    for name in theirs.keys() - {"close"}:
        assert (
            inspect.signature(theirs[name]).parameters == inspect.signature(ours[name]).parameters
        )
        assert ours[name].__doc__ == theirs[name].__doc__
    assert inspect.signature(AsyncClient).parameters == inspect.signature(Client).parameters


async def test_the_blocking_client_does_a_whole_job(gateway, tmp_path):
    def work():
        with Client(gateway.endpoint, owner="ada") as client:
            blob = client.upload(b"bytes")
            job = client.submit(imaging_report([blob]))
            watch = client.watch(job.name)
            updates = [next(watch).WhichOneof("update")]
            client.cancel(job.name)
            updates += [
                message.event.job_changed.state
                for message in watch
                if message.event.HasField("job_changed")
            ]
            assert client.wait(job.name).state == State.STATE_CANCELLED
            assert [found.name for found in client.list(limit=1)] == [job.name]
            assert client.download(blob, tmp_path / "out").read_bytes() == b"bytes"
            with pytest.raises(NotFoundError):
                client.get(NOBODY)
            return updates

    assert await asyncio.to_thread(work) == ["snapshot", State.STATE_CANCELLED]
    assert "fluoro-client" not in [thread.name for thread in threading.enumerate()]


async def test_a_blocking_watch_that_is_left_early_lets_the_client_close(gateway):
    job = gateway.add_job(events=[event_pb2.JobChanged(state=State.STATE_RUNNING)])

    def work():
        with Client(gateway.endpoint, owner="ada") as client:
            for message in client.watch(job.name):
                return message.snapshot.state
            return None

    assert await asyncio.to_thread(work) == State.STATE_RUNNING


def test_a_blocking_client_that_cannot_be_made_leaves_no_thread():
    with pytest.raises(ValueError, match="printable ASCII"):
        Client("localhost:1", owner="Å")
    assert "fluoro-client" not in [thread.name for thread in threading.enumerate()]


def test_operators_make_list_and_revoke_tokens(gateway):
    roles = [token_service_pb2.ROLE_VIEWER]
    with Client(gateway.endpoint, owner="ops") as client:
        made = client.create_token("ada", roles, display_name="a script", days=7)
        other = client.create_token("bob", roles)
        assert made.secret.startswith("fluoro_")
        assert made.token.expire_time.seconds - made.token.create_time.seconds == 7 * 86_400
        assert [token.name for token in client.list_tokens()] == [
            other.token.name,
            made.token.name,
        ]
        assert client.revoke_token(made.token.name).HasField("revoke_time")
        [listed] = client.list_tokens("ada")
        assert listed.HasField("revoke_time")
        with pytest.raises(NotFoundError, match="TOKEN_NOT_FOUND"):
            client.revoke_token("tokens/none")
        gateway.fail("CreateToken", Fault("ROLE_MISSING"))
        with pytest.raises(PermissionDeniedError):
            client.create_token("ada", roles)
