"""The health endpoint, asked over HTTP."""

import json
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from fluoro_telemetry.http import Health, Server, serve
from prometheus_client import CollectorRegistry, Counter


def get(server: Server, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=30) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def report(server: Server, path: str) -> tuple[int, dict[str, Any]]:
    status, body = get(server, path)
    return status, json.loads(body)


@contextmanager
def serving(health: Health, **options: Any) -> Iterator[Server]:
    server = serve("127.0.0.1", 0, health, **options)
    try:
        yield server
    finally:
        server.close()


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        pause.wait(0.01)


def boom() -> None:
    raise ConnectionRefusedError("nobody listens\nsecond line")


def test_metrics_are_exposed_as_prometheus_text() -> None:
    registry = CollectorRegistry()
    Counter("fluoro_things_total", "Things.", registry=registry).inc(3)
    with serving(Health(), registry=registry) as server:
        assert get(server, "/metrics") == (
            200,
            (
                "# HELP fluoro_things_total Things.\n"
                "# TYPE fluoro_things_total counter\n"
                "fluoro_things_total 3.0\n"
            ),
        )


def test_the_process_s_own_metrics_are_there_by_default() -> None:
    with serving(Health()) as server:
        assert "process_resident_memory_bytes" in get(server, "/metrics")[1]


def test_another_path_is_not_found() -> None:
    with serving(Health()) as server:
        assert get(server, "/secrets")[0] == 404


def test_a_process_is_alive_until_its_loop_stops_ticking() -> None:
    health = Health(max_beat_age_seconds=0.2)
    with serving(health) as server:
        assert report(server, "/healthz")[0] == 200
        health.beat()
        assert report(server, "/healthz")[0] == 200
        until(lambda: report(server, "/healthz")[0] == 503)
        status, details = report(server, "/healthz")
        assert (status, details["ok"]) == (503, False)
        assert details["beat_age_seconds"] > 0.2
        health.beat()
        assert report(server, "/healthz")[0] == 200


def test_liveness_does_not_look_at_what_readiness_looks_at() -> None:
    health = Health()
    health.add_check("ledger", boom)
    health.set_draining()
    with serving(health) as server:
        assert report(server, "/healthz")[0] == 200
        assert report(server, "/readyz")[0] == 503


def test_readiness_names_each_check_and_what_it_found() -> None:
    health = Health()
    health.add_check("blobs", lambda: None)
    health.add_check("ledger", boom)
    with serving(health) as server:
        status, details = report(server, "/readyz")
    assert status == 503
    assert {name: (check["ok"], check["message"]) for name, check in details["checks"].items()} == {
        "blobs": (True, ""),
        "ledger": (False, "ConnectionRefusedError: nobody listens"),
    }
    assert all(check["seconds"] >= 0 for check in details["checks"].values())


def test_a_process_without_checks_is_ready_until_it_drains() -> None:
    health = Health()
    with serving(health) as server:
        assert report(server, "/readyz") == (200, {"ok": True, "draining": False, "checks": {}})
        health.set_draining()
        assert report(server, "/readyz") == (503, {"ok": False, "draining": True, "checks": {}})


def test_a_check_that_hangs_fails_in_time_and_is_never_run_twice_at_once() -> None:
    release = threading.Event()
    runs: list[float] = []

    def hang() -> None:
        runs.append(time.monotonic())
        release.wait(60)

    health = Health(check_timeout_seconds=0.2, cache_seconds=0)
    health.add_check("ledger", hang)
    with ExitStack() as stack:
        stack.callback(release.set)
        server = stack.enter_context(serving(health))
        for _ in range(3):
            begin = time.monotonic()
            status, details = report(server, "/readyz")
            assert time.monotonic() - begin < 5
            assert (status, details["checks"]["ledger"]["ok"]) == (503, False)
            assert "no answer for" in details["checks"]["ledger"]["message"]
        assert len(runs) == 1
        release.set()
        until(lambda: report(server, "/readyz")[0] == 200)


def test_many_hanging_checks_take_no_longer_than_one() -> None:
    release = threading.Event()
    health = Health(check_timeout_seconds=0.3)
    for number in range(10):
        health.add_check(f"check-{number}", lambda: release.wait(60))
    with ExitStack() as stack:
        stack.callback(release.set)
        server = stack.enter_context(serving(health))
        begin = time.monotonic()
        assert report(server, "/readyz")[0] == 503
        assert time.monotonic() - begin < 2


def test_many_probes_are_one_check_while_its_result_is_fresh() -> None:
    runs: list[int] = []
    health = Health(cache_seconds=60)
    health.add_check("ledger", lambda: runs.append(1))
    with serving(health) as server:
        for _ in range(5):
            assert report(server, "/readyz")[0] == 200
    assert len(runs) == 1


def test_a_check_that_recovers_is_seen() -> None:
    down = threading.Event()
    down.set()
    health = Health(cache_seconds=0)
    health.add_check("ledger", lambda: boom() if down.is_set() else None)
    with serving(health) as server:
        assert report(server, "/readyz")[0] == 503
        down.clear()
        assert report(server, "/readyz")[0] == 200


def test_two_checks_of_one_name_are_refused() -> None:
    health = Health()
    health.add_check("ledger", boom)
    with pytest.raises(ValueError, match="'ledger' already"):
        health.add_check("ledger", boom)


def test_a_taken_port_is_named_with_the_setting_that_chooses_it() -> None:
    with (
        serving(Health()) as server,
        pytest.raises(
            OSError, match=rf"port {server.port} of 127.0.0.1 .* taken .* FLUORO_HTTP_PORT"
        ),
    ):
        serve("127.0.0.1", server.port, Health())


def test_an_address_of_another_machine_is_named_with_the_reason() -> None:
    with pytest.raises(OSError, match=r"port 0 of 192.0.2.1 .* cannot be listened on .*assign"):
        serve("192.0.2.1", 0, Health())


def test_a_closed_server_frees_its_port() -> None:
    with serving(Health()) as first:
        port = first.port
    serve("127.0.0.1", port, Health()).close()


def test_a_silent_connection_holds_up_nobody() -> None:
    with serving(Health()) as server, socket.create_connection(("127.0.0.1", server.port)):
        assert get(server, "/healthz")[0] == 200


FORK = """
    import os, socket, sys, time
    from fluoro_telemetry.http import Health, serve
    server = serve("127.0.0.1", 0, Health())
    read, write = os.pipe()
    if os.fork() == 0:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    server.close()
    try:
        socket.create_connection(("127.0.0.1", server.port), timeout=5)
    except ConnectionRefusedError:
        print("refused")
    os.close(write)
    os.wait()
"""


def test_a_forked_child_does_not_hold_the_port() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FORK)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout == "refused\n", done.stderr
