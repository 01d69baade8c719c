"""Operators ask how the deployment is, and hang up before they hear."""

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest
from fluoro.v1.deployment_service_pb2 import DiagnoseDeploymentRequest, Finding
from fluoro_blobs import BlobStore
from gateway.deployment import Deployment
from gateway.rpc import Call
from gateway.settings import Settings


async def test_however_many_ask_and_hang_up_the_stores_are_looked_at_once_at_a_time(
    tmp_path: Path,
) -> None:
    came: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()

    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.put_nowait(writer)

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as redis:
        port = redis.sockets[0].getsockname()[1]
        fields: dict[str, Any] = {
            "database_url": f"postgresql://nobody@/none?host={tmp_path}",
            "redis_url": f"redis://127.0.0.1:{port}/0",
            "blob_url": tmp_path.as_uri(),
            "grpc_host": "127.0.0.1",
            "single_owner": "default",
        }
        deployment = Deployment(BlobStore.from_url(tmp_path.as_uri()), Settings(**fields))

        def ask() -> asyncio.Task[Any]:
            none = cast("Call", None)  # nothing of it is read
            return asyncio.create_task(
                deployment.diagnose_deployment(DiagnoseDeploymentRequest(), none)
            )

        first, patient = ask(), ask()
        writer = await asyncio.wait_for(came.get(), 20)
        first.cancel()
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(ask(), 0.2)
        assert came.empty()
        writer.transport.abort()
    answer = await asyncio.wait_for(patient, 60)
    assert ("redis", Finding.LEVEL_FAULT) in {(one.check, one.level) for one in answer.findings}
