"""Service tokens: shown once, hashed in the ledger, revocable, and cheap to look at."""

import asyncio
import json
import os
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fluoro.v1.blob_service_pb2 import ImportBlobRequest
from fluoro.v1.job_service_pb2 import ListJobsRequest, WaitJobRequest, WatchJobsRequest
from fluoro.v1.token_service_pb2 import (
    ROLE_SUBMITTER,
    ROLE_VIEWER,
    CreateTokenRequest,
    ListTokensRequest,
    RevokeTokenRequest,
    Token,
)
from fluoro_jobs.ledger import tokens
from fluoro_jobs.ledger.connection import Ledger
from fluoro_jobs.ledger.tokens import create, digest
from fluoro_jobs.testing.rig import OWNER, Rig
from fluoro_local.folders import free_port
from fluoro_local.servers import PostgresServer
from fluoro_local.testing import standing_still
from gateway.identity.principal import Caller
from gateway.identity.service_tokens import ServiceTokens, lane
from gateway.ledger_calls import LedgerCalls
from gateway.testing import Client, Refused, parse, refused, serving
from grpc.aio import AioRpcError

CACHE_SECONDS = 0.2


@asynccontextmanager
async def gateway(
    database_url: str, redis_url: str, blob_url: str, **settings: Any
) -> AsyncIterator[Client]:
    fields = {"identity": "tokens", "token_cache_seconds": CACHE_SECONDS} | settings
    async with serving(database_url, redis_url, blob_url, **fields) as client:
        yield client


