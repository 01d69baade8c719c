"""Clients that have nothing of ours but the protos: Node's, and the lines for a shell."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fluoro.v1 import job_pb2
from fluoro_client import AsyncClient, Tls
from fluoro_client.jobs import inspect
from fluoro_local.testing import OWNER, RunningFluoro, tool
from gateway.serve import running
from gateway.settings import Settings
from gateway.testing_identity import AUDIENCE, Authority, Issuer, issuing

ROOT = Path(__file__).parents[2]
SECONDS = 60
SHELL_LINES = re.findall(
    r"^```sh\n(.*?)^```", (ROOT / "docs/other-languages.md").read_text(), re.MULTILINE | re.DOTALL
)
ENDPOINT = "localhost:50051"
"""Of the page."""


@pytest.fixture(scope="module")
def node_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the Node client with its packages."""
    folder = tmp_path_factory.mktemp("node") / "client"
    shutil.copytree(ROOT / "clients/node", folder, ignore=shutil.ignore_patterns("node_modules"))
    tool("node")
    install = [tool("npm"), "ci", "--ignore-scripts", "--prefer-offline"]
    done = subprocess.run(
        install, cwd=folder, capture_output=True, text=True, timeout=100, check=False
    )
    if done.returncode:
        verdict = pytest.fail if os.environ.get("CI") else pytest.skip
        verdict(f"npm cannot install the packages of the Node client: {done.stderr}")
    return folder / "fluoro.mjs"


def environment(**settings: object) -> dict[str, str]:
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": os.environ.get("HOME", "/"),
        "FLUORO_PROTOS": str(ROOT / "protos"),
        **{name: str(value) for name, value in settings.items()},
    }


def shell(lines: str, folder: Path, **settings: object) -> str:
    """What lines of the page print in a folder."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", lines],
        cwd=folder,
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def updates(messages: list[dict[str, Any]]) -> list[str]:
    """What the messages tell, with the numbers of events."""
    return [
        f"event {message['event']['sequence']}" if "event" in message else kind
        for message in messages
        for kind in ("snapshot", "event")
        if kind in message
    ]


def test_the_node_client_runs_a_pipeline_from_upload_to_report(
    node_client: Path, fluoro: RunningFluoro, ct: Path, mr: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        ["node", str(node_client), "run", "ct-tissue", str(tmp_path), str(ct), str(mr)],
        env=environment(FLUORO_ENDPOINT=fluoro.endpoint, FLUORO_OWNER=OWNER),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr + fluoro.logs()
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    told = updates(messages)
    first, last = messages[0]["snapshot"], messages[-1]["event"]
    began, ended = int(first["last_sequence"]), int(last["sequence"])
    assert told == ["snapshot", *(f"event {number}" for number in range(began + 1, ended + 1))]
    assert last["job_changed"]["state"] == "STATE_SUCCEEDED"
    with fluoro.client() as client:
        (report,) = client.list_artifacts(first["name"], roles=["report"])
    assert (tmp_path / "report.pdf").stat().st_size == report.artifact.size_bytes


def test_the_lines_for_a_shell_run_a_job_from_upload_to_report(
    fluoro: RunningFluoro, ct: Path, tmp_path: Path
) -> None:
    shutil.copy(ct, tmp_path / "ct.dcm")
    out = shell(SHELL_LINES[0].replace(ENDPOINT, fluoro.endpoint), tmp_path)
    assert '"name": "pipelines/ct-tissue/versions/1"' in out
    watched, resumed = (
        [json.loads(one) for one in re.split(r"\n(?=\{)", (tmp_path / name).read_text()) if one]
        for name in ("watched.json", "resumed.json")
    )
    assert updates(watched)[0] == "snapshot"
    assert updates(resumed) == updates(watched)[1:]
    # The job may have ended before the shell came to watch it.
    end = resumed[-1]["event"]["jobChanged"] if resumed else watched[0]["snapshot"]
    assert end["state"] == "STATE_SUCCEEDED"
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF-")


@asynccontextmanager
async def encrypted(
    urls: dict[str, str], folder: Path, issuer: Issuer, port: int
) -> AsyncIterator[int]:
    """A gateway with TLS that knows callers by their tokens; its port."""
    settings = Settings(
        **urls,  # type: ignore[arg-type]  # what is parsed is text
        grpc_host="127.0.0.1",
        grpc_port=port,
        http_host="127.0.0.1",
        http_port=0,
        shutdown_grace_seconds=1,
        identity="jwt",
        jwt_issuer=issuer.url,
        jwt_audience=AUDIENCE,
        role_bindings="*=submitter",
        tls_certificate_file=str(folder / "server.crt"),
        tls_key_file=str(folder / "server.key"),
    )
    async with running(settings) as gateway:
        yield gateway.grpc_port


@contextmanager
def watching(
    client: Path, job: str, endpoint: str, token: str, ca: Path
) -> Iterator["subprocess.Popen[str]"]:
    """The Node client, which watches a job over TLS."""
    with subprocess.Popen(
        ["node", str(client), "watch", job],
        env=environment(FLUORO_ENDPOINT=endpoint, FLUORO_TOKEN=token, FLUORO_CA_FILE=ca),
        stdout=subprocess.PIPE,
        text=True,
    ) as node:
        try:
            yield node
        finally:
            node.kill()


async def test_the_node_client_resumes_over_tls_when_the_gateway_was_restarted(
    node_client: Path, database_url: str, redis_url: str, blob_url: str, tmp_path: Path
) -> None:
    urls = {"database_url": database_url, "redis_url": redis_url, "blob_url": blob_url}
    authority = Authority(tmp_path)
    authority.issue("server")
    with issuing() as issuer, ExitStack() as started:
        token = issuer.token("ada", exp=int((datetime.now(UTC) + timedelta(hours=1)).timestamp()))
        tls = Tls(ca_file=authority.ca)
        async with encrypted(urls, tmp_path, issuer, 0) as port:
            async with AsyncClient(f"localhost:{port}", token=token, tls=tls) as client:
                job = job_pb2.Job(inputs=[(await client.upload(b"x")).name], steps=[inspect()])
                job.schedule_time.FromDatetime(datetime.now(UTC) + timedelta(days=1))
                name = (await client.submit(job)).name
            node = started.enter_context(
                watching(node_client, name, f"localhost:{port}", token, authority.ca)
            )
            assert node.stdout is not None
            first = json.loads(await asyncio.to_thread(node.stdout.readline))
        async with (
            encrypted(urls, tmp_path, issuer, port),
            AsyncClient(f"localhost:{port}", token=token, tls=tls) as client,
        ):
            lines = SHELL_LINES[1].replace(ENDPOINT, f"localhost:{port}")
            lines = lines.replace("ca.crt", str(authority.ca))
            listed = await asyncio.to_thread(shell, lines, ROOT, FLUORO_TOKEN=token)
            assert [found["name"] for found in json.loads(listed)["jobs"]] == [name]
            await client.cancel(name)
            out, _ = await asyncio.to_thread(node.communicate, timeout=SECONDS)
    rest = [json.loads(line) for line in out.splitlines()]
    assert "snapshot" in first
    began = int(first["snapshot"]["last_sequence"])
    told = updates(rest)
    assert told == [f"event {number}" for number in range(began + 1, began + 1 + len(told))]
    assert rest[-1]["event"]["job_changed"]["state"] == "STATE_CANCELLED"
    assert node.returncode == 1
