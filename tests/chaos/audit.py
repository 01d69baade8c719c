"""Compares ledger and blob store with what clients were told, by the invariants of the docs.

    python tests/chaos/audit.py --database-url URL --blob-url URL RECORDS

RECORDS: a file as `harness.record` writes it. Prints one JSON line per finding and exits with 1 if
there is one. It is meant for a ledger at rest: a job that still runs is a finding.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

import psycopg
from fluoro_blobs import BlobNotFoundError, BlobStore
from fluoro_jobs.errors import STORE_OUTAGES
from harness import record
from harness.record import JobRecord, WatchRecord
from psycopg import Connection
from psycopg.rows import TupleRow

KINDS: Final = (
    "lost",
    "duplicated",
    "gaps",
    "stuck",
    "late",
    "overrun",
    "spent",
    "stalled",
    "exited",
    "unhealthy",
)
"""What broke, as seen in the ledger or by `run.py`.

lost: accepted, and gone or not done. duplicated: made visible twice. gaps: events missing, doubled
or out of order. stuck: not over at rest. late: effects after a cancel, or of a fenced attempt.
overrun: more attempts than allowed, or two at once. spent: an outage of a store cost an attempt
that counts. Only `run.py` sees the rest. stalled: what could go on waited too long after the last
fault. exited: a process ended by itself. unhealthy: a process called itself dead.
"""

ENDS: Final = ("SUCCEEDED", "PARTIALLY_SUCCEEDED", "FAILED", "CANCELLED")


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken promise. job: its resource name, or its key if it has none. detail: a sentence."""

    kind: str
    job: str
    detail: str


@dataclass(frozen=True, slots=True)
class Rule:
    """A query of the ledger that must find nothing.

    Its rows are a job's id and what the detail's blanks are filled with.
    """

    kind: str
    detail: str
    query: str


