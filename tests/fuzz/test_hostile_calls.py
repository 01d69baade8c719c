"""Calls that once took the gateway down, hung, or were logged word for word."""

import logging
from collections.abc import AsyncIterator, Iterable

import grpc.aio
import pytest
from fluoro.v1.job_service_pb2 import ListJobsRequest, WatchJobsRequest
from fluoro_local.folders import free_port
from fuzzing import wire
from gateway.server import SERVICES
from gateway.testing import Client, parse, refused, serving
from grpc_health.v1 import health_pb2, health_pb2_grpc

ME = (b"fluoro-owner", b"me")
INVALID_ARGUMENT, UNIMPLEMENTED = 3, 12
METHODS = {
    f"/{service.full_name}/{method.name}": method
    for service in SERVICES
    for method in service.methods
}


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
async def client(
    database_url: str, redis_url: str, blob_url: str, port: int
) -> AsyncIterator[Client]:
    async with serving(database_url, redis_url, blob_url, grpc_port=port) as client:
        yield client


async def test_a_path_that_is_no_text_is_refused_and_the_gateway_serves_on(
    client: Client, port: int
) -> None:
    watch = client.jobs.WatchJobs(WatchJobsRequest())
    await watch.read()
    for path in (b"/fluoro.v1.JobService/\xff\xfe", b"\xff", b"", b"/x/y"):
        answer = await wire.call(port, path, wire.EMPTY, [ME])
        assert answer.status == UNIMPLEMENTED
    await client.jobs.ListJobs(ListJobsRequest())
    assert not watch.done(), "a stream that was open is open still"
    watch.cancel()


async def test_a_method_that_there_is_not_has_a_reason(client: Client) -> None:
    how = await refused(client.channel.unary_unary("/fluoro.v1.JobService/Undo")(b""))
    assert (how.code, how.reason) == (grpc.StatusCode.UNIMPLEMENTED, "METHOD_UNKNOWN")


async def refusals(client: Client, sent: list[bytes], methods: Iterable[str]) -> set[str]:
    """Code and reason of calls with these messages."""
    found = set()
    for path in methods:
        call = client.channel.stream_stream(path)(iter(sent), timeout=20)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        how = parse(caught.value)
        found.add(f"{how.code.name} {how.reason}")
    return found


async def test_a_call_without_a_message_is_refused_by_every_method_that_takes_one(
    client: Client,
) -> None:
    taking_one = [path for path, method in METHODS.items() if not method.client_streaming]
    assert len(taking_one) >= 18
    assert await refusals(client, [], taking_one) == {"INVALID_ARGUMENT INVALID_ARGUMENT"}


async def test_bytes_that_are_no_message_are_refused_by_every_method(client: Client) -> None:
    found = await refusals(client, [b"\xff\xff\xff"], METHODS)
    assert found == {"INVALID_ARGUMENT INVALID_ARGUMENT"}


async def test_metadata_that_is_no_text_is_refused_or_ignored_and_not_logged(
    client: Client, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    path, name = b"/fluoro.v1.JobService/ListJobs", b"Mustermann\xff"
    with caplog.at_level(logging.DEBUG):
        ours = await wire.call(port, path, wire.EMPTY, [(b"fluoro-owner", name)])
        other = await wire.call(port, path, wire.EMPTY, [ME, (b"x-note", name)])
        await client.jobs.ListJobs(ListJobsRequest())
    assert (ours.status, other.status) == (INVALID_ARGUMENT, 0)
    assert "Mustermann" not in caplog.text


async def test_the_health_of_all_services_can_be_listed_and_watched(client: Client) -> None:
    health = health_pb2_grpc.HealthStub(client.channel)
    names = ("", "fluoro.v1.JobService")
    for name in names:
        watch = health.Watch(health_pb2.HealthCheckRequest(service=name))
        # A gateway that has just started has not looked at its stores yet.
        while (await watch.read()).status != health_pb2.HealthCheckResponse.SERVING:
            pass
        watch.cancel()
    listed = await health.List(health_pb2.HealthListRequest())
    assert {name: each.status for name, each in listed.statuses.items()} == dict.fromkeys(
        names, health_pb2.HealthCheckResponse.SERVING
    )
    watch = health.Watch(health_pb2.HealthCheckRequest(service="none"))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    how = await refused(health.Check(health_pb2.HealthCheckRequest(service="none")))
    assert (how.code, how.reason) == (grpc.StatusCode.NOT_FOUND, "SERVICE_UNKNOWN")
