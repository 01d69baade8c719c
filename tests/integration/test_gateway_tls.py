"""TLS: certificates that are replaced while the gateway serves, callers known by theirs."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog.testing
from cryptography import x509
from fluoro.v1.job_service_pb2 import ListJobsRequest, WatchJobsRequest
from fluoro.v1.job_service_pb2_grpc import JobServiceStub
from fluoro_client import AsyncClient, Tls
from fluoro_client.errors import PermissionDeniedError, UnreachableError
from gateway.serve import running
from gateway.settings import Settings
from gateway.testing import refused
from gateway.testing_identity import AUDIENCE, Authority, issuing
from pydantic import ValidationError

DOMAIN = "clinic.example"


@asynccontextmanager
async def gateway(urls: dict[str, str], **fields: Any) -> AsyncIterator[int]:
    """A gateway's port."""
    settings = Settings(
        **urls,
        **{
            "grpc_host": "127.0.0.1",
            "grpc_port": 0,
            "http_host": "127.0.0.1",
            "http_port": 0,
            "shutdown_grace_seconds": 5,
            "single_owner": "me",
        }
        | fields,
    )
    async with running(settings) as serving:
        yield serving.grpc_port


@asynccontextmanager
async def asking_certificates(urls: dict[str, str], authority: Authority) -> AsyncIterator[int]:
    """The port of a gateway that knows callers by certificates, of which one owner is a viewer."""
    certificate, key, _ = authority.issue("server")
    async with gateway(
        urls,
        identity="mtls",
        mtls_trust_domain=DOMAIN,
        role_bindings="imaging.reporter=viewer",
        tls_certificate_file=str(certificate),
        tls_key_file=str(key),
        tls_client_ca_file=str(authority.ca),
    ) as port:
        yield port


@pytest.fixture
def urls(database_url: str, redis_url: str, blob_url: str) -> dict[str, str]:
    return {"database_url": database_url, "redis_url": redis_url, "blob_url": blob_url}


async def jobs_of(client: AsyncClient) -> list[str]:
    return [job.owner async for job in client.list()]


async def shown_serial(port: int) -> int:
    """Serial number of the certificate that a new connection is shown."""
    pem = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port), timeout=20)
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


