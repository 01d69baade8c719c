"""The chaos run in small, and the audit in front of a ledger that somebody has tampered with."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import pytest
from audit import KINDS
from fluoro.v1 import job_pb2
from fluoro_jobs.testing.rig import Rig
from harness.faults import MANNERS
from harness.plan import STORE_FAULTS
from psycopg import Connection
from psycopg.rows import TupleRow

FOLDER: Final = Path(__file__).parent


def run(program: str, *arguments: object, seconds: float = 60) -> tuple[int, list[dict[str, Any]]]:
    """Exit status and lines of JSON."""
    command = [sys.executable, str(FOLDER / program), *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, timeout=seconds)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.timeout(300)
def test_three_rounds_with_every_manner_in_which_a_store_fails_break_no_promise() -> None:
    status, lines = run("run.py", "--rounds", 3, "--seed", 3495, seconds=280)
    last = lines[-1]
    assert [line for line in lines if line["name"] == "finding"] == []
    assert status == 0
    assert {kind: last[kind] for kind in KINDS} == dict.fromkeys(KINDS, 0)
    assert (last["name"], last["rounds"]) == ("chaos", 3)
    assert last["accepted"] > 150
    assert last["kills"] > 0
    assert last["stock_celery_kills"] == 3
    manners = {name.rpartition("_")[0] for name in last["faults"]}
    assert manners >= {"stopped", "half_open", "slow", "reset", "read_only", "full"}
    assert set(last["stalls"]) == set(last["faults"])
    assert max(last["stalls"].values()) <= 30


def test_ten_rounds_meet_every_manner_in_which_each_store_can_fail() -> None:
    for first in (0, 20):
        _, plan = run("run.py", "--plan", "--rounds", 10, "--first", first, "--seed", 11)
        met = {(fault["target"], fault["kind"]) for each in plan for fault in each["faults"]}
        assert met >= {(str(store), str(kind)) for store, kind in STORE_FAULTS}
    assert set(MANNERS) == set(STORE_FAULTS)


def test_a_seed_gives_the_same_plan_always_and_another_seed_another() -> None:
    _, plan = run("run.py", "--plan", "--rounds", 5, "--seed", 7)
    assert run("run.py", "--plan", "--rounds", 5, "--seed", 7) == (0, plan)
    assert run("run.py", "--plan", "--rounds", 1, "--first", 3, "--seed", 7) == (0, plan[3:4]), (
        "a round can be played alone"
    )
    assert run("run.py", "--plan", "--rounds", 5, "--seed", 8) != (0, plan)


@dataclass
class Scene:
    """A finished job to do harm to. record: what its client was told, as the audit reads it."""

    rig: Rig
    db: Connection[TupleRow]
    job: job_pb2.Job
    record: dict[str, Any]

    @property
    def id(self) -> UUID:
        return UUID(self.job.name.removeprefix("jobs/"))

    def sql(self, statement: str) -> None:
        assert self.db.execute(statement.encode(), {"job": self.id}).rowcount

    @property
    def seen(self) -> list[tuple[int, str]]:
        seen: list[tuple[int, str]] = self.record["watches"][0]["seen"]
        return seen

    @property
    def seen_by_all(self) -> list[tuple[int, str]]:
        """By the one who watches all jobs."""
        seen: list[tuple[int, str]] = self.record["watches"][1]["seen"]
        return seen

    @property
    def bytes_of_artifact(self) -> str:
        return self.job.steps[0].artifacts[0].blob

    def attempt(self, number: int, outcome: str, start: str = "now()") -> None:
        """One more attempt, later than the one there was unless said otherwise."""
        columns = "task_id, number, worker, start_time, end_time, outcome"
        self.sql(
            f"INSERT INTO attempts ({columns})"
            f" SELECT id, {number}, 'w', {start}, now(), '{outcome}' FROM tasks"
            " WHERE job_id = %(job)s"
        )

    def give_up_for_an_outage(self) -> None:
        self.attempt(2, "FAILED")
        self.sql(
            "UPDATE attempts SET reason = 'BLOB_STORE_FULL'"
            " WHERE number = 2 AND task_id = (SELECT id FROM tasks WHERE job_id = %(job)s)"
        )

    def try_too_often(self) -> None:
        for number in (2, 3, 4):
            self.attempt(number, "LOST")

    def fail(self) -> None:
        self.sql("UPDATE jobs SET state = 'FAILED' WHERE id = %(job)s")
        self.sql("UPDATE events SET state = 'FAILED' WHERE job_id = %(job)s AND sequence = 7")
        self.seen[-1] = self.seen_by_all[-1] = (7, "FAILED")

    def forget_event(self) -> None:
        self.sql("DELETE FROM events WHERE job_id = %(job)s AND sequence = 3")
        del self.seen[1], self.seen_by_all[2]

    def touch_late(self) -> None:
        path = self.rig.folder / "late"
        path.touch()
        self.record["late"] = str(path)


COPY_OF_THE_LAST_EVENT: Final = """
SELECT (jsonb_populate_record(e, '{"sequence": 8}')).* FROM events e
  WHERE e.job_id = %(job)s AND e.sequence = 7
