"""Every call, for every role, on one's own and on others' jobs and blobs.

`make role-matrix` prints what came out.
"""

import asyncio
import importlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import psycopg
import structlog.testing
from fluoro.v1.blob_service_pb2 import UploadBlobHeader, UploadBlobRequest
from fluoro.v1.job_pb2 import Job, Step
from fluoro.v1.job_service_pb2 import ListJobsRequest, SubmitJobRequest
from gateway.identity.principal import Role
from gateway.identity.roles import NEEDED
from gateway.testing import Client, parse, refused, serving
from gateway.testing_identity import AUDIENCE, Issuer, issuing
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

PROTOS = Path(__file__).parents[2] / "protos/fluoro/v1"
OWNERS = ("ada", "bob")
ROLES = (None, *Role)
GOOD = "yes"
"""The call came past the door, whatever the servicer then made of it."""


def methods() -> Iterator[MethodDescriptor]:
    """Every call of every service in the protos."""
    pool = descriptor_pool.Default()  # type: ignore[no-untyped-call]  # has no types
    for path in sorted(PROTOS.glob("*.proto")):
        importlib.import_module(f"fluoro.v1.{path.stem}_pb2")
        file = pool.FindFileByName(f"fluoro/v1/{path.name}")
        for service in file.services_by_name.values():
            yield from service.methods


@dataclass(frozen=True)
class Things:
    """What an owner has."""

    job: str
    blob: str


