"""When and on what a step is planned: at accept, once its steps have ended, after a redo."""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import replace
from uuid import UUID

import psycopg
import pytest
from fluoro.v1 import job_pb2, job_service_pb2
from fluoro_jobs import dispatch
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger import accept, attempts, control, heartbeats, planning
from fluoro_jobs.ledger.attempts import Claim, Worker
from fluoro_jobs.ledger.records import ItemResult, TaskResult
from fluoro_jobs.operations import BY_FIELD
from fluoro_jobs.testing.rig import OWNER, Rig
from psycopg import Connection
from psycopg.errors import LockNotAvailable
from psycopg.rows import TupleRow

Db = Connection[TupleRow]
Input, Item = job_pb2.StepInput, job_pb2.Item


@pytest.fixture
def db(database_url: str) -> Iterator[Db]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def submit(rig: Rig, db: Db, *steps: job_pb2.Step, inputs: int = 1) -> UUID:
    job = job_pb2.Job(inputs=[rig.blob(bytes([n])) for n in range(inputs)], steps=steps)
    request = job_service_pb2.SubmitJobRequest(job=job)
    (answer,) = accept.accept(db, [accept.validate(request, OWNER)])
    assert not isinstance(answer, FluoroError), answer
    return UUID(answer.name.removeprefix("jobs/"))


def step(name: str, operation: str, *inputs: Input, size: int = 0) -> job_pb2.Step:
    made = job_pb2.Step(name=name, inputs=inputs, max_inputs_per_task=size)
    getattr(made, operation).SetInParent()
    return made


def claims(db: Db) -> list[Claim]:
    """Attempts of all that can be dispatched, by shard."""
    by = Worker(new_id(), "host:1", "dicom", 32, "0")
    heartbeats.beat(db, by, [])
    found = [attempts.claim(db, task, by) for task, *_ in dispatch.take(db)]
    return sorted((one for one in found if one), key=lambda one: one.task.shard)


def leave(db: Db, claim: Claim, *keys: str, bad: str = "") -> None:
    """Commits an attempt with all inputs but one good, and a member left under each key."""
    items = [
        ItemResult(
            one.number,
            one.key,
            one.input,
            Item.STATE_FAILED if one.key == bad else Item.STATE_SUCCEEDED,
            "NOT_DICOM" if one.key == bad else "",
        )
        for one in claim.inputs
    ]
    members = [
        job_pb2.Artifact(
            name=f"member-{key.replace('/', '~')}",
            role="member",
            key=key,
            input=0,
            media_type="text/plain",
            blob=f"blobs/{new_id()}",
            size_bytes=1,
            sha256=hashlib.sha256(b"x").digest(),
        )
        for key in keys
    ]
    assert attempts.commit(db, claim, TaskResult(b"", items, members))


def seen(claim: Claim) -> dict[str, list[tuple[str, str]]]:
    """Keys of an attempt's inputs, and role and name of their parts."""
    return {one.key: [(part.role, part.name) for part in one.parts] for one in claim.inputs}


def test_a_group_is_refused_for_operations_that_look_at_one_part_of_an_input() -> None:
    grouped = step("two", "render_dicom", Input(), Input(role="input", group=True))
    job = job_pb2.Job(inputs=[f"blobs/{new_id()}"], steps=[step("one", "inspect_dicom"), grouped])
    with pytest.raises(FluoroError) as caught:
        accept.validate(job_service_pb2.SubmitJobRequest(job=job), OWNER)
    assert caught.value.reason == Reason.STEP_INPUT_MISMATCH
    (violation,) = caught.value.violations
    assert violation.field == "job.steps[1].inputs[1].group"
    assert violation.description == "Leave it out: render_dicom takes each input on its own."


def test_all_inputs_of_a_job_may_be_one_input_of_its_first_step(
    rig: Rig, db: Db, monkeypatch: pytest.MonkeyPatch
) -> None:
    takes_groups = replace(BY_FIELD["inspect_dicom"], groups=True)
    monkeypatch.setitem(BY_FIELD, "inspect_dicom", takes_groups)
    job_id = submit(rig, db, step("one", "inspect_dicom", Input(group=True)), inputs=3)
    (claim,) = claims(db)
    assert seen(claim) == {"all": [("input", "")] * 3}
    assert (claim.inputs[0].number, claim.inputs[0].input) == (0, None)
    job = rig.job(job_id)
    assert [f"blobs/{part.blob}" for part in claim.inputs[0].parts] == list(job.inputs)
    assert job.steps[0].inputs == [Input(role="input", group=True)]
    leave(db, claim)
    assert rig.job(job_id).steps[0].items == [Item(input=-1, key="all", state=1)]


