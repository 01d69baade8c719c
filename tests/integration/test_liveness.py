"""Liveness looks at the process alone: a store is no reason for a restart, a lost thread is."""

import asyncio
import textwrap
import time
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest
from fluoro_blobs import BlobStore
from fluoro_jobs.ledger.connection import Ledger
from fluoro_jobs.testing.rig import Rig, until
from fluoro_local.folders import free_port
from fluoro_local.servers import PostgresServer
from fluoro_local.testing import standing_still
from gateway.health import Health
from gateway.settings import Settings

LIVENESS_SECONDS = 2
"""Instead of a minute."""


def status(port: int, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


def test_a_ledger_that_stands_still_longer_than_a_loop_may_restarts_nothing(
    rig: Rig, postgres: PostgresServer
) -> None:
    ports = [free_port() for _ in range(3)]
    rig.start("gateway", http_port=ports[0], grpc_port=0, liveness_seconds=LIVENESS_SECONDS)
    rig.start("scheduler", http_port=ports[1], liveness_seconds=LIVENESS_SECONDS)
    rig.start("fluoro_jobs.testing.worker", "dicom", "threads", http_port=ports[2])
    until(
        lambda: {status(port, "/readyz") for port in ports} == {200},
        60,
        "three services that are ready",
    )
    with standing_still(postgres):
        until(
            lambda: {status(port, "/readyz") for port in ports} == {503},
            30,
            "three services that miss the ledger",
        )
        end = time.monotonic() + 2.5 * LIVENESS_SECONDS
        while time.monotonic() < end:
            assert [status(port, "/healthz") for port in ports] == [200] * 3, rig.logs()
    until(
        lambda: {status(port, "/readyz") for port in ports} == {200},
        30,
        "three services that are ready again",
    )


async def test_a_gateway_is_ready_once_it_serves_calls_and_not_before(
    database_url: str, redis_url: str, blob_url: str
) -> None:
    settings = Settings(
        database_url=database_url, redis_url=redis_url, blob_url=blob_url, grpc_host="127.0.0.1"
    )
    with closing(Ledger(database_url)) as ledger:
        health = Health(ledger, BlobStore.from_url(blob_url), settings)
        ok, told = health.probes.readiness()
        assert (ok, [name for name, one in told["checks"].items() if not one["ok"]]) == (
            False,
            ["grpc"],
        )
        beating = asyncio.create_task(health.beat())
        await asyncio.to_thread(until, lambda: health.probes.readiness()[0], 10, "a ready gateway")
        beating.cancel()


HARNESS = textwrap.dedent("""\
    import asyncio, ctypes, gc, os, pathlib, runpy, signal, sys, threading

    def strike(name, when):
        while not when.exists():
            threading.Event().wait(0.02)
        if name == "MainThread":
            return os.kill(os.getpid(), signal.SIGUSR1)
        gc.unfreeze()  # get_objects() passes over what a service froze at its start
        tasks = [found for found in gc.get_objects() if isinstance(found, asyncio.Task)]
        for task in [found for found in tasks if found.get_name() == name]:
            return task.get_loop().call_soon_threadsafe(task.cancel)
        (thread,) = [thread for thread in threading.enumerate() if thread.name == name]
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
        )

    if __name__ == "__main__":
        module, name, when, *arguments = sys.argv[1:]
        signal.signal(signal.SIGUSR1, lambda *_: threading.Event().wait())
        threading.Thread(target=strike, args=(name, pathlib.Path(when)), daemon=True).start()
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
""")
"""Runs a service.

Once a file is there, its main thread stands still, or another thread or a task ends in a manner
that nobody foresees.
"""


@pytest.mark.parametrize(
    ("thread", "service"),
    [
        ("MainThread", ["gateway"]),
        ("read", ["gateway"]),
        ("MainThread", ["scheduler"]),
        ("sweeper", ["scheduler"]),
        ("keeper", ["fluoro_jobs.testing.worker", "dicom", "threads"]),
        ("dispatcher", ["fluoro_jobs.testing.worker", "dicom", "threads"]),
    ],
)
def test_a_process_without_a_thread_that_it_needs_is_not_alive(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, thread: str, service: list[str]
) -> None:
    (tmp_path / "harness.py").write_text(HARNESS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    port, when = free_port(), tmp_path / "now"
    module, *arguments = service
    rig.start(
        "harness",
        module,
        thread,
        str(when),
        *arguments,
        http_port=port,
        grpc_port=0,
        liveness_seconds=LIVENESS_SECONDS,
    )
    until(lambda: status(port, "/readyz") == 200, 60, "a ready service")
    assert status(port, "/healthz") == 200, rig.logs()
    when.touch()
    # A thread that ends may hold what an answer needs: no answer restarts a Pod like a 503.
    until(lambda: status(port, "/healthz") in {0, 503}, 20, "a service that is not alive")
