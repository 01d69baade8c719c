"""A server goes away under running services: they say so, and recover by themselves."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import grpc
import pytest
from fluoro.v1 import job_pb2
from fluoro_client import Client, FluoroApiError
from fluoro_client.jobs import inspect
from fluoro_jobs.testing.rig import until
from fluoro_local.testing import RunningFluoro

SECONDS = 90
"""How long a service may take to notice, or to recover, on a busy machine."""


@contextmanager
def without_ledger(core: RunningFluoro) -> Iterator[None]:
    core.supervisor.postgres.kill()
    try:
        yield
    finally:
        core.supervisor.postgres.start()


@contextmanager
def without_redis(core: RunningFluoro) -> Iterator[None]:
    core.supervisor.valkey.kill()
    try:
        yield
    finally:
        core.supervisor.valkey.start()


@contextmanager
def without_blobs(core: RunningFluoro) -> Iterator[None]:
    folder, aside = core.data / "blobs", core.data / "blobs.unmounted"
    folder.rename(aside)
    try:
        yield
    finally:
        aside.rename(folder)


OUTAGES = {"ledger": without_ledger, "redis": without_redis, "blobs": without_blobs}
"""By the check that names them."""

CHECKS = {
    "gateway": {"ledger", "blobs"},
    "dicom-worker": {"ledger", "redis", "blobs"},
    "scheduler": {"ledger", "redis"},
}
"""What each service cannot be ready without."""


def inspection(client: Client, ct: Path) -> job_pb2.Job:
    return job_pb2.Job(inputs=[client.upload(ct).name], steps=[inspect()])


def reads(core: RunningFluoro, service: str, status: int, failing: set[str]) -> bool:
    return core.readiness(service) == (status, failing)


@pytest.mark.parametrize("lost", OUTAGES)
def test_services_name_what_they_cannot_reach_and_work_again_once_it_is_back(
    core: RunningFluoro, ct: Path, lost: str
) -> None:
    affected = {service for service, checks in CHECKS.items() if lost in checks}
    with OUTAGES[lost](core):
        for service in affected:
            until(partial(reads, core, service, 503, {lost}), SECONDS, f"{service} naming {lost}")
        for service in CHECKS.keys() - affected:
            assert core.readiness(service) == (200, set())
        for service in CHECKS:
            assert core.get(service, "/healthz")[0] == 200, "not ready is no reason to be restarted"
    for service in CHECKS:
        until(partial(reads, core, service, 200, set()), SECONDS, f"{service} being ready again")
    with core.client() as client:
        job = client.wait(client.submit(inspection(client, ct)).name, timeout_seconds=SECONDS)
    assert job.state == job_pb2.Job.STATE_SUCCEEDED, core.logs()


def test_a_job_submitted_without_redis_is_accepted_and_runs_once_it_is_back(
    core: RunningFluoro, ct: Path
) -> None:
    with core.client() as client, without_redis(core):
        name = client.submit(inspection(client, ct)).name
        assert client.get(name).state == job_pb2.Job.STATE_PENDING
        assert name in [job.name for job in client.list()]
        assert core.readiness("gateway") == (200, set())
    with core.client() as client:
        assert client.wait(name, timeout_seconds=SECONDS).state == job_pb2.Job.STATE_SUCCEEDED, (
            core.logs()
        )


def test_without_the_ledger_nothing_is_accepted_and_the_caller_is_told_to_try_again(
    core: RunningFluoro, ct: Path
) -> None:
    with core.client(patience_seconds=1, deadline_seconds=15) as client:
        job = inspection(client, ct)
        known = client.submit(job).name
        calls: tuple[Callable[[], object], ...] = (
            lambda: client.submit(job, request_id="while-the-ledger-is-away"),
            lambda: client.get(known),
            lambda: list(client.list()),
            lambda: client.upload(b"bytes"),
        )
        with (
            without_ledger(core),
            ThreadPoolExecutor() as threads,
        ):  # at once, because a refusal takes its time
            # A backend that was at work when its server was killed still answers.
            until(
                partial(reads, core, "gateway", 503, {"ledger"}),
                SECONDS,
                "the gateway naming the ledger",
            )
            refusals = [future.exception() for future in [threads.submit(call) for call in calls]]
        for refused in refusals:
            assert isinstance(refused, FluoroApiError)
            assert (refused.code, refused.reason) == (
                grpc.StatusCode.UNAVAILABLE,
                "LEDGER_UNAVAILABLE",
            )
        accepted = client.submit(job, request_id="while-the-ledger-is-away").name
        for name in (known, accepted):
            assert (
                client.wait(name, timeout_seconds=SECONDS).state == job_pb2.Job.STATE_SUCCEEDED
            ), core.logs()