class Scene:
    """A gateway that knows callers by their tokens, and two owners with a job and a blob each."""

    def __init__(self, client: Client, issuer: Issuer) -> None:
        self.client, self.issuer = client, issuer
        self.things: dict[str, Things] = {}

    def metadata(self, owner: str, role: Role | None, acts_for: str = "") -> Any:
        token = self.issuer.token(owner, roles=[role] if role else [])
        named = [("fluoro-owner", acts_for)] if acts_for else []
        return (("authorization", f"Bearer {token}"), *named)

    async def furnish(self, owner: str) -> None:
        metadata = self.metadata(owner, Role.SUBMITTER)
        parts = [
            UploadBlobRequest(header=UploadBlobHeader(size_bytes=1)),
            UploadBlobRequest(chunk=owner[:1].encode()),
        ]
        blob = (await self.client.blobs.UploadBlob(iter(parts), metadata=metadata)).blob.name
        request = SubmitJobRequest(job=a_job(blob))
        job = (await self.client.jobs.SubmitJob(request, metadata=metadata)).job.name
        self.things[owner] = Things(job, blob)

    async def outcome(self, method: MethodDescriptor, things: Things | None, metadata: Any) -> str:
        """`yes`; `no` for what the caller may not do, `404` for what is not there for it."""
        try:
            async with asyncio.timeout(30):
                await self.call(method, things, metadata)
        except grpc.aio.AioRpcError as error:
            code = parse(error).code.name
            if code == "NOT_FOUND" and is_about_things(method):
                return "404"
            return {"PERMISSION_DENIED": "no", "UNAUTHENTICATED": "who?"}.get(code, GOOD)
        return GOOD

    async def call(self, method: MethodDescriptor, things: Things | None, metadata: Any) -> None:
        """Makes the call, and reads one message of a stream."""
        kind = {
            (False, False): self.client.channel.unary_unary,
            (False, True): self.client.channel.unary_stream,
            (True, False): self.client.channel.stream_unary,
        }[method.client_streaming, method.server_streaming]
        call = kind(
            f"/{method.containing_service.full_name}/{method.name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        request: Any = a_request(method, things)
        sent = iter([request]) if method.client_streaming else request
        running: Any = call(sent, metadata=metadata)
        try:
            await (running.read() if method.server_streaming else running)
        finally:
            running.cancel()


def a_job(blob: str) -> Job:
    return Job(inputs=[blob], steps=[Step(name="a", inspect_dicom={})])


def a_request(method: MethodDescriptor, things: Things | None) -> Message:
    """A request about these things; what else it needs is left out."""
    request = GetMessageClass(method.input_type)()
    if things is not None:
        for field in method.input_type.fields:
            if is_job(field):
                getattr(request, field.name).CopyFrom(a_job(things.blob))
            elif field.name == "timeout":
                getattr(request, field.name).SetInParent()  # wait no time at all
            elif names_a_thing(field):
                blob = method.containing_service.name == "BlobService"
                setattr(request, field.name, things.blob if blob else things.job)
    return request


def is_job(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.full_name == "fluoro.v1.Job"


def names_a_thing(field: FieldDescriptor) -> bool:
    return field.type == FieldDescriptor.TYPE_STRING and field.name in {"name", "job"}


def is_about_things(method: MethodDescriptor) -> bool:
    """Whether it names what an owner has; pipelines are everybody's."""
    if method.containing_service.name not in {"JobService", "BlobService"}:
        return False
    return any(is_job(field) or names_a_thing(field) for field in method.input_type.fields)


@asynccontextmanager
async def scene(database_url: str, redis_url: str, blob_url: str) -> AsyncIterator[Scene]:
    with issuing() as issuer:
        async with serving(
            database_url,
            redis_url,
            blob_url,
            identity="jwt",
            jwt_issuer=issuer.url,
            jwt_audience=AUDIENCE,
            watch_bookmark_interval_seconds=0.1,
        ) as client:
            scene = Scene(client, issuer)
            for owner in OWNERS:
                await scene.furnish(owner)
            yield scene


def test_every_call_of_every_service_has_a_line_in_the_table_of_roles() -> None:
    assert {method.full_name for method in methods()} == set(NEEDED)


async def test_every_call_asks_for_its_role_and_crosses_owners_for_operators_alone(
    database_url: str, redis_url: str, blob_url: str
) -> None:
    wrong: list[str] = []
    lines = [
        f"{'own / of another / for another':30}" + "".join(f"{r or 'no role':18}" for r in ROLES)
    ]
    async with scene(database_url, redis_url, blob_url) as s:
        ada, bob = (s.things[owner] for owner in OWNERS)
        for method in methods():
            cells = []
            for role in ROLES:
                came = [await s.outcome(method, ada, s.metadata("ada", role))]
                if is_about_things(method):
                    came.append(await s.outcome(method, bob, s.metadata("ada", role)))
                came.append(await s.outcome(method, bob, s.metadata("ada", role, acts_for="bob")))
                cells.append(" / ".join(came))
                if came != expected(method, role):
                    wrong.append(f"{method.full_name} {role}: {came}")
            name = f"{method.containing_service.name}.{method.name}"
            lines.append(f"{name:30}" + "".join(f"{cell:18}" for cell in cells))
    print("\n".join(["", *lines]))  # noqa: T201 - what `make role-matrix` is for
    assert wrong == []


def expected(method: MethodDescriptor, role: Role | None) -> list[str]:
    """On one's own things, on those of another, and for another."""
    may = role in NEEDED[method.full_name]
    return [
        GOOD if may else "no",
        *(["404" if may else "no"] * is_about_things(method)),
        GOOD if may and role is Role.OPERATOR else "no",
    ]


async def test_what_an_operator_does_for_another_owner_is_theirs_and_written_down_first(
    database_url: str, redis_url: str, blob_url: str
) -> None:
    async with scene(database_url, redis_url, blob_url) as s:
        operator = s.metadata("ada", Role.OPERATOR, acts_for="bob")
        with structlog.testing.capture_logs() as logs:
            own = await s.client.jobs.ListJobs(
                ListJobsRequest(), metadata=s.metadata("ada", Role.OPERATOR)
            )
            others = await s.client.jobs.ListJobs(ListJobsRequest(), metadata=operator)
        assert [job.name for job in own.jobs] == [s.things["ada"].job]
        assert [job.name for job in others.jobs] == [s.things["bob"].job]
        row = ("ada", "jwt", "bob", "fluoro.v1.JobService.ListJobs")
        (line,) = (line for line in logs if line["event"] == "operator_acts")
        assert (line["principal"], line["how"], line["owner"], line["method"]) == row
        with psycopg.connect(database_url, autocommit=True) as connection:
            found = "SELECT principal, how, owner, method FROM audit WHERE principal <> owner"
            assert connection.execute(found).fetchall() == [row]
            connection.execute("ALTER TABLE audit RENAME TO gone")
        how = await refused(s.client.jobs.ListJobs(ListJobsRequest(), metadata=operator))
        assert how.code.name in {"INTERNAL", "UNAVAILABLE"}