"""
HARM: Final[dict[str, tuple[set[str], Callable[[Scene], object]]]] = {
    "none": (set(), lambda _: None),
    "its row is gone": ({"lost"}, lambda on: on.sql("DELETE FROM jobs WHERE id = %(job)s")),
    "its artifact's bytes are gone": (
        {"lost"},
        lambda on: on.rig.blobs.delete(on.bytes_of_artifact),
    ),
    "its artifact's bytes are others": (
        {"lost"},
        lambda on: on.rig.blobs.put(on.bytes_of_artifact, b"others"),
    ),
    "its artifact's row is gone": (
        {"lost"},
        lambda on: on.sql("DELETE FROM artifacts WHERE job_id = %(job)s"),
    ),
    "it failed with attempts left": ({"lost"}, Scene.fail),
    "it was refused": ({"lost"}, lambda on: on.record.update(refused="Not accepted: INTERNAL")),
    "it runs on": (
        {"stuck"},
        lambda on: on.sql("UPDATE jobs SET state = 'RUNNING' WHERE id = %(job)s"),
    ),
    "its task runs on": (
        {"stuck"},
        lambda on: on.sql("UPDATE tasks SET state = 'OPEN' WHERE job_id = %(job)s"),
    ),
    "its attempt never ended": (
        {"stuck"},
        lambda on: on.sql(
            "UPDATE attempts SET outcome = NULL WHERE task_id = (SELECT id FROM tasks"
            " WHERE job_id = %(job)s)"
        ),
    ),
    "it was committed twice": ({"duplicated"}, lambda on: on.attempt(2, "SUCCEEDED")),
    "it ended twice": (
        {"duplicated", "gaps"},
        lambda on: on.sql(f"INSERT INTO events {COPY_OF_THE_LAST_EVENT}"),
    ),
    "an event is missing": ({"gaps"}, Scene.forget_event),
    "a watcher missed an event": ({"gaps"}, lambda on: on.seen.pop(2)),
    "the watcher of all jobs missed an event": ({"gaps"}, lambda on: on.seen_by_all.pop(2)),
    "a watcher saw an event twice": ({"gaps"}, lambda on: on.seen.insert(2, on.seen[2])),
    "a watcher saw another state": ({"gaps"}, lambda on: on.seen.__setitem__(0, (2, "FAILED"))),
    "a watcher broke off": ({"gaps"}, lambda on: on.record["watches"][0].update(error="INTERNAL")),
    "it had been cancelled": ({"late"}, lambda on: on.record.update(cancelled_as="CANCELLED")),
    "something computed on": ({"late"}, Scene.touch_late),
    "a cancelled step has an artifact": (
        {"late"},
        lambda on: on.sql("UPDATE steps SET state = 'CANCELLED' WHERE job_id = %(job)s"),
    ),
    "an outage of a store cost it an attempt": ({"spent"}, Scene.give_up_for_an_outage),
    "an outage of a store failed its step": (
        {"spent", "late"},
        lambda on: on.sql(
            "UPDATE steps SET state = 'FAILED', reason = 'LEDGER_BUSY' WHERE job_id = %(job)s"
        ),
    ),
    "it was tried too often": ({"overrun"}, Scene.try_too_often),
    "two attempts ran at once": (
        {"overrun"},
        lambda on: on.attempt(2, "LOST", "(SELECT start_time FROM jobs WHERE id = job_id)"),
    ),
}
"""What was done to a job, and the kinds of finding that has to give for it."""


@pytest.fixture
def rig(database_url: str, redis_url: str, blob_url: str, tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(database_url, redis_url, blob_url, tmp_path)
    yield rig
    rig.close()


def finished(rig: Rig, key: str) -> job_pb2.Job:
    job = rig.job_of({"do": "artifact", "name": "note.txt", "text": key})
    job.labels["key"] = key
    return rig.finished(rig.submit(job))


def told(rig: Rig, job: job_pb2.Job, key: str) -> dict[str, Any]:
    """What a client was told that saw everything."""
    changes = [
        getattr(event, str(event.WhichOneof("change")))
        for event in rig.events(UUID(job.name.removeprefix("jobs/")))
    ]
    names = [
        change.DESCRIPTOR.fields_by_name["state"].enum_type.values_by_number[change.state].name
        for change in changes
    ]
    seen = [(sequence, name.removeprefix("STATE_")) for sequence, name in enumerate(names, 1)]
    watches = [{"start": 1, "seen": seen[1:]}, {"start": 0, "seen": seen, "whole": True}]
    return {
        "key": key,
        "shape": "quick",
        "end": "SUCCEEDED",
        "artifacts": 1,
        "name": job.name,
        "watches": watches,
    }


def audit(rig: Rig, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    path = rig.folder / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    status, findings = run(
        "audit.py", "--database-url", rig.database_url, "--blob-url", rig.blob_url, path
    )
    assert status == bool(findings)
    return findings


def test_the_audit_names_what_was_done_to_each_job_and_nothing_else(rig: Rig) -> None:
    rig.worker(pool="threads")
    jobs = {key: finished(rig, key) for key in HARM}
    records = {key: told(rig, job, key) for key, job in jobs.items()}
    assert audit(rig, list(records.values())) == []
    with rig.connection() as db:
        for key, (_, do_harm) in HARM.items():
            do_harm(Scene(rig, db, jobs[key], records[key]))
    findings = audit(rig, list(records.values()))
    found = {
        key: {finding["kind"] for finding in findings if finding["job"] == jobs[key].name}
        for key in HARM
    }
    assert found == {key: kinds for key, (kinds, _) in HARM.items()}, findings


def test_the_audit_names_a_job_that_was_accepted_twice(rig: Rig) -> None:
    rig.worker(pool="threads")
    one, other = finished(rig, "same"), finished(rig, "same")
    (finding,) = audit(rig, [told(rig, one, "same")])
    assert (finding["kind"], finding["job"]) == ("duplicated", min(one.name, other.name))
