"""What the rig hurts with and what it sees, each by itself."""

import asyncio
import gc
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from fluoro_jobs.ids import new_id
from fluoro_jobs.testing.rig import Rig, until
from fluoro_local.children import Child, spawn
from fluoro_local.folders import free_port
from fluoro_telemetry.http import Health, serve
from harness.deployment import Deployment, Service
from harness.proxy import Proxy, close_listener
from harness.pulse import Pulse, Wait, judge, longest


@pytest.fixture
def proxy(redis_url: str) -> Iterator[Proxy]:
    with closing(Proxy(free_port(), urlsplit(redis_url).port or 0)) as proxy:
        proxy.start()
        yield proxy


@contextmanager
def connected(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=30) as connection:
        yield connection


def answer(connection: socket.socket, seconds: float = 5) -> bytes:
    """What the server says to a ping; TimeoutError if it says nothing for that long."""
    connection.settimeout(seconds)
    connection.sendall(b"PING\r\n")
    return connection.recv(100)


def test_a_half_open_connection_takes_everything_answers_nothing_and_never_recovers(
    proxy: Proxy,
) -> None:
    with connected(proxy) as old:
        assert answer(old) == b"+PONG\r\n"
        proxy.half_open()
        with connected(proxy) as young:
            for connection in (old, young):
                with pytest.raises(TimeoutError):
                    answer(connection, 0.2)
            proxy.mend()
            for connection in (old, young):
                with pytest.raises(TimeoutError):
                    answer(connection, 0.2)
        with connected(proxy) as new:
            assert answer(new) == b"+PONG\r\n"


def test_a_slow_network_answers_late_and_a_mended_one_at_once(proxy: Proxy) -> None:
    with connected(proxy) as connection:
        proxy.delay(0.2)
        began = time.monotonic()
        assert answer(connection) == b"+PONG\r\n"
        assert time.monotonic() - began >= 0.4, "both ways"
        proxy.mend()
        began = time.monotonic()
        assert answer(connection) == b"+PONG\r\n"
        assert time.monotonic() - began < 0.2


def test_a_reset_ends_connections_and_a_refusal_lets_nobody_in(proxy: Proxy) -> None:
    with connected(proxy) as connection:
        assert answer(connection) == b"+PONG\r\n"
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            answer(connection)
    with connected(proxy) as connection:
        assert answer(connection) == b"+PONG\r\n"
        proxy.refuse()
        with pytest.raises(ConnectionResetError):
            answer(connection)
    with pytest.raises(ConnectionRefusedError), connected(proxy):
        pass
    proxy.mend()
    with connected(proxy) as connection:
        assert answer(connection) == b"+PONG\r\n"


@pytest.mark.parametrize("turns", range(5))
async def test_a_listener_closed_while_it_accepts_leaves_no_socket_behind(turns: int) -> None:
    handled = []

    async def handle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handled.append(writer)
        writer.close()

    listener = await asyncio.start_server(handle, "127.0.0.1", 0)
    with socket.create_connection(listener.sockets[0].getsockname()):
        for _ in range(turns):
            await asyncio.sleep(0)
        await close_listener(listener)
        await asyncio.gather(*(writer.wait_closed() for writer in handled))
        gc.collect()  # would find it, and fail the test


def test_a_wait_counts_as_far_as_it_lies_between_two_times() -> None:
    waits = [
        Wait("before", 0, 9),
        Wait("across", 5, 12),
        Wait("within", 11, 12.5),
        Wait("after", 21, 99),
    ]
    assert longest(waits, 10, 20) == (2, "across")
    assert longest(waits, 0, 10) == (9, "before")
    assert longest(waits, 13, 20) == (0, "")


def test_a_stall_a_dead_process_and_an_exit_are_findings() -> None:
    assert judge((30, "a submit"), [], []) == []
    findings = judge((30.1, "a submit"), ["gateway-1"], [("scheduler-1", "ended with 3: why")])
    assert {(finding.kind, finding.job) for finding in findings} == {
        ("stalled", "a submit"),
        ("unhealthy", "gateway-1"),
        ("exited", "scheduler-1"),
    }


@pytest.fixture
def rig(database_url: str, redis_url: str, blob_url: str, tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(database_url, redis_url, blob_url, tmp_path)
    yield rig
    rig.close()


def test_a_task_that_nobody_claims_is_seen_to_wait_and_one_that_runs_is_not(rig: Rig) -> None:
    first = new_id()
    health = Health()
    with (
        closing(serve("127.0.0.1", 0, health)) as server,
        Pulse(lambda: rig.database_url, first, lambda: {"here": server.port}) as pulse,
    ):
        job = rig.submit(rig.job_of({"do": "wait", "path": str(rig.folder / "gate")}))
        until(lambda: longest(pulse.waits, 0, time.monotonic())[0] > 0.5, what="a wait")
        rig.worker(pool="threads")
        rig.running(job)
        claimed = time.monotonic()
        until(lambda: time.monotonic() > claimed + 0.8, what="more looks")
        (wait,) = pulse.waits
        assert wait.what in {f"jobs/{job} step 0 READY", f"jobs/{job} step 0 QUEUED"}
        assert wait.within(claimed, time.monotonic()) <= 0
        (rig.folder / "gate").touch()
        rig.finished(job)
        assert pulse.unhealthy == set()


def test_a_process_that_calls_itself_dead_is_seen(rig: Rig) -> None:
    health = Health(max_beat_age_seconds=0)
    with closing(serve("127.0.0.1", 0, health)) as server:
        ports = {"dead": server.port, "gone": free_port()}
        with Pulse(lambda: rig.database_url, new_id(), lambda: ports) as pulse:
            health.beat()
            until(lambda: pulse.unhealthy, what="a look")
        assert pulse.unhealthy == {"dead"}


def test_a_process_that_ends_by_itself_is_told_and_started_again(server_folder: Path) -> None:
    deployment = Deployment(server_folder)
    (server_folder / "logs").mkdir()

    def ends() -> Child:
        child = spawn(
            [sys.executable, "-c", "raise SystemExit(3)"], log=server_folder / "logs" / "ended.log"
        )
        until(lambda: not child.running, what="its end")
        return child

    services = {
        "scheduler-1": Service("scheduler-1", free_port(), 0, ends()),
        "scheduler-2": Service("scheduler-2", free_port(), 0, ends(), meant=True),
        "gateway-1": Service("gateway-1", free_port(), free_port(), ends(), excused=True),
    }
    deployment.services = services
    try:
        assert list(deployment.living()) == ["scheduler-1"]
        deployment.look_after()
        assert deployment.exits == [("scheduler-1", "ended with 3: ")]
        assert [service.child.running for service in services.values()] == [True, False, True]
    finally:
        for service in services.values():
            service.child.kill()