async def test_a_certificate_that_is_replaced_is_shown_to_the_next_connection(
    urls: dict[str, str], tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    certificate, key, first = authority.issue("server")
    async with (
        gateway(urls, tls_certificate_file=str(certificate), tls_key_file=str(key)) as port,
        AsyncClient(f"localhost:{port}", tls=Tls(ca_file=authority.ca)) as client,
    ):
        assert await jobs_of(client) == []
        assert await shown_serial(port) == first
        whole = key.read_bytes()
        key.write_bytes(whole[:40])
        with structlog.testing.capture_logs() as logs:
            assert await shown_serial(port) == first
        assert "tls_files_unusable" in [line["event"] for line in logs]
        _, _, second = authority.issue("server")
        assert await shown_serial(port) == second != first
        assert await jobs_of(client) == []
        with pytest.raises(UnreachableError):
            async with AsyncClient(f"localhost:{port}") as plain:
                await jobs_of(plain)


async def test_a_caller_is_who_its_certificate_says_and_needs_one(
    urls: dict[str, str], tmp_path: Path
) -> None:
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    async with asking_certificates(urls, authority) as port:

        def client(by: Authority, name: str, spiffe_id: str) -> AsyncClient:
            own, own_key, _ = by.issue(name, spiffe_id=spiffe_id)
            tls = Tls(ca_file=authority.ca, certificate_file=own, key_file=own_key)
            return AsyncClient(f"localhost:{port}", tls=tls)

        async with client(authority, "a", f"spiffe://{DOMAIN}/ns/imaging/sa/reporter") as good:
            assert await jobs_of(good) == []
        async with client(authority, "b", f"spiffe://{DOMAIN}/ns/imaging/sa/other") as roleless:
            with pytest.raises(PermissionDeniedError) as caught:
                await jobs_of(roleless)
            assert caught.value.reason == "ROLE_MISSING"
        async with client(authority, "c", "spiffe://else/ns/imaging/sa/reporter") as foreign:
            with pytest.raises(PermissionDeniedError) as caught:
                await jobs_of(foreign)
            assert caught.value.reason == "CERTIFICATE_UNKNOWN"
        async with client(stranger, "d", f"spiffe://{DOMAIN}/ns/imaging/sa/reporter") as forged:
            with pytest.raises(UnreachableError):
                await jobs_of(forged)
        async with AsyncClient(f"localhost:{port}", tls=Tls(ca_file=authority.ca)) as nobody:
            with pytest.raises(UnreachableError):
                await jobs_of(nobody)


async def test_a_certificate_that_expires_ends_its_calls_on_an_open_connection(
    urls: dict[str, str], tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    async with asking_certificates(urls, authority) as port:
        spiffe_id = f"spiffe://{DOMAIN}/ns/imaging/sa/reporter"
        own, own_key, _ = authority.issue("short", spiffe_id=spiffe_id, seconds=8)
        credentials = grpc.ssl_channel_credentials(
            authority.ca.read_bytes(), own_key.read_bytes(), own.read_bytes()
        )
        async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
            jobs = JobServiceStub(channel)
            messages = aiter(jobs.WatchJobs(WatchJobsRequest()))
            await anext(messages)

            async def read() -> None:
                async for _ in messages:
                    pass

            async with asyncio.timeout(30):
                assert (await refused(read())).reason == "CERTIFICATE_EXPIRED"
            call = jobs.ListJobs(ListJobsRequest(), timeout=20)
            assert (await refused(call)).reason == "CERTIFICATE_EXPIRED"


async def test_a_client_whose_certificate_is_replaced_connects_again_and_keeps_its_watches(
    urls: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fluoro_client.channel.LOOK_SECONDS", 0.0)
    authority = Authority(tmp_path)
    certificate, key, _ = authority.issue("server")
    own, own_key, _ = authority.issue("client", "ada")
    async with (
        gateway(
            urls,
            identity="mtls",
            role_bindings="*=submitter",
            tls_certificate_file=str(certificate),
            tls_key_file=str(key),
            tls_client_ca_file=str(authority.ca),
            watch_bookmark_interval_seconds=0.1,
        ) as port,
        AsyncClient(
            f"localhost:{port}",
            tls=Tls(ca_file=authority.ca, certificate_file=own, key_file=own_key),
        ) as client,
    ):
        assert (await client.upload(b"of ada")).name
        watch = client.watch_jobs()
        await anext(watch)
        authority.issue("client", "bob")
        blob = await client.upload(b"of bob")
        assert await client.get_blob(blob.name) == blob
        # The stream began as ada's, on the connection before, and goes on.
        async with asyncio.timeout(30):
            for _ in range(3):
                await anext(watch)
        authority.issue("client", "ada")
        with pytest.raises(Exception, match="BLOB_NOT_FOUND"):
            await client.get_blob(blob.name)
        await watch.aclose()


async def test_a_client_sends_the_token_that_is_in_the_file_now(
    urls: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "token"
    with issuing() as issuer:
        file.write_text(issuer.token("ada", roles=["submitter"]) + "\n")
        async with (
            gateway(urls, identity="jwt", jwt_issuer=issuer.url, jwt_audience=AUDIENCE) as port,
            AsyncClient(f"localhost:{port}", token=file) as by_file,
            AsyncClient(f"localhost:{port}", token=lambda: issuer.token("bob")) as by_call,
            AsyncClient(f"localhost:{port}", token="nonsense") as by_text,
        ):
            blob = await by_file.upload(b"of ada")
            file.write_text(issuer.token("bob", roles=["submitter"]))
            with pytest.raises(Exception, match="BLOB_NOT_FOUND"):
                await by_file.get_blob(blob.name)
            with pytest.raises(PermissionDeniedError, match="ROLE_MISSING"):
                await by_call.get_blob(blob.name)
            with pytest.raises(PermissionDeniedError, match="TOKEN_INVALID"):
                await by_text.get_blob(blob.name)


@pytest.mark.parametrize(
    "fields",
    [
        {"identity": "mtls"},
        {"tls_certificate_file": "x"},
        {"tls_key_file": "x"},
        {"tls_client_ca_file": "x"},
    ],
)
def test_half_of_what_tls_needs_is_refused(urls: dict[str, str], fields: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="needs"):
        Settings(**urls, grpc_host="127.0.0.1", **fields)


async def test_files_that_do_not_fit_each_other_stop_the_start(
    urls: dict[str, str], tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    certificate, _, _ = authority.issue("one")
    _, key, _ = authority.issue("two")
    with pytest.raises(ValueError, match="is not the key of"):
        async with gateway(urls, tls_certificate_file=str(certificate), tls_key_file=str(key)):
            pass