RULES: Final = (
    Rule(
        "stuck",
        "The job is {0}.",
        "SELECT id, state FROM jobs WHERE id = ANY(%(jobs)s) AND NOT state = ANY(%(ends)s)",
    ),
    Rule(
        "stuck",
        "The job is over and a task of step {0} is {1}.",
        """SELECT j.id, t.step, t.state FROM jobs j JOIN tasks t ON t.job_id = j.id
        WHERE j.id = ANY(%(jobs)s) AND j.state = ANY(%(ends)s) AND NOT t.state = ANY(%(ends)s)""",
    ),
    Rule(
        "stuck",
        "Attempt {1} of step {0} never ended, its task did.",
        """SELECT t.job_id, t.step, a.number FROM tasks t JOIN attempts a ON a.task_id = t.id
        WHERE t.job_id = ANY(%(jobs)s) AND t.state = ANY(%(ends)s) AND a.outcome IS NULL""",
    ),
    Rule(
        "duplicated",
        "Step {0} was committed by {1} attempts.",
        """SELECT t.job_id, t.step, count(*) FROM tasks t JOIN attempts a ON a.task_id = t.id
        WHERE t.job_id = ANY(%(jobs)s) AND a.outcome = 'SUCCEEDED' GROUP BY t.job_id, t.step, t.id
          HAVING count(*) > 1""",
    ),
    Rule(
        "duplicated",
        "{1} events say that step {0} succeeded.",
        """SELECT job_id, step, count(*) FROM events
          WHERE job_id = ANY(%(jobs)s) AND state = 'SUCCEEDED' AND step IS NOT NULL
        GROUP BY job_id, step, shard HAVING count(*) > 1""",
    ),
    Rule(
        "duplicated",
        "{0} events end the job, {1} begin it.",
        """SELECT job_id, count(*) FILTER (WHERE state = ANY(%(ends)s)),
          count(*) FILTER (WHERE state = 'PENDING') FROM events
        WHERE job_id = ANY(%(jobs)s) AND step IS NULL
        GROUP BY job_id HAVING count(*) FILTER (WHERE state = ANY(%(ends)s))
          > count(*) FILTER (WHERE state = 'PENDING')""",
    ),
    Rule(
        "duplicated",
        "It was accepted {1} times with the key {0}.",
        """SELECT min(id::text)::uuid, labels->>'key', count(*) FROM jobs
        WHERE labels->>'key' IN (SELECT labels->>'key' FROM jobs WHERE id = ANY(%(jobs)s))
          GROUP BY labels->>'key' HAVING count(*) > 1""",
    ),
    Rule(
        "gaps",
        "It has {0} events, numbered {1} to {2}, and should have 1 to {3}.",
        """SELECT j.id, count(e.sequence), min(e.sequence), max(e.sequence), j.last_sequence
        FROM jobs j LEFT JOIN events e ON e.job_id = j.id
        WHERE j.id = ANY(%(jobs)s) GROUP BY j.id
        HAVING (count(e.sequence), min(e.sequence),
          max(e.sequence)) IS DISTINCT FROM (j.last_sequence, 1::bigint, j.last_sequence)""",
    ),
    Rule(
        "gaps",
        "Its last event says {0}, the job is {1}.",
        """SELECT j.id, e.state, j.state FROM jobs j
          JOIN events e ON e.job_id = j.id AND e.sequence = j.last_sequence
        WHERE j.id = ANY(%(jobs)s) AND j.state = ANY(%(ends)s)
          AND (e.step IS NOT NULL OR e.state <> j.state)""",
    ),
    Rule(
        "late",
        "Step {0} is {1} and has the artifact {2}.",
        """SELECT s.job_id, s.name, s.state, a.name FROM steps s
          JOIN artifacts a ON a.job_id = s.job_id AND a.step = s.ordinal
        WHERE s.job_id = ANY(%(jobs)s) AND s.state NOT IN ('SUCCEEDED', 'PARTIALLY_SUCCEEDED')""",
    ),
    Rule(
        "late",
        "Attempt {1} of step {0} was {2}, another outcome than that of its task, {3}.",
        """SELECT t.job_id, t.step, a.number, a.outcome, t.state FROM tasks t
          JOIN attempts a ON a.task_id = t.id AND a.number = t.attempt
        WHERE t.job_id = ANY(%(jobs)s) AND t.state = ANY(%(ends)s)
          AND (a.outcome = 'SUCCEEDED') <> (t.state = 'SUCCEEDED')""",
    ),
    Rule(
        "overrun",
        (
            "Step {0} had {1} attempts that count, of {2} allowed each of the {3} times that the "
            "job began."
        ),
        """SELECT t.job_id, s.name, count(*), s.max_attempts, b.times FROM tasks t
          JOIN attempts a ON a.task_id = t.id
        JOIN steps s ON s.job_id = t.job_id AND s.ordinal = t.step
        CROSS JOIN LATERAL (SELECT count(*) AS times FROM events
          WHERE job_id = t.job_id AND step IS NULL AND state = 'PENDING') b
        WHERE t.job_id = ANY(%(jobs)s) AND a.outcome IS DISTINCT FROM 'RELEASED'
        GROUP BY t.job_id, t.id, s.name, s.max_attempts, b.times
          HAVING count(*) > s.max_attempts * b.times""",
    ),
    Rule(
        "overrun",
        "Attempt {1} of step {0} began before attempt {2} had ended.",
        """SELECT t.job_id, t.step, b.number, a.number FROM tasks t
          JOIN attempts a ON a.task_id = t.id
        JOIN attempts b ON b.task_id = t.id AND b.number > a.number
        WHERE t.job_id = ANY(%(jobs)s) AND b.start_time < coalesce(a.end_time, 'infinity')""",
    ),
    Rule(
        "spent",
        "Attempt {1} of step {0} failed with {2}, and counts.",
        """SELECT t.job_id, t.step, a.number, a.reason FROM tasks t
          JOIN attempts a ON a.task_id = t.id
        WHERE t.job_id = ANY(%(jobs)s) AND a.outcome = 'FAILED' AND a.reason = ANY(%(outages)s)""",
    ),
    Rule(
        "spent",
        "Step {0} failed with {1}.",
        (
            "SELECT job_id, name, reason FROM steps"
            " WHERE job_id = ANY(%(jobs)s) AND state = 'FAILED' AND reason = ANY(%(outages)s)"
        ),
    ),
)


