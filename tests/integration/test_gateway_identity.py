"""Callers prove who they are with tokens of an issuer, or are refused with a reason."""

import asyncio
import base64
import hashlib
import hmac
import json
import os
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fluoro.v1.job_service_pb2 import ListJobsRequest, WatchJobsRequest
from gateway.identity.workloads import KUBERNETES
from gateway.testing import Client, Refused, parse, refused, serving
from gateway.testing_identity import AUDIENCE, Issuer, issuing
from grpc.aio import AioRpcError
from pydantic import ValidationError


@asynccontextmanager
async def gateway(
    database_url: str, redis_url: str, blob_url: str, issuer: Issuer, **settings: Any
) -> AsyncIterator[Client]:
    fields = {
        "identity": "jwt",
        "jwt_issuer": issuer.url,
        "jwt_audience": AUDIENCE,
        "role_bindings": "*=viewer",
        **settings,
    }
    async with serving(database_url, redis_url, blob_url, **fields) as client:
        yield client


def with_token(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


async def list_jobs(client: Client, token: str) -> None:
    await client.jobs.ListJobs(ListJobsRequest(), metadata=with_token(token))


async def told(client: Client, token: str) -> Refused | None:
    """The refusal; None if the token was taken."""
    try:
        await list_jobs(client, token)
    except AioRpcError as error:
        return parse(error)
    return None


def unsigned(issuer: Issuer) -> str:
    _, body, _ = issuer.token().split(".")
    return f"{part({'alg': 'none', 'kid': 'first'})}.{body}."


def signed_with_the_public_key(issuer: Issuer) -> str:
    """HS256 with the public key as its secret: taken where the token chooses the algorithm."""
    _, body, _ = issuer.token().split(".")
    secret = (
        issuer.keys["first"]
        .public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    text = f"{part({'alg': 'HS256', 'kid': 'first'})}.{body}"
    return f"{text}.{encoded(hmac.digest(secret, text.encode(), hashlib.sha256))}"


def of_another_key(issuer: Issuer) -> str:
    other = Issuer()
    other.url = issuer.url
    return other.token()


def part(header: dict[str, str]) -> str:
    return encoded(json.dumps(header).encode())


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


BAD: dict[str, tuple[Callable[[Issuer], str], str]] = {
    "expired": (lambda i: i.token(exp=int(time.time()) - 60), "TOKEN_EXPIRED"),
    "until the end of time": (lambda i: i.token(exp=10**400), "TOKEN_INVALID"),
    "without an end": (lambda i: i.token(exp=None), "TOKEN_INVALID"),
    "for another audience": (lambda i: i.token(aud="else"), "TOKEN_INVALID"),
    "for nobody": (lambda i: i.token(aud=None), "TOKEN_INVALID"),
    "of another issuer": (lambda i: i.token(iss="https://else"), "TOKEN_INVALID"),
    "not valid yet": (lambda i: i.token(nbf=int(time.time()) + 60), "TOKEN_INVALID"),
    "not signed": (unsigned, "TOKEN_INVALID"),
    "signed with the public key as a secret": (signed_with_the_public_key, "TOKEN_INVALID"),
    "signed with another key": (of_another_key, "TOKEN_INVALID"),
    "of an owner that is none": (lambda i: i.token("Ada Lovelace"), "TOKEN_INVALID"),
    "no token": (lambda _: "x.y.z", "TOKEN_INVALID"),
    "empty": (lambda _: "", "TOKEN_INVALID"),
}


async def test_a_token_that_is_no_good_is_refused_with_a_reason_and_not_quoted(
    database_url: str, redis_url: str, blob_url: str
) -> None:
    with issuing() as issuer:
        async with gateway(database_url, redis_url, blob_url, issuer) as client:
            await list_jobs(client, issuer.token())
            for name, (make, reason) in BAD.items():
                token = make(issuer)
                how = await refused(list_jobs(client, token))
                assert (name, how.code.name, how.reason) == (name, "UNAUTHENTICATED", reason)
                assert not any(piece and piece in how.message for piece in token.split("."))
            how = await refused(client.jobs.ListJobs(ListJobsRequest()))
            assert (how.code.name, how.reason) == ("UNAUTHENTICATED", "CREDENTIALS_MISSING")


async def test_roles_come_from_the_token_and_from_the_settings(
    database_url: str, redis_url: str, blob_url: str
) -> None:
    with issuing() as issuer:
        async with gateway(
            database_url,
            redis_url,
            blob_url,
            issuer,
            role_bindings="grace=viewer+submitter",
            jwt_roles_claim="realm_access.roles",
        ) as client:
            await list_jobs(client, issuer.token("grace"))
            await list_jobs(client, issuer.token(realm_access={"roles": ["other", "viewer"]}))
            how = await refused(list_jobs(client, issuer.token(realm_access={"roles": 7})))
            assert (how.code.name, how.reason) == ("PERMISSION_DENIED", "ROLE_MISSING")
            assert "needs the role operator or submitter or viewer" in how.message


async def test_a_service_account_of_kubernetes_is_an_owner(
    database_url: str, redis_url: str, blob_url: str, tmp_path: Any
) -> None:
    (tmp_path / "token").write_text("of-the-pod\n")
    with issuing() as issuer:
        async with gateway(
            database_url,
            redis_url,
            blob_url,
            issuer,
            role_bindings="imaging.reporter=viewer",
            jwt_keys=f"{issuer.url}/keys",
            jwt_fetch_token_file=str(tmp_path / "token"),
        ) as client:

            def token(namespace: str, name: str) -> str:
                said = {"namespace": namespace, "serviceaccount": {"name": name}}
                account = f"system:serviceaccount:{namespace}:{name}"
                return issuer.token(account, aud=[AUDIENCE, "else"], **{KUBERNETES: said})

            await list_jobs(client, token("imaging", "reporter"))
            assert (await refused(list_jobs(client, token("a", "b")))).reason == "ROLE_MISSING"
            called_so = issuer.token("system:serviceaccount:imaging:reporter")
            assert (await refused(list_jobs(client, called_so))).reason == "TOKEN_INVALID"
        assert issuer.requests == [("/keys", "Bearer of-the-pod")]


async def test_new_keys_are_found_and_those_that_are_known_outlast_an_issuer_that_is_away(
    database_url: str, redis_url: str, blob_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.identity.key_set.AGAIN_SECONDS", 0.1)

    with issuing() as issuer:
        async with gateway(database_url, redis_url, blob_url, issuer) as client:
            issuer.add_key("second", "ES256")
            token = issuer.token(key_id="second")
            async with asyncio.timeout(30):
                while (how := await told(client, token)) is not None:
                    # It may be the moment in which what is not here is known not to exist.
                    assert how.reason in {"IDENTITY_UNAVAILABLE", "TOKEN_INVALID"}
            issuer.away = True
            issuer.add_key("third")
            before = len(issuer.requests)
            async with asyncio.timeout(30):
                while True:
                    how = await told(client, issuer.token(key_id="third"))
                    assert how is not None
                    if len(issuer.requests) > before + 1 and how.reason == "IDENTITY_UNAVAILABLE":
                        break
            assert (how.code.name, how.retry_seconds) == ("UNAVAILABLE", 1)
            await list_jobs(client, issuer.token("bob", key_id="first"))


async def test_a_gateway_starts_without_its_issuer_and_says_what_it_waits_for(
    database_url: str, redis_url: str, blob_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.identity.key_set.AGAIN_SECONDS", 0.1)
    with issuing() as issuer:
        issuer.away = True
        async with gateway(database_url, redis_url, blob_url, issuer) as client:
            how = await refused(list_jobs(client, issuer.token()))
            assert (how.code.name, how.reason) == ("UNAVAILABLE", "IDENTITY_UNAVAILABLE")
            issuer.away = False
            async with asyncio.timeout(30):
                while (how := await told(client, issuer.token())) is not None:
                    assert how.reason == "IDENTITY_UNAVAILABLE"


async def test_a_stream_ends_when_the_token_it_began_with_expires(
    database_url: str, redis_url: str, blob_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.identity.bearer.LEEWAY_SECONDS", 0)
    with issuing() as issuer:
        async with gateway(database_url, redis_url, blob_url, issuer) as client:
            token = issuer.token(exp=int(time.time()) + 3)
            watch = client.jobs.WatchJobs(WatchJobsRequest(), metadata=with_token(token))

            async def read() -> None:
                async for _ in watch:
                    pass

            async with asyncio.timeout(30):
                how = await refused(read())
            assert (how.code.name, how.reason) == ("UNAUTHENTICATED", "TOKEN_EXPIRED")


@pytest.fixture
def provider() -> Iterator[str]:
    """URL of an OpenID Connect provider that others wrote."""
    command = [sys.executable, "-m", "oidc_provider_mock", "--port", "0"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:
        try:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            yield next(found[0] for line in lines if (found := re.search(r"http://[^\s/]+", line)))
        finally:
            process.kill()


async def test_an_openid_provider_that_is_not_ours_is_understood(
    database_url: str, redis_url: str, blob_url: str, provider: str
) -> None:
    token = await asyncio.to_thread(id_token, provider)
    async with serving(
        database_url,
        redis_url,
        blob_url,
        identity="jwt",
        jwt_issuer=jwt.decode(token, options={"verify_signature": False})["iss"],
        jwt_audience=AUDIENCE,
        role_bindings="ada=viewer",
    ) as client:
        await list_jobs(client, token)
        how = await refused(list_jobs(client, token[:-8] + "AAAAAAAA"))
        assert how.reason == "TOKEN_INVALID"


def id_token(url: str) -> str:
    """The token of a user who signs in at the provider (OpenID Connect Core 1.0, section 3.1)."""
    back = "http://localhost/back"
    query = urllib.parse.urlencode(
        {
            "client_id": AUDIENCE,
            "redirect_uri": back,
            "response_type": "code",
            "scope": "openid",
            "state": "s",
        }
    )

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: Any) -> None:
            """Stays where it is: the answer's address has the code."""

    opener = urllib.request.build_opener(Stay)
    try:
        opener.open(f"{url}/oauth2/authorize?{query}", data=b"sub=ada", timeout=20)
    except urllib.error.HTTPError as answer:
        (code,) = urllib.parse.parse_qs(urllib.parse.urlsplit(answer.headers["location"]).query)[
            "code"
        ]
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": back,
        "client_id": AUDIENCE,
        "client_secret": "any",
    }
    body = urllib.parse.urlencode(form).encode()
    with opener.open(f"{url}/oauth2/token", data=body, timeout=20) as response:
        return str(json.load(response)["id_token"])


@pytest.mark.parametrize("host", ["0.0.0.0", "10.1.2.3", "gateway", "::"])
async def test_a_gateway_that_asks_nobody_refuses_to_serve_more_than_its_own_machine(
    database_url: str, redis_url: str, blob_url: str, host: str
) -> None:
    with pytest.raises(ValidationError, match="none lets everyone in"):
        async with serving(database_url, redis_url, blob_url, grpc_host=host, identity="none"):
            pass


async def test_a_believed_caller_is_no_operator(
    database_url: str, redis_url: str, blob_url: str
) -> None:
    async with serving(
        database_url, redis_url, blob_url, identity="trusted-metadata", single_owner=""
    ) as client:
        await client.jobs.ListJobs(ListJobsRequest(), metadata=(("fluoro-owner", "ann"),))
        how = await refused(client.jobs.ListJobs(ListJobsRequest()))
        assert how.reason == "OWNER_MISSING"
