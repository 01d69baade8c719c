"""From the call of CancelJob to its answer, and until nothing computes any more.

Per kind of work, one after the other, on real workers:

- `prefork`: a pool child that computes and looks at nothing; until its process is gone.
- `threads`: a thread that waits and looks at its cancellation; until its scratch folder is gone.
- `ml-worker`: ONNX Runtime inside a model that never ends, on a certified CT slice; until its
  scratch folder is gone.
- `queued` and `back-off`: nothing computes; the answer is the end.

Peer: stock Celery's `revoke(terminate=True)` of the same computation in a prefork child; until its
process is gone. Revoke answers nothing. Last line: `ratio` = p50 of prefork, ours / Celery's;
smaller is better. `p99_ms` is the worst of all kinds; the aim is 2 s.
"""

import os
import runpy
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import grpc
import pydicom
from celery import Celery
from fluoro.v1.job_pb2 import Job, Task
from fluoro.v1.job_service_pb2 import CancelJobRequest
from fluoro.v1.job_service_pb2_grpc import JobServiceStub
from fluoro_jobs.testing.rig import OWNER, Rig
from recovery import celery, rig_and_servers
from rig.figures import latencies, quick, say
from rig.servers import Servers

ML_TESTS: Final = Path(__file__).parents[1] / "services/ml-worker/tests/conftest.py"
POLL_SECONDS: Final = 0.005
PATIENCE_SECONDS: Final = 60
AIM_MS: Final = 2000


@dataclass
class Measured:
    """Seconds from the call, one entry per cancel."""

    answered: list[float] = field(default_factory=list)
    stopped: list[float] = field(default_factory=list)

    def say(self, name: str) -> float:
        """Prints; p99 of the stop in milliseconds."""
        figures = latencies(self.stopped)
        say(
            name,
            **figures,
            answer_p50_ms=latencies(self.answered)["p50_ms"],
            aim_p99_ms=AIM_MS,
            cancels=len(self.stopped),
        )
        return figures["p99_ms"]


@dataclass(frozen=True)
class Bench:
    """One deployment, and what a kind needs of it."""

    run: Servers
    rig: Rig
    jobs: Any

    def cancel(self, job: UUID, stopped: Callable[[], bool], into: Measured) -> None:
        """Cancels, checks the answer, and waits until nothing computes."""
        started = time.perf_counter()
        answer = self.jobs.CancelJob(
            CancelJobRequest(name=f"jobs/{job}"), metadata=(("fluoro-owner", OWNER),)
        )
        into.answered.append(time.perf_counter() - started)
        if answer.job.state != Job.STATE_CANCELLED:
            raise SystemExit(f"the answer says {Job.State.Name(answer.job.state)}")
        wait(stopped, "the end of the computation")
        into.stopped.append(time.perf_counter() - started)


