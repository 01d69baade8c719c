"""Finding jobs, and doing something to many at once, with the `fluoro` command and the client."""

import json

import pytest
from fluoro.v1 import job_pb2
from fluoro_client import Client
from fluoro_client.jobs import imaging_report
from fluoro_client.testing import Fault

State = job_pb2.Job.State


async def test_a_list_is_filtered_and_ordered(gateway, fluoro):
    jobs = [gateway.add_job(job_pb2.Job(labels={"study": study})) for study in "aabb"]
    for number in (3, 0):
        gateway.end(jobs[number].name, State.STATE_FAILED, "JOB_EXPIRED")
    searches = {
        ("--filter", 'state != PENDING AND labels.study != "a"'): [3],
        ("--filter", "labels.study = a"): [1, 0],
        ("--order-by", "create_time"): [0, 1, 2, 3],
        ("--order-by", "end_time"): [3, 0],
    }
    for words, found in searches.items():
        code, out, _ = await fluoro("list", *words)
        assert code == 0
        names = [line.split()[0] for line in out.splitlines()[1:]]
        assert names == [jobs[number].name for number in found], words
    code, _, err = await fluoro("list", "--filter", "nonsense")
    assert code == 3
    assert "FILTER_INVALID" in err


async def test_jobs_that_pass_a_filter_are_counted_first_and_then_cancelled_and_retried(
    gateway, fluoro
):
    jobs = [gateway.add_job(imaging_report([])) for _ in range(3)]
    for job, study in zip(jobs, "aab", strict=True):
        job.labels["study"] = study
    words = ("cancel", "--filter", "labels.study = a")
    assert (await fluoro(*words))[:2] == (0, "2 jobs would be cancelled. Repeat with --yes.\n")
    assert [job.state for job in jobs] == [State.STATE_PENDING] * 3
    assert (await fluoro(*words, "--yes"))[:2] == (0, "2 jobs cancelled.\n")
    assert [job.state for job in jobs] == [State.STATE_CANCELLED] * 2 + [State.STATE_PENDING]
    code, out, _ = await fluoro("retry", "--filter", "*", "--yes", "--output", "json")
    assert (code, json.loads(out)) == (0, {"jobs": 2, "more": False, "done": True})
    assert [job.state for job in jobs] == [State.STATE_PENDING] * 3


@pytest.mark.parametrize(
    "words", [["cancel"], ["cancel", "x", "--filter", "*"], ["retry", "x", "--yes"]]
)
async def test_either_one_job_or_a_filter_is_named(gateway, fluoro, words):
    code, _, err = await fluoro(*words)
    assert code == 2
    assert "either" in err
    assert not gateway.calls


def test_many_jobs_are_submitted_in_as_many_calls_as_it_takes(gateway):
    with Client(gateway.endpoint, owner="ada") as client:
        blob = client.upload(b"x").name
        jobs = [imaging_report([blob]) for _ in range(1001)]
        gateway.fail("BatchSubmitJobs", Fault("MESSAGE_TOO_LARGE"), times=1)
        outcomes = client.submit_many([*jobs, job_pb2.Job()])
    sizes = [len(call.request.requests) for call in gateway.calls if "Batch" in call.method]
    assert sizes == [1000, 500, 500, 2]
    assert len({outcome.name for outcome in outcomes[:-1]}) == 1001
    assert outcomes[-1].reason == "JOB_EMPTY"


async def test_jobs_are_counted_and_an_ended_one_is_deleted(gateway, fluoro):
    jobs = [gateway.add_job(imaging_report([])) for _ in range(3)]
    assert (await fluoro("delete", jobs[0].name))[0] == 3
    await fluoro("cancel", jobs[0].name)
    code, out, _ = await fluoro("count")
    rows = [line.split() for line in out.splitlines()]
    assert (code, rows) == (
        0,
        [["STATE", "PIPELINE", "JOBS"], ["pending", "2"], ["cancelled", "1"]],
    )
    assert (await fluoro("delete", jobs[0].name))[:2] == (0, f"{jobs[0].name} is deleted.\n")
    assert (await fluoro("delete", jobs[0].name))[0] == 3
    code, out, _ = await fluoro("count", "--filter", "state = PENDING", "--output", "json")
    counts = [{"state": "STATE_PENDING", "pipeline": "", "count": 2}]
    assert json.loads(out) == {"counts": counts, "more": False}