def test_a_step_that_names_the_originals_gets_them_beside_what_was_made_of_them(
    rig: Rig, db: Db
) -> None:
    both = [Input(), Input(step="unpack")]
    submit(rig, db, step("unpack", "unpack_archive"), step("inspect", "inspect_dicom", *both))
    (claim,) = claims(db)
    leave(db, claim, "0/0000")
    (claim,) = claims(db)
    assert seen(claim) == {"0": [("input", "")], "0/0000": [("member", "member-0~0000")]}


def test_after_a_redo_of_what_it_works_on_a_step_is_planned_anew(rig: Rig, db: Db) -> None:
    job_id = submit(
        rig,
        db,
        step("unpack", "unpack_archive", size=1),
        step("inspect", "inspect_dicom", Input(step="unpack"), size=1),
        inputs=2,
    )
    first, second = claims(db)
    leave(db, first, "0/0")
    leave(db, second, bad="1")
    (claim,) = claims(db)
    leave(db, claim)
    assert control.retry_job(db, OWNER, job_id)
    (claim,) = claims(db)
    assert seen(claim).keys() == {"1"}
    leave(db, claim, "1/0", "1/1")
    assert [key for claim in claims(db) for key in seen(claim)] == ["0/0", "1/0", "1/1"]


def test_a_step_to_which_nothing_is_left_fails_and_says_so(rig: Rig, db: Db) -> None:
    job_id = submit(
        rig,
        db,
        step("unpack", "unpack_archive"),
        step("inspect", "inspect_dicom", Input(step="unpack")),
    )
    (claim,) = claims(db)
    leave(db, claim)
    assert rig.job(job_id).steps[1].reason == "NO_APPLICABLE_INPUT"
    assert rig.job(job_id).state == job_pb2.Job.STATE_FAILED


def test_a_result_is_taken_after_an_outage_in_the_middle_of_planning(
    rig: Rig, db: Db, database_url: str
) -> None:
    inspect = step("inspect", "inspect_dicom", Input(step="unpack"))
    job_id = submit(rig, db, step("unpack", "unpack_archive"), inspect)
    (claim,) = claims(db)
    db.execute("SET lock_timeout = '100 ms'")
    with psycopg.connect(database_url) as other:
        other.execute("LOCK step_inputs")  # what was done until then is undone
        with pytest.raises(LockNotAvailable):
            leave(db, claim, "0/0")
    assert rig.job(job_id).steps[0].state == job_pb2.Step.STATE_RUNNING
    leave(db, claim, "0/0")  # as a worker does, whose work is not thrown away
    assert [seen(one).keys() for one in claims(db)] == [{"0/0"}]


def test_a_step_that_would_give_its_job_more_than_10_000_tasks_fails_and_the_others_go_on(
    rig: Rig, db: Db
) -> None:
    steps = [
        step("unpack", "unpack_archive"),
        *(step(name, "inspect_dicom", Input(step="unpack"), size=size) for name, size in SIZES),
    ]
    job_id = submit(rig, db, *steps)
    (claim,) = claims(db)
    leave(db, claim, *map(str, range(5_001)))

    def counted() -> list[tuple[str, str, int]]:
        query = "SELECT name, reason, task_count FROM steps WHERE job_id = %s AND ordinal > 0"
        return db.execute(f"{query} ORDER BY ordinal", (job_id,)).fetchall()

    planned = [("a", "", 5_001), ("b", "TOO_MANY_INPUTS", 0), ("c", "", 2_501), ("d", "", 1)]
    assert counted() == planned
    assert open_tasks(db) == sum(tasks for _, _, tasks in planned)
    control.cancel_job(db, OWNER, job_id)
    assert open_tasks(db) == 0
    control.retry_job(db, OWNER, job_id)
    assert counted() == planned, "the same again"
    assert open_tasks(db) == sum(tasks for _, _, tasks in planned)


SIZES = (("a", 1), ("b", 1), ("c", 2), ("d", 0))


def open_tasks(db: Db) -> int:
    (count,) = db.execute("SELECT count(*) FROM open_tasks").fetchall()
    return int(count[0])


def test_a_step_with_more_than_10_000_inputs_fails_and_says_what_to_do(rig: Rig, db: Db) -> None:
    inspect = step("inspect", "inspect_dicom", Input(step="unpack"))
    job_id = submit(rig, db, step("unpack", "unpack_archive"), inspect)
    (claim,) = claims(db)
    leave(db, claim, *map(str, range(10_001)))
    done = control.retry_job(db, OWNER, job_id)
    assert done.state == job_pb2.Job.STATE_FAILED, "it is no use"
    assert (done.steps[1].reason, done.steps[1].message) == (
        "TOO_MANY_INPUTS",
        "It has more than 10000 inputs, or 50000 files. Split the job.",
    )


