"""Callers who leave while the ledger stands still: what they asked for is finished anyway."""

import asyncio
import time
from typing import Any

import grpc.aio
import pytest
from fluoro.v1.blob_service_pb2 import UploadBlobHeader, UploadBlobRequest
from fluoro.v1.job_service_pb2 import CancelJobRequest, DeleteJobRequest, GetJobRequest
from fluoro.v1.token_service_pb2 import RevokeTokenRequest
from fluoro_jobs.testing.rig import Rig
from fluoro_local.folders import free_port
from fluoro_local.servers import PostgresServer
from fluoro_local.testing import standing_still
from gateway.testing import Client, connected, refused

CALLERS = 10
AWAY = "00000000-0000-7000-8000-000000000000"
OWNER: Any = (("fluoro-owner", "ada"),)


def upload(client: Client) -> Any:
    parts = [UploadBlobRequest(header=UploadBlobHeader()), UploadBlobRequest(chunk=b"pixels")]
    return client.blobs.UploadBlob(iter(parts), metadata=OWNER, timeout=1)


def delete(client: Client) -> Any:
    request = DeleteJobRequest(name=f"jobs/{AWAY}")
    return client.jobs.DeleteJob(request, metadata=OWNER, timeout=1)


def cancel(client: Client) -> Any:
    request = CancelJobRequest(name=f"jobs/{AWAY}")
    return client.jobs.CancelJob(request, metadata=OWNER, timeout=1)


def revoke(client: Client) -> Any:
    request = RevokeTokenRequest(name=f"tokens/{AWAY}")
    return client.tokens.RevokeToken(request, metadata=OWNER, timeout=1)


@pytest.mark.parametrize("call", [upload, delete, cancel, revoke])
async def test_a_gateway_outlives_callers_who_did_not_wait_for_its_ledger(
    rig: Rig, postgres: PostgresServer, call: Any
) -> None:
    port = free_port()
    settings = {"grpc_host": "127.0.0.1", "grpc_port": port, "single_owner": "ada"}
    gateway = await asyncio.to_thread(rig.served, "gateway", free_port(), **settings)
    async with connected(port) as client:
        with standing_still(postgres):
            refusals = await asyncio.gather(*(refused(call(client)) for _ in range(CALLERS)))
        assert {each.code for each in refusals} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        deadline = time.monotonic() + 30
        while True:
            assert gateway.poll() is None, rig.logs()
            look = client.jobs.GetJob(GetJobRequest(name=f"jobs/{AWAY}"), metadata=OWNER)
            if (await refused(look)).reason == "JOB_NOT_FOUND":
                break
            assert time.monotonic() < deadline, rig.logs()
    assert gateway.poll() is None, rig.logs()