def audit(database_url: str, blob_url: str, records: Sequence[JobRecord]) -> list[Finding]:
    """Every broken promise to the jobs of these records, and to jobs that carry their keys."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        jobs = _jobs(connection, records)
        parameters = {"jobs": list(jobs), "ends": list(ENDS), "outages": list(STORE_OUTAGES)}
        findings = [
            Finding(rule.kind, f"jobs/{job}", rule.detail.format(*blanks))
            for rule in RULES
            for job, *blanks in connection.execute(rule.query.encode(), parameters)
        ]
        for each in records:
            findings += _accepted(each, jobs)
        findings += _ends(connection, records)
        findings += _watches(connection, records)
        findings += _bytes(connection, BlobStore.from_url(blob_url), list(jobs))
    return findings


def _jobs(connection: Connection[TupleRow], records: Sequence[JobRecord]) -> dict[UUID, str]:
    """Jobs in the ledger by these keys, and their states; also those whose accept hung."""
    keys = [each.key for each in records]
    return dict(
        connection.execute(
            "SELECT id, state FROM jobs WHERE labels->>'key' = ANY(%s)", (keys,)
        ).fetchall()
    )


def _accepted(each: JobRecord, jobs: Mapping[UUID, str]) -> Iterator[Finding]:
    if each.refused:
        yield Finding("lost", each.name or each.key, each.refused)
    if not each.name:
        return
    state = jobs.get(UUID(each.name.removeprefix("jobs/")))
    if state is None:
        yield Finding("lost", each.name, "It was accepted and is not in the ledger.")
    elif each.cancelled_as in ENDS and state != each.cancelled_as:
        yield Finding(
            "late",
            each.name,
            f"A cancel was answered with {each.cancelled_as}, the job is {state}.",
        )
    if each.late and Path(each.late).exists():
        yield Finding("late", each.name, "An attempt computed on after its cancel.")


_USED_UP: Final = """
SELECT EXISTS (SELECT FROM steps s JOIN tasks t ON t.job_id = s.job_id AND t.step = s.ordinal
  WHERE s.job_id = j.id AND s.state = 'FAILED'
  AND s.reason = 'WORKER_LOST' AND s.max_attempts <= (
    SELECT count(*) FROM attempts a WHERE a.task_id = t.id AND a.outcome IN ('LOST', 'FAILED')))
"""
_ENDS: Final = f"""
SELECT j.id, j.state, (SELECT string_agg(s.name || ' ' || s.state || ' ' || s.reason, ', ')
  FROM steps s WHERE s.job_id = j.id),
  (SELECT count(*) FROM artifacts a WHERE a.job_id = j.id), ({_USED_UP})