def wait(probe: Callable[[], object], what: str) -> None:
    """Until it is so, looking often."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not probe():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited in vain for {what}")
        time.sleep(POLL_SECONDS)


def main(cancels: int) -> None:
    """Every kind in turn, then Celery."""
    kinds = {
        "prefork": prefork,
        "threads": threads,
        "ml-worker": ml_worker,
        "queued": queued,
        "back-off": back_off,
    }
    measured = {name: Measured() for name in kinds}
    with (
        rig_and_servers() as (run, rig),
        run.service("gateway") as gateway,
        grpc.insecure_channel(f"127.0.0.1:{gateway.port}") as channel,
    ):
        bench = Bench(run, rig, JobServiceStub(channel))
        worst = 0.0
        for name, kind in kinds.items():
            kind(bench, cancels, measured[name])
            worst = max(worst, measured[name].say(name))
        theirs = revoked(run, cancels)
    say("celery revoke", **latencies(theirs), cancels=cancels)
    ratio = latencies(measured["prefork"].stopped)["p50_ms"] / latencies(theirs)["p50_ms"]
    say("cancel", ratio=ratio, p99_ms=worst, cpus=os.cpu_count(), load=os.getloadavg()[0])


def prefork(bench: Bench, cancels: int, into: Measured) -> None:
    """A pool child that never looks up. Its process id is that of the one child there is."""
    with bench.run.service("fluoro_jobs.testing.worker", "dicom", "prefork", slots=1) as worker:
        for number in range(cancels):
            started = bench.run.folder / f"spinning-{number}"
            job = bench.rig.submit(
                bench.rig.job_of({"do": "touch", "path": str(started)}, {"do": "spin"})
            )
            wait(started.exists, "the computation")
            (pid,) = pool_children(worker.child.pid)
            bench.cancel(job, lambda: gone(pid), into)  # noqa: B023 - called before the next round
        worker.child.kill()  # how it ends is not the question


def pool_children(pid: int) -> list[int]:
    """Spawned children of a worker that live."""
    children = [
        int(child)
        for thread in Path(f"/proc/{pid}/task").glob("*/children")
        for child in thread.read_text().split()
    ]
    return [
        child
        for child in children
        if not gone(child) and b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def threads(bench: Bench, cancels: int, into: Measured) -> None:
    """A thread that waits."""
    with (
        scratch(bench.run, "threads") as folder,
        bench.run.service(
            "fluoro_jobs.testing.worker", "dicom", "threads", slots=1, scratch_folder=folder
        ),
    ):
        for _ in range(cancels):
            job = bench.rig.submit(bench.rig.job_of({"do": "wait", "path": "/nowhere"}))
            wait(lambda: any(folder.glob("*/*")), "the wait")
            bench.cancel(job, lambda: not any(folder.iterdir()), into)


def ml_worker(bench: Bench, cancels: int, into: Measured) -> None:
    """The worker that ships, with a model of its tests that never ends."""
    models = bench.run.folder / "models"
    make_endless(models)
    ct_slice = Path(str(pydicom.data.get_testdata_file("CT_small.dcm"))).read_bytes()
    os.environ["FLUORO_ML_MODELS_FOLDER"] = str(models)
    with scratch(bench.run, "ml") as folder, ExitStack() as stack:
        stack.enter_context(bench.run.service("dicom_worker", slots=1))
        stack.enter_context(bench.run.service("ml_worker", slots=1, scratch_folder=folder))
        for _ in range(cancels):
            job = Job(inputs=[bench.rig.blob(ct_slice)])
            job.steps.add(name="render").render_dicom.SetInParent()
            job.steps.add(name="analyze", after=["render"]).analyze_images.model = "endless"
            job_id = bench.rig.submit(job)
            wait(lambda: any(folder.glob("*/label-map-*")), "the model")
            bench.cancel(job_id, lambda: not any(folder.iterdir()), into)


def queued(bench: Bench, cancels: int, into: Measured) -> None:
    """Jobs that nobody has room for."""
    for _ in range(cancels):
        bench.cancel(bench.rig.submit(bench.rig.job_of({"do": "spin"})), lambda: True, into)


def back_off(bench: Bench, cancels: int, into: Measured) -> None:
    """Jobs that wait for their second attempt."""
    with bench.run.service("fluoro_jobs.testing.worker", "dicom", "threads", slots=1):
        for _ in range(cancels):
            job = bench.rig.job_of({"do": "fail", "reason": "INTERNAL", "retryable": True})
            job.steps[0].retry_policy.initial_backoff.FromSeconds(3600)
            job.steps[0].retry_policy.max_backoff.FromSeconds(3600)
            job_id = bench.rig.submit(job)
            wait(lambda: failed_once(bench.rig, job_id), "the back-off")  # noqa: B023 - called before the next round
            bench.cancel(job_id, lambda: True, into)


def failed_once(rig: Rig, job: UUID) -> bool:
    """Whether the first attempt is over."""
    task = rig.job(job).steps[0].tasks[0]
    return len(task.attempts) == 1 and task.state == Task.STATE_READY


def revoked(run: Servers, cancels: int) -> list[float]:
    """The same as prefork with stock Celery."""
    app, seconds = Celery(broker=run.redis_url, set_as_current=False), []
    with celery(run, "prefork", 1) as worker:
        for number in range(cancels):
            started = run.folder / f"celery-spinning-{number}"
            task = app.send_task("spin", (str(started),))
            wait(lambda: started.exists() and started.read_text(), "the computation")  # noqa: B023 - called before the next round
            pid, begun = int(started.read_text()), time.perf_counter()
            app.control.revoke(task.id, terminate=True)
            wait(lambda: gone(pid), "the end of the computation")  # noqa: B023 - as above
            seconds.append(time.perf_counter() - begun)
        worker.child.kill()
    return seconds


def gone(pid: int) -> bool:
    """Whether a process has ended; a zombie computes no more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@contextmanager
def scratch(run: Servers, name: str) -> Iterator[Path]:
    """An empty folder for attempts."""
    folder = run.folder / f"scratch-{name}"
    folder.mkdir()
    yield folder


def make_endless(models: Path) -> None:
    """Writes the model that the ml-worker's own tests cancel."""
    tests = runpy.run_path(str(ML_TESTS))
    tests["make_endless"](models)


if __name__ == "__main__":
    main(1 if quick(__doc__) else 15)