def test_any_number_of_steps_with_the_same_sources_share_their_inputs(rig: Rig, db: Db) -> None:
    sources = Input(step="unpack")
    names = [f"s{n}" for n in range(30)]
    # It waits for another step too, and so is planned later than those that it shares with.
    late = step("late", "inspect_dicom", sources)
    late.after.append(names[0])
    job_id = submit(
        rig,
        db,
        step("unpack", "unpack_archive"),
        late,
        *(step(name, "inspect_dicom", sources, size=10_000) for name in names),
    )

    def kept() -> list[tuple[int, int]]:
        query = "SELECT step, count(*) FROM step_inputs WHERE job_id = %s GROUP BY step"
        return [(ordinal, count) for ordinal, count in db.execute(query, (job_id,)).fetchall()]

    (claim,) = claims(db)
    started = time.monotonic()
    leave(db, claim, *map(str, range(10_000)))
    assert time.monotonic() - started < 6, "near the end of the ledger's waits"
    assert kept() == [(1, 10_000)]
    followers = claims(db)
    assert {len(one.inputs) for one in followers} == {10_000}
    (first,) = (one for one in followers if one.step_name == names[0])
    leave(db, first)
    (claim,) = claims(db)
    assert (claim.step_name, len(claim.inputs)) == ("late", 10_000)
    # One fails for good, and its inputs are told of by the keys that they share.
    attempts.fail(db, followers[-1], FluoroError(Reason.NOT_DICOM, "No."))
    query = "SELECT key FROM items WHERE job_id = %s AND state = %s ORDER BY number LIMIT 2"
    assert db.execute(query, (job_id, Item.STATE_FAILED)).fetchall() == [("0",), ("1",)]
    # What left them is done, so a retry makes them neither again nor anew.
    control.cancel_job(db, OWNER, job_id)
    control.retry_job(db, OWNER, job_id)
    assert kept() == [(1, 10_000)]


def test_what_a_step_works_on_comes_in_the_order_of_sources_shards_and_positions(
    rig: Rig, db: Db, monkeypatch: pytest.MonkeyPatch
) -> None:
    takes_groups = replace(BY_FIELD["inspect_dicom"], groups=True)
    monkeypatch.setitem(BY_FIELD, "inspect_dicom", takes_groups)
    sources = [Input(step="b"), Input(step="a", group=True), Input()]
    a, b = (step(name, "unpack_archive", size=1) for name in "ab")
    submit(rig, db, a, b, step("inspect", "inspect_dicom", *sources), inputs=2)
    for claim in claims(db):
        key = claim.inputs[0].key
        if claim.step_name == "a":
            leave(db, claim, f"{key}/y/2", f"{key}/y/1", f"top{key}")
        else:
            leave(db, claim, f"{key}/x/2", f"{key}/x/1", *(["1"] if key == "0" else []))
    (claim,) = claims(db)
    found = seen(claim)
    assert [one.number for one in claim.inputs] == list(range(9))
    assert list(found) == ["0/x/2", "0/x/1", "1", "1/x/2", "1/x/1", "0/y", "all", "1/y", "0"]
    assert found["0/y"] == [("member", "member-0~y~2"), ("member", "member-0~y~1")]
    assert found["all"] == [("member", "member-top0"), ("member", "member-top1")]
    assert found["1"] == [("member", "member-1"), ("input", "")]
    # `leave` gives everything to input 0. What comes from two of them is of none.
    assert {one.key: one.input for one in claim.inputs}["1"] is None
    assert {one.input for one in claim.inputs if one.key != "1"} == {0}


def test_steps_that_begin_together_on_more_files_than_a_transaction_bears_fail_and_say_so(
    rig: Rig, db: Db, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "MAX_PARTS_TOGETHER", 5)
    sources = (
        [Input(step="unpack")],
        [Input(step="unpack"), Input()],
        [Input(), Input(step="unpack")],
    )
    steps = [step(f"s{n}", "inspect_dicom", *each) for n, each in enumerate(sources)]
    job_id = submit(rig, db, step("unpack", "unpack_archive"), *steps)
    (claim,) = claims(db)
    leave(db, claim, "0/0", "0/1")
    assert [(each.reason, len(each.tasks)) for each in rig.job(job_id).steps[1:]] == [
        ("", 1),
        ("", 1),
        ("TOO_MANY_INPUTS", 0),
    ]


def test_a_job_is_read_back_with_what_it_lets_a_step_see(rig: Rig, db: Db) -> None:
    allowed = step("inspect", "inspect_dicom")
    allowed.allow_identifiable = True
    job = rig.job(submit(rig, db, allowed, step("render", "render_dicom")))
    assert [each.allow_identifiable for each in job.steps] == [True, False]
    assert [list(each.inputs) for each in job.steps] == [[], []]
