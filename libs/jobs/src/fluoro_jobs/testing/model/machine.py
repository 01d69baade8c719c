"""Does the same to the ledger and to its model, and compares."""

import hashlib
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any, Final, cast
from uuid import UUID

from fluoro.v1 import blob_service_pb2, job_pb2, job_service_pb2
from google.protobuf.duration_pb2 import Duration
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fluoro_jobs import dispatch
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger import accept, attempts, blobs, control, heartbeats, read, store, sweeps
from fluoro_jobs.ledger.accept import Answer
from fluoro_jobs.ledger.attempts import Claim, Worker
from fluoro_jobs.ledger.connection import LedgerConnection
from fluoro_jobs.ledger.sources import Source
from fluoro_jobs.ledger.sweeps import Backoff
from fluoro_jobs.testing.model.job import ENDS, Job, Key, Model, Step, Try
from fluoro_jobs.testing.model.moves import ENDINGS, MOVES, Move, Overtaken, Submission, submissions
from fluoro_jobs.testing.model.picture import Picture, compare, look, shown, told

SLOTS: Final = 2
"""Of each worker."""


class LedgerMachine(RuleBasedStateMachine):
    """What it holds beside the model: the ledger's ids of its things, and messages under way."""

    def __init__(self, db: LedgerConnection) -> None:
        """db: of a database of the test's own, in autocommit. It is emptied."""
        super().__init__()
        for table in ("jobs", "open_tasks", "attempts", "events", "workers", "blobs"):
            db.execute(f"DELETE FROM {table}")  # noqa: S608 - names of our own
        self.plain = self.db = db
        self.model = Model()
        self.job_ids: list[UUID] = []
        self.task_ids: dict[Key, UUID] = {}
        self.keys: dict[UUID, Key] = {}
        self.messages: list[Try] = []
        self.claims: dict[Try, Claim] = {}
        self.claimed_by: dict[Try, int] = {}
        self.requests: dict[Submission, int] = {}
        self.ended: dict[int, Picture] = {}
        self.workers = [Worker(new_id(), f"host:{i}", "dicom", SLOTS, "0") for i in range(2)]
        self.alive = {0}
        heartbeats.beat(db, self.workers[0], [])
        self.inputs = {
            owner: [self._blob(owner, content) for content in (b"1", b"2")]
            for owner in ("ann", "bob")
        }

    def _blob(self, owner: str, content: bytes) -> str:
        record = blob_service_pb2.Blob(
            name=f"blobs/{new_id()}", size_bytes=1, sha256=hashlib.sha256(content).digest()
        )
        return blobs.add(self.db, owner, record).name

    # --- what rules choose from ---

    @property
    def live(self) -> list[Try]:
        """The attempts that run."""
        return [attempt for attempt in self.claims if self.model.runs(attempt)]

    @property
    def late(self) -> list[Try]:
        """The attempts that have ended, or were fenced off: workers that do not know it yet."""
        return [attempt for attempt in self.claims if not self.model.runs(attempt)]

    @property
    def fenced(self) -> list[Try]:
        """The attempts whose task runs in a newer one."""
        return [attempt for attempt in self.late if self.model.state(attempt.task) == "RUNNING"]

    @property
    def stale(self) -> list[Try]:
        """Messages for an attempt that was made already, of tasks that wait for a later one."""
        return [
            one
            for one in self.messages
            if one.task in self.model.having("QUEUED")
            and self.model[one.task].attempt >= one.number
        ]

    @property
    def tried(self) -> list[Try]:
        """All attempts."""
        return list(self.claims)

    @property
    def named_requests(self) -> list[Submission]:
        """What was accepted with a request_id."""
        return [request for request in self.requests if request.request_id]

    @property
    def resting(self) -> list[Key]:
        """The tasks that wait for their back-off."""
        return [key for key in self.model.having("READY") if not self.model[key].due]

    @property
    def jobs(self) -> range:
        """The numbers of the jobs."""
        return range(len(self.job_ids))

    @property
    def rivals(self) -> list[tuple[Move, Move]]:
        """Pairs of what may happen at once to the same job."""
        return [pair for job in self.jobs for pair in product(self._swift(job), self._swift(job))]

    def _swift(self, job: int) -> list[Move]:
        messages = [
            Move("deliver", (message, 0)) for message in self.messages if message.task.job == job
        ]
        ends = [
            Move("end", (attempt, how))
            for attempt in self.live
            if attempt.task.job == job
            for how in ("commit SF", "lose", "release")
        ]
        return [*messages, *ends, Move("cancel_job", (job,)), Move("retry_job", (job,))]

    def possible(self) -> st.SearchStrategy[Move]:
        """One of `MOVES` that has what it needs."""
        weighted = [
            move
            for move in MOVES
            if all(getattr(self, one) for one in move[2:] if isinstance(one, str))
            for _ in range(move[0])
        ]
        return st.sampled_from(weighted).flatmap(self._with_arguments)

    def _with_arguments(self, move: tuple[Any, ...]) -> st.SearchStrategy[Move]:
        _, name, *choices = move
        arguments = [
            st.sampled_from(getattr(self, one)) if isinstance(one, str) else one for one in choices
        ]
        return st.tuples(*arguments).map(lambda chosen: Move(name, chosen))

    @rule(move=st.runner().flatmap(lambda machine: machine.possible()))
    def happens(self, move: Move) -> None:
        """Anything."""
        self._do(move)

    def _do(self, move: Move) -> None:
        getattr(self, move.name)(*move.arguments)

    # --- clients ---

    @initialize(batch=st.lists(submissions(), min_size=1, max_size=3))
    def submit_first(self, batch: list[Submission]) -> None:
        """There is something to do."""
        self.submit(batch)
        self.take()

    def submit(self, batch: list[Submission]) -> None:
        """In one transaction."""
        answers = accept.accept(self.db, [self._submission(one) for one in batch])
        for one, answer in zip(batch, answers, strict=True):
            self._accepted(one, answer)

    def submit_again(self, request: Submission) -> None:
        """The client did not hear the answer, twice."""
        self.submit([request, request])

    def submit_another_body(self, request: Submission, other: Submission) -> None:
        """A client uses a request_id twice."""
        self.submit([request._replace(steps=other.steps)])

    def _submission(self, one: Submission) -> accept.Submission:
        checked = accept.validate(self._request(one), one.owner)
        steps = [
            replace(step, sources=[Source(other, "result") for other in step.after])
            if takes_up and step.after
            else step
            for step, (*_, takes_up) in zip(checked.steps, one.steps, strict=True)
        ]
        digest = checked.sha256 + repr(one.steps).encode()  # a request says nothing of it yet
        return replace(checked, steps=steps, sha256=digest)

    def _request(self, one: Submission) -> job_service_pb2.SubmitJobRequest:
        request = job_service_pb2.SubmitJobRequest(request_id=one.request_id)
        request.job.inputs.extend(self.inputs[one.owner])
        for i, (after, max_attempts, fans_out, requires_all, _) in enumerate(one.steps):
            step = request.job.steps.add(name=f"s{i}", after=[f"s{other}" for other in after])
            step.inspect_dicom.SetInParent()
            step.retry_policy.max_attempts = max_attempts
            step.max_inputs_per_task = int(fans_out)
            if requires_all:
                step.item_failure_policy = job_pb2.Step.ITEM_FAILURE_POLICY_FAIL_STEP
            step.retry_policy.initial_backoff.CopyFrom(Duration(seconds=600))
        return request

    def _accepted(self, one: Submission, answer: Answer) -> None:
        earlier = [known for known in self.named_requests if known[:2] == one[:2]]
        if earlier and earlier[0] != one:
            assert isinstance(answer, FluoroError)
            assert answer.reason is Reason.REQUEST_ID_REUSED
            return
        assert isinstance(answer, job_pb2.Job)
        job_id = UUID(answer.name.removeprefix("jobs/"))
        if earlier:
            number = self.requests[one]
            assert (job_id, job_pb2.Job.State.Name(answer.state)) == (
                self.job_ids[number],
                f"STATE_{self.model.jobs[number].state}",
            )
            return
        self.requests[one] = number = len(self.job_ids)
        self.job_ids.append(job_id)
        self.model.jobs.append(Job(one.owner, [Step(*step) for step in one.steps]))

    def _meet_tasks(self) -> None:
        """Tasks come to be when their step is unblocked."""
        numbers = {job_id: number for number, job_id in enumerate(self.job_ids)}
        for task_id, job_id, step, shard in self.plain.execute(
            "SELECT id, job_id, step, shard FROM tasks"
        ):
            key = Key(numbers[job_id], step, shard)
            self.keys[task_id], self.task_ids[key] = key, task_id
        # Those of one transaction are equals to dispatch; an order makes every run of a sequence of
        # rules the same.
        self.plain.execute(
            "UPDATE open_tasks o SET order_time = to_timestamp(u.n),"
            " dispatch_order = CASE WHEN o.state = 'READY' THEN to_timestamp(u.n) END "
            "FROM unnest(%s::uuid[], %s::int[]) u(id, n)"
            " WHERE o.task_id = u.id AND o.order_time <> to_timestamp(u.n)",
            (
                list(self.keys),
                [10_000 * key.job + 100 * key.step + key.shard for key in self.keys.values()],
            ),
        )

    def cancel_job(self, number: int) -> None:
        """Another owner cannot; its owner can, again and again."""
        job, job_id = self.model.jobs[number], self.job_ids[number]
        assert _refusal(lambda: control.cancel(self.plain, "eve", job_id)) is Reason.JOB_NOT_FOUND
        # What reads the job afterwards is left out: what overtook it there would come after it.
        control.cancel(self.db, job.owner, job_id)
        job.stop("CANCELLED")
        answer = control.cancel_job(self.plain, job.owner, job_id).job
        assert job_pb2.Job.State.Name(answer.state) == f"STATE_{job.state}"

    def retry_job(self, number: int) -> None:
        """Opens what ended otherwise than well."""
        job = self.model.jobs[number]
        refusal = _refusal(lambda: control.retry(self.db, job.owner, self.job_ids[number]))
        if job.state not in ENDS:
            assert refusal is Reason.JOB_NOT_ENDED
        elif job.state == "SUCCEEDED":
            assert refusal is Reason.NOTHING_TO_RETRY
        else:
            assert refusal is None
            self.ended.pop(number, None)
            job.retry()

    # --- dispatch, and what Redis does to messages ---

    def take(self) -> None:
        """As many go to the queue as its window has places for."""
        self._meet_tasks()
        self.db.execute(
            "UPDATE workers SET expire_time = now() + interval '1 min'"
        )  # however slow this machine is
        messages = [Try(self.keys[task], number) for task, _, _, number in dispatch.take(self.db)]
        taken = sorted(message.task for message in messages)
        due = {key for key in self.model.having("READY") if self.model[key].due}
        free = sum(max(0, SLOTS - len(self._held_by(worker))) for worker in self.alive)
        places = free - len(self.model.having("QUEUED"))
        assert set(taken) <= due
        assert len(taken) == max(0, min(places, len(due)))
        for key in taken:
            self.model[key].stage = "QUEUED"
        self.messages += sorted(messages)

    def redis(self, message: Try, fate: str) -> None:
        """What Redis may do to messages."""
        if fate == "duplicated":
            self.messages.append(message)
        elif fate == "lost":
            self.messages.remove(message)
        else:
            self.messages.clear()

    def reconcile(self) -> None:
        """What is queued and has no message gets a new one."""
        self.db.execute(
            "UPDATE open_tasks SET queued_time = now() - interval '1 min' WHERE state = 'QUEUED'"
        )
        query = dispatch._QUEUED  # noqa: SLF001 - reconcile() itself needs a Redis
        queued = {
            Try(self.keys[task], number)
            for task, _, _, number in self.db.execute(query, (["dicom"],)).fetchall()
        }
        assert queued == {
            Try(key, self.model[key].attempt + 1) for key in self.model.having("QUEUED")
        }
        self.messages += sorted(queued.difference(self.messages))

    # --- workers ---

    def deliver(self, message: Try, worker: int) -> None:
        """A worker gets the message."""
        claim = attempts.claim(
            self.db, self.task_ids[message.task], self.workers[worker], message.number
        )
        assert (claim is not None) == self.model.claimable(message)
        self.delivered(message, worker, claim)

    def delivered(self, message: Try, worker: int, claim: Claim | None) -> None:
        """What came of it."""
        if message in self.messages:  # not if it was overtaken by itself
            self.messages.remove(message)
        if claim is not None:
            self.model.claim(message.task, worker)
            assert claim.attempt == self.model[message.task].attempt
            held = store.load(self.plain, claim.graph.id, claim.task_id)
            assert claim.graph == held, "a claim knows what the ledger holds"
            self.claims[message], self.claimed_by[message] = claim, worker

    def run(self, message: Try, worker: int, how: str) -> None:
        """All that a worker does, without anything in between."""
        self.deliver(message, worker)
        if self.model.runs(message):
            self.end(message, how)
        self.take()

    def end(self, attempt: Try, how: str) -> None:
        """By whoever believes to run it: ends it if it runs, does nothing otherwise."""
        told, act = ENDINGS[how]
        done = act(self.db, self.claims[attempt], self.job_ids[attempt.task.job])
        assert done == self.model.runs(attempt)
        if done:
            self.model.end(attempt.task, told)

    def beat(self, worker: int) -> None:
        """It believes to run whatever was ever claimed; of its own it is told."""
        asked = [(self.task_ids[attempt.task], attempt.number) for attempt in self.claims]
        held = {
            Try(self.keys[one.asked[0]], one.attempt): one
            for one in heartbeats.beat(self.db, self.workers[worker], asked)
        }
        assert set(held) == {attempt for attempt, by in self.claimed_by.items() if by == worker}
        for attempt, one in held.items():
            assert (one.outcome is None) == self.model.runs(attempt)
            self.model[attempt.task].expired &= not self.model.runs(attempt)
        self.alive.add(worker)

    def leave(self, worker: int) -> None:
        """The worker is gone, and knew it."""
        heartbeats.leave(self.db, self.workers[worker])
        self.alive.discard(worker)

    def release_all(self, worker: int) -> None:
        """A worker shuts down."""
        self._moved(
            heartbeats.release_all(self.db, self.workers[worker]), self._held_by(worker), "released"
        )

    def pool_child_dies(self, attempt: Try, worker: int) -> None:
        """Of this worker, if it runs the task."""
        moved = heartbeats.lose_of_worker(
            self.db, self.workers[worker], (self.task_ids[attempt.task], attempt.number)
        )
        self._moved(
            moved,
            [
                key
                for key in self._held_by(worker)
                if key == attempt.task and self.model.runs(attempt)
            ],
            "again",
        )

    def _held_by(self, worker: int) -> list[Key]:
        return [key for key in self.model.having("RUNNING") if self.model[key].worker == worker]

    def _moved(self, jobs: list[UUID], keys: list[Key], how: str) -> None:
        assert sorted(jobs) == sorted(self.job_ids[key.job] for key in keys)
        for key in keys:
            self.model.end(key, how)

    # --- time ---

    def expire_lease(self, attempt: Try) -> None:
        """Its worker was silent for too long."""
        self.db.execute(
            "UPDATE open_tasks SET lease_expire_time = now() - interval '1 s' WHERE task_id = %s",
            (self.task_ids[attempt.task],),
        )
        self.model[attempt.task].expired = True

    def sweep(self) -> None:
        """Attempts whose lease has expired are lost."""
        expired = [
            self.task_ids[key] for key in self.model.having("RUNNING") if self.model[key].expired
        ]
        live = (
            "UPDATE open_tasks SET lease_expire_time = now() + interval '1 min'"
            " WHERE state = 'RUNNING' AND task_id <> ALL(%s)"
        )
        self.db.execute(live, (expired,))  # however slow this machine is
        self._moved(
            list(sweeps.expired_leases(self.db, Backoff("test"))),
            [key for key in self.model.having("RUNNING") if self.model[key].expired],
            "again",
        )

    def expire_job(self, number: int) -> None:
        """Its time has run out."""
        job_id = self.job_ids[number]
        self.db.execute(
            "UPDATE jobs SET expire_time = now() - interval '1 s' WHERE id = %s", (job_id,)
        )
        assert list(sweeps.expired_jobs(self.db, Backoff("test"))) == (
            [] if self.model.jobs[number].state in ENDS else [job_id]
        )
        self.db.execute("UPDATE jobs SET expire_time = NULL WHERE id = %s", (job_id,))
        self.model.jobs[number].stop("FAILED")

    def end_back_off(self, key: Key) -> None:
        """Time passes."""
        self.db.execute(
            "UPDATE open_tasks SET due_time = now() WHERE task_id = %s", (self.task_ids[key],)
        )
        self.model[key].due = True

    # --- two things at once ---

    def overtake(self, rivals: tuple[Move, Move], when: int) -> None:
        """The quick one happens between two statements of the slow one, as if before it."""
        slow, quick = rivals

        def meanwhile() -> None:
            self.db = self.plain
            self._do(quick)

        self.db = cast(LedgerConnection, Overtaken(self.plain, when, meanwhile))
        try:
            self._do(slow)
        finally:
            self.db = self.plain

    # --- what always holds ---

    @invariant()
    def holds(self) -> None:
        """AssertionError unless the ledger is as the model says."""
        found = look(self.db)
        assert set(found) == set(self.job_ids), "what was accepted is there, and nothing else (I1)"
        for number, job in enumerate(self.model.jobs):
            picture = found[self.job_ids[number]]
            compare(picture, job)
            if job.state in ENDS:
                assert self.ended.setdefault(number, picture) == picture, (
                    "an end is written once (I3)"
                )

    # --- the end ---

    def teardown(self) -> None:
        """With workers that work, every job ends, and its events say how. Not after a failure."""
        if sys.exc_info()[0] is not None:
            return
        for _ in range(1000):
            if not any(map(self.model.having, ("READY", "QUEUED", "RUNNING"))):
                break
            self._go_on()
        for number, job in enumerate(self.model.jobs):
            done = read.get_job(self.db, job.owner, self.job_ids[number])
            assert job.state in ENDS
            assert job_pb2.Job.State.Name(done.state) == f"STATE_{job.state}"
            assert told(read.events_after(self.db, {self.job_ids[number]: 0})) == shown(done)

    def _go_on(self) -> None:
        self.beat(0)
        for key in self.resting:
            self.end_back_off(key)
        self.take()
        self.reconcile()
        for message in list(self.messages):
            self.deliver(message, 0)
        for key in self.model.having("RUNNING"):
            self.end(Try(key, self.model[key].attempt), "commit SS")
            self.holds()


def _refusal(call: Callable[[], object]) -> Reason | None:
    try:
        call()
    except FluoroError as error:
        return error.reason
    return None
