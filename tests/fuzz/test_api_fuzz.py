"""The fuzzer in small against a real gateway, and in front of a server that does all wrong."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import grpc.aio
import pytest
from fuzzing import calls
from fuzzing.calls import METHODS, findings_of_log
from fuzzing.requests import World
from fuzzing.values import MARK

FOLDER: Final = Path(__file__).parent
CALLS: Final = 2_000


def test_whatever_is_sent_to_whichever_method_nothing_is_internal_hangs_or_is_echoed() -> None:
    done = subprocess.run(
        [sys.executable, str(FOLDER / "api.py"), "--calls", str(CALLS), "--seed", "9"],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["calls"] > 0.98 * CALLS
    assert summary["methods"] == len(METHODS) >= 20
    assert {summary[kind] for kind in ("internal", "hangs", "echoes", "untyped", "log")} == {0}


@asynccontextmanager
async def serving(answer: Any) -> AsyncIterator[int]:
    """A server whose every method is this one."""

    class Handlers(grpc.GenericRpcHandler):
        def service(self, _details: Any) -> Any:
            return grpc.stream_stream_rpc_method_handler(answer)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers([Handlers()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def internal(_requests: Any, context: Any) -> None:
    await context.abort(grpc.StatusCode.INTERNAL, f"Cannot read {MARK}.")


async def silent(requests: Any, _context: Any) -> None:
    async for _ in requests:
        pass
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("answer", "found", "seconds"),
    [(internal, {"internal", "echo", "untyped"}, 20), (silent, {"hang"}, 0.3)],
    ids=["internal", "silent"],
)
async def test_an_answer_that_none_may_get_is_found(
    answer: Any, found: set[str], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, short in (("DEADLINE_SECONDS", seconds), ("GRACE_SECONDS", 0.2), ("RAW", 0)):
        monkeypatch.setattr(calls, name, short)

    async def world(_channel: object) -> World:
        return World(["jobs/a"], ["blobs/b"], ["c"])

    monkeypatch.setattr(calls, "_world", world)
    async with serving(answer) as port:
        report = await calls.fuzz(port, range(60), seed=1)
    assert {finding.kind for finding in report.findings} == found


def test_a_name_a_traceback_and_an_error_in_a_log_are_found() -> None:
    good = json.dumps({"event": "gateway_ready", "level": "info"})
    bad = [
        json.dumps({"event": f"no {MARK}", "level": "info"}),
        "Traceback (most recent call last):",
        json.dumps({"event": "rpc_failed_unexpectedly", "level": "error"}),
        json.dumps({"event": "x", "level": "warning", "exception": []}),
    ]
    assert [one.told for one in findings_of_log("\n".join([good, *bad]))] == bad