def with_token(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


@pytest.fixture
def operator(database_url: str) -> tuple[tuple[str, str], ...]:
    """Metadata of an operator, whose token came from the ledger's own command."""
    ledger = Ledger(database_url)
    with ledger.connection() as connection:
        _, secret = create(connection, "ops", ["operator"], creator="ledger")
    ledger.close()
    return with_token(secret)


async def list_jobs(client: Client, token: str) -> None:
    await client.jobs.ListJobs(ListJobsRequest(), metadata=with_token(token))


async def until_refused(client: Client, token: str) -> Refused:
    """How it is refused once what the gateway remembers of it is too old."""
    async with asyncio.timeout(30):
        while True:
            try:
                await list_jobs(client, token)
            except AioRpcError as error:
                return parse(error)


async def make(client: Client, operator: Any, **fields: Any) -> tuple[Token, str]:
    token = Token(**{"owner": "ada", "roles": [ROLE_VIEWER]} | fields)
    made = await client.tokens.CreateToken(CreateTokenRequest(token=token), metadata=operator)
    return made.token, made.secret


async def test_a_token_is_its_owners_until_it_is_revoked_and_the_ledger_does_not_have_it(
    database_url: str, redis_url: str, blob_url: str, operator: Any
) -> None:
    async with gateway(database_url, redis_url, blob_url) as client:
        token, secret = await make(client, operator, display_name="scanner 3")
        assert (token.owner, list(token.roles), token.creator) == ("ada", [ROLE_VIEWER], "ops")
        await list_jobs(client, secret)
        with psycopg.connect(database_url) as connection:
            rows = connection.execute("SELECT t::text, sha256 FROM tokens t").fetchall()
        assert digest(secret) in [row[1] for row in rows]
        assert not any(secret in row[0] or secret[7:] in row[0] for row in rows)
        for _ in range(2):
            request = RevokeTokenRequest(name=token.name)
            revoked = (await client.tokens.RevokeToken(request, metadata=operator)).token
            assert revoked.HasField("revoke_time")
        how = await until_refused(client, secret)
        assert (how.code.name, how.reason) == ("UNAUTHENTICATED", "TOKEN_REVOKED")
        listed = (
            await client.tokens.ListTokens(ListTokensRequest(owner="ada"), metadata=operator)
        ).tokens
        assert list(listed) == [revoked]


async def test_tokens_that_expired_or_never_were_are_refused(
    database_url: str, redis_url: str, blob_url: str, operator: Any
) -> None:
    async with gateway(database_url, redis_url, blob_url) as client:
        _, secret = await make(client, operator)
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("UPDATE tokens SET expire_time = now() WHERE owner = 'ada'")
        how = await refused(list_jobs(client, secret))
        assert (how.code.name, how.reason) == ("UNAUTHENTICATED", "TOKEN_EXPIRED")
        how = await refused(list_jobs(client, "fluoro_" + "x" * 43))
        assert (how.code.name, how.reason) == ("UNAUTHENTICATED", "TOKEN_INVALID")
        assert "xxx" not in how.message


async def test_a_stream_and_a_wait_end_when_their_token_is_revoked(
    database_url: str,
    redis_url: str,
    blob_url: str,
    operator: Any,
    rig: Rig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.identity.door.LOOK_AGAIN_SECONDS", 0.1)
    async with gateway(database_url, redis_url, blob_url) as client:
        token, secret = await make(client, operator, owner=OWNER)
        watch = client.jobs.WatchJobs(WatchJobsRequest(), metadata=with_token(secret))
        messages = aiter(watch)
        await anext(messages)
        job = WaitJobRequest(name=f"jobs/{rig.submit(rig.job_of())}")
        job.timeout.seconds = 600
        wait = client.jobs.WaitJob(job, metadata=with_token(secret), timeout=30)
        await client.tokens.RevokeToken(RevokeTokenRequest(name=token.name), metadata=operator)
        async with asyncio.timeout(30):
            ends = [await end_of(messages), await refused(wait)]
        assert [how.reason for how in ends] == ["TOKEN_REVOKED"] * 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [("roles = '{worker}'", "ROLE_MISSING"), ("owner = 'bob'", "TOKEN_INVALID")],
)
async def test_a_stream_ends_when_its_token_would_not_open_it_any_more(
    database_url: str,
    redis_url: str,
    blob_url: str,
    operator: Any,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    reason: str,
) -> None:
    monkeypatch.setattr("gateway.identity.door.LOOK_AGAIN_SECONDS", 0.1)
    async with gateway(database_url, redis_url, blob_url) as client:
        _, secret = await make(client, operator, owner=OWNER)
        messages = aiter(client.jobs.WatchJobs(WatchJobsRequest(), metadata=with_token(secret)))
        await anext(messages)
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute(f"UPDATE tokens SET {change} WHERE owner = '{OWNER}'")
        assert (await end_of(messages)).reason == reason


async def test_a_stream_ends_with_its_token_though_the_ledger_cannot_be_asked(
    database_url: str,
    redis_url: str,
    blob_url: str,
    operator: Any,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("gateway.identity.door.LOOK_AGAIN_SECONDS", 0.1)
    with psycopg.connect(database_url, autocommit=True) as connection:
        async with gateway(database_url, redis_url, blob_url) as client:
            _, secret = await make(client, operator, owner=OWNER)
            connection.execute(
                f"UPDATE tokens SET expire_time = now() + interval '3 s' WHERE owner = '{OWNER}'"
            )
            messages = aiter(client.jobs.WatchJobs(WatchJobsRequest(), metadata=with_token(secret)))
            await anext(messages)
            connection.execute("ALTER TABLE tokens RENAME TO away")
            try:
                assert (await end_of(messages)).reason == "TOKEN_EXPIRED"
            finally:
                connection.execute("ALTER TABLE away RENAME TO tokens")
    assert capfd.readouterr().out.count("proof_not_looked_at") == 1


async def test_a_stream_ends_with_its_token_though_the_ledger_hangs(
    database_url: str,
    redis_url: str,
    blob_url: str,
    operator: Any,
    postgres: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.identity.door.LOOK_AGAIN_SECONDS", 0.1)
    async with gateway(database_url, redis_url, blob_url) as client:
        _, secret = await make(client, operator)
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute(
                "UPDATE tokens SET expire_time = now() + interval '3 s' WHERE owner = 'ada'"
            )
        expires = time.monotonic() + 3
        messages = aiter(client.jobs.WatchJobs(WatchJobsRequest(), metadata=with_token(secret)))
        await anext(messages)
        with standing_still(postgres):
            assert (await end_of(messages)).reason == "TOKEN_EXPIRED"
            late = time.monotonic() - expires
        assert late < 1.5, "a look that began before waits for the ledger longer than that"


async def test_an_import_ends_when_its_token_is_revoked(
    database_url: str,
    redis_url: str,
    blob_url: str,
    operator: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.identity.door.LOOK_AGAIN_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        source = f"http://127.0.0.1:{silent.getsockname()[1]}"
        settings = {"import_sources": source, "import_networks": "127.0.0.1/32"}
        async with gateway(database_url, redis_url, blob_url, **settings) as client:
            token, secret = await make(client, operator, owner=OWNER, roles=[ROLE_SUBMITTER])
            request = ImportBlobRequest(uri=f"{source}/study")
            call = client.blobs.ImportBlob(request, metadata=with_token(secret), timeout=60)
            silent.settimeout(20)
            asked, _ = await asyncio.to_thread(silent.accept)
            await client.tokens.RevokeToken(RevokeTokenRequest(name=token.name), metadata=operator)
            async with asyncio.timeout(20):
                assert (await refused(call)).reason == "TOKEN_REVOKED"
            asked.close()


async def end_of(messages: AsyncIterator[Any]) -> Refused:
    """How a stream is ended, soon."""

    async def read() -> None:
        async for _ in messages:
            pass

    async with asyncio.timeout(30):
        return await refused(read())


async def test_the_ledger_is_asked_once_for_all_calls_of_a_while(
    database_url: str, redis_url: str, blob_url: str, operator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bytes] = []
    find = tokens.find

    def counted(connection: Any, sha256: bytes) -> Any:
        asked.append(sha256)
        return find(connection, sha256)

    monkeypatch.setattr(tokens, "find", counted)
    async with gateway(database_url, redis_url, blob_url, token_cache_seconds=60) as client:
        _, secret = await make(client, operator)
        await asyncio.gather(*(list_jobs(client, secret) for _ in range(50)))
        assert asked.count(digest(secret)) == 1


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("token.owner", {"owner": "A B"}),
        ("token.roles", {"roles": []}),
        ("token.roles", {"roles": [0]}),
        ("token.display_name", {"display_name": "x" * 101}),
        ("token.expire_time", {"expire_time": {"seconds": 1}}),
        ("token.expire_time", {"expire_time": {"seconds": 4_000_000_000}}),
    ],
)
async def test_a_token_that_makes_no_sense_is_not_made(
    database_url: str,
    redis_url: str,
    blob_url: str,
    operator: Any,
    field: str,
    fields: dict[str, Any],
) -> None:
    async with gateway(database_url, redis_url, blob_url) as client:
        how = await refused(make(client, operator, **fields))
        assert (how.code.name, how.reason) == ("INVALID_ARGUMENT", "INVALID_ARGUMENT")
        assert how.message.startswith(field)


async def test_the_command_makes_lists_and_revokes_tokens(
    database_url: str, redis_url: str, blob_url: str, tmp_path: Path
) -> None:
    async def run(*command: str, **variables: str) -> tuple[int | None, str, str]:
        process = await asyncio.create_subprocess_exec(
            *command,
            env=os.environ | variables,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        return process.returncode, out.decode().strip(), err.decode()

    module = ("-m", "fluoro_jobs.ledger.tokens", "ops", "operator")
    _, first, _ = await run(sys.executable, *module, FLUORO_DATABASE_URL=database_url)
    port = free_port()
    target = f"127.0.0.1:{port}"
    async with gateway(database_url, redis_url, blob_url, grpc_port=port):
        variables = {"FLUORO_ENDPOINT": target, "FLUORO_TOKEN": first}
        fluoro = (sys.executable, "-c", "from fluoro_client.entry import main; main()", "tokens")
        code, secret, note = await run(
            *fluoro, "create", "ada", "--role", "submitter", "--name", "scanner", **variables
        )
        assert (code, secret.startswith("fluoro_")) == (0, True), note
        file = tmp_path / "token"
        file.write_text(secret)
        code, _, note = await run(
            *fluoro, "list", FLUORO_ENDPOINT=target, FLUORO_TOKEN_FILE=str(file)
        )
        assert (code, "ROLE_MISSING" in note) == (3, True)
        _, table, _ = await run(*fluoro, "list", "--output", "json", **variables)
        assert "scanner" in table
        assert secret not in table
        name = json.loads(table)["tokens"][0]["name"]
        code, _, note = await run(*fluoro, "revoke", name, **variables)
        assert code == 0, note


@pytest.mark.parametrize("known", [True, False])
async def test_a_good_token_does_not_wait_behind_a_flood_of_bad_ones_from_another_address(
    database_url: str, known: bool
) -> None:
    ledger = Ledger(database_url)
    calls = LedgerCalls(ledger, threads=1)
    door = ServiceTokens(calls, cache_seconds=0.001)

    addresses = (f"ipv4:10.0.0.{number}:4711" for number in range(100))
    flood = next(addresses)
    away = next(one for one in addresses if lane(one) != lane(flood))

    def ask(token: str, peer: str) -> Any:
        caller = Caller(with_token(token), peer=peer)
        return asyncio.ensure_future(door.authenticate(caller))

    with ledger.connection() as connection:
        _, secret = create(connection, "ada", ["viewer"], creator="ledger")
    if known:
        await ask(secret, away)
    with (
        psycopg.connect(database_url) as holding,
        psycopg.connect(database_url, autocommit=True) as watching,
    ):
        holding.execute("LOCK TABLE tokens")
        bad = [ask(f"fluoro_{number:043}", flood) for number in range(100)]
        good = ask(secret, away)
        async with asyncio.timeout(30):
            while not watching.execute("SELECT FROM pg_locks WHERE NOT granted").rowcount:
                await asyncio.wait(bad, timeout=0.01)
    assert (await good).owner == "ada"
    assert sum(call.done() for call in bad) < 50
    await asyncio.wait(bad)
    assert {call.exception().reason for call in bad} == {"TOKEN_INVALID"}
    calls.close()
    ledger.close()