FROM jobs j WHERE j.id = ANY(%s) AND j.state = ANY(%s)
"""


def _ends(connection: Connection[TupleRow], records: Sequence[JobRecord]) -> Iterator[Finding]:
    """Jobs that ended as they may not.

    Every attempt meeting the end of its worker may happen to any (I7).
    """
    known = {UUID(each.name.removeprefix("jobs/")): each for each in records if each.name}
    for job, state, steps, artifacts, used_up in connection.execute(
        _ENDS.encode(), (list(known), list(ENDS))
    ):
        each = known[job]
        if state != each.end and not (state == "FAILED" and used_up):
            yield Finding("lost", each.name, f"A {each.shape} job ended {state}: {steps}.")
        elif state == "SUCCEEDED" and artifacts != each.artifacts:
            yield Finding(
                "lost", each.name, f"It succeeded with {artifacts} artifacts of {each.artifacts}."
            )


def _watches(connection: Connection[TupleRow], records: Sequence[JobRecord]) -> Iterator[Finding]:
    watched = {UUID(each.name.removeprefix("jobs/")): each for each in records if each.watches}
    told: dict[UUID, list[Told]] = {job: [] for job in watched}
    query = (
        "SELECT job_id, sequence, state, step IS NULL AND state = ANY(%s)"
        " FROM events WHERE job_id = ANY(%s) ORDER BY job_id, sequence"
    )
    for job, *event in connection.execute(query, (list(ENDS), list(watched))):
        told[job].append(Told(*event))
    for job, each in watched.items():
        for watch in each.watches:
            if trouble := _trouble(watch, told[job]):
                yield Finding("gaps", each.name, f"A watcher {trouble}")


@dataclass(frozen=True, slots=True)
class Told:
    """An event of the ledger. ends: whether the job does with it, and a stream of it."""

    sequence: int
    state: str
    ends: bool


def _trouble(watch: WatchRecord, told: Sequence[Told]) -> str:
    """What a watcher did not see as it is in the ledger; "" if nothing.

    Its stream ends where the job first did, retried or not.
    """
    ends = (
        event.sequence
        for event in told
        if event.sequence >= watch.start and (event.ends or watch.whole)
    )
    end = max(ends, default=0) if watch.whole else next(ends, 0)
    expected = [
        (event.sequence, event.state) for event in told if watch.start < event.sequence <= end
    ]
    if watch.error:
        return (
            f"broke off after event {watch.seen[-1][0] if watch.seen else watch.start}: "
            f"{watch.error}"
        )
    if watch.start < 0:
        return "never got its snapshot."
    if watch.seen != expected:
        seen, should = ([sequence for sequence, _ in events] for events in (watch.seen, expected))
        return (
            f"saw the events {seen} after {watch.start}, not {should}."
            if seen != should
            else "saw other states than the ledger's."
        )
    return ""


_BLOBS: Final = """
SELECT a.job_id, a.name, b.id, b.size_bytes, b.sha256 FROM artifacts a
  JOIN blobs b ON b.id = a.blob_id WHERE a.job_id = ANY(%(jobs)s)
UNION ALL SELECT j.id, 'an input', b.id, b.size_bytes, b.sha256 FROM jobs j
  JOIN job_inputs i ON i.job_id = j.id JOIN blobs b ON b.id = i.blob_id
WHERE j.id = ANY(%(jobs)s)
"""


def _bytes(
    connection: Connection[TupleRow], store: BlobStore, jobs: Sequence[UUID]
) -> Iterator[Finding]:
    """Artifacts and inputs whose bytes are not in the store as recorded. Each blob is read once."""
    right: dict[UUID, bool] = {}
    for job, name, blob, size_bytes, sha256 in connection.execute(
        _BLOBS.encode(), {"jobs": list(jobs)}
    ):
        if blob not in right:
            right[blob] = _is_stored(store, f"blobs/{blob}", size_bytes, sha256)
        if not right[blob]:
            yield Finding(
                "lost",
                f"jobs/{job}",
                f"The bytes of {name}, blobs/{blob}, are not in the store as recorded.",
            )


def _is_stored(store: BlobStore, name: str, size_bytes: int, sha256: bytes) -> bool:
    try:
        data = store.read(name)
    except BlobNotFoundError:
        return False
    return len(data) == size_bytes and hashlib.sha256(data).digest() == sha256


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--database-url", required=True)
    parser.add_argument("--blob-url", required=True)
    parser.add_argument("records", type=Path)
    arguments = parser.parse_args()
    findings = audit(arguments.database_url, arguments.blob_url, record.read(arguments.records))
    for finding in findings:
        print(json.dumps(asdict(finding)))
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
