"""Who did what: a row for each access and change, in the ledger before anything is served."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from fluoro.v1.audit_service_pb2 import AuditEvent, ListAuditEventsRequest
from fluoro.v1.blob_service_pb2 import (
    BeginUploadRequest,
    DownloadBlobRequest,
    GetBlobRequest,
    UploadBlobHeader,
    UploadBlobRequest,
)
from fluoro.v1.job_pb2 import Job, Step
from fluoro.v1.job_service_pb2 import (
    BatchCancelJobsRequest,
    BatchRetryJobsRequest,
    BatchSubmitJobsRequest,
    CancelJobRequest,
    CountJobsRequest,
    DeleteJobRequest,
    ExplainJobRequest,
    GetJobRequest,
    ListArtifactsRequest,
    ListInputsRequest,
    ListItemsRequest,
    ListJobsRequest,
    ListResultsRequest,
    ListTasksRequest,
    RetryJobRequest,
    RunJobRequest,
    SubmitJobRequest,
    WaitJobRequest,
    WatchJobRequest,
    WatchJobsRequest,
)
from fluoro.v1.pipeline_service_pb2 import ListPipelinesRequest
from fluoro.v1.token_service_pb2 import (
    ROLE_VIEWER,
    CreateTokenRequest,
    ListTokensRequest,
    RevokeTokenRequest,
    Token,
)
from fluoro_jobs.ledger import tokens
from fluoro_jobs.ledger.connection import Ledger
from fluoro_local.folders import free_port
from gateway.audit_kinds import KINDS
from gateway.identity.roles import NEEDED
from gateway.testing import Client, refused, serving
from google.protobuf.duration_pb2 import Duration

Row = tuple[str, str, str, str, str, str]


class Scene:
    """A gateway, a submitter and an operator."""

    def __init__(
        self, client: Client, port: int, database_url: str, secrets: dict[str, str]
    ) -> None:
        self.client, self._port = client, port
        self.database_url, self._secrets = database_url, secrets

    def by(self, who: str, acts_for: str = "") -> Any:
        named = [("fluoro-owner", acts_for)] if acts_for else []
        return {"metadata": (("authorization", f"Bearer {self._secrets[who]}"), *named)}

    def rows(self, columns: str = "principal, owner, method, action, thing, outcome") -> list[Row]:
        with psycopg.connect(self.database_url) as connection:
            return [
                tuple(v.rpartition(".")[2] if str(v).startswith("fluoro.") else v for v in row)
                for row in connection.execute(f"SELECT {columns} FROM audit ORDER BY time, id")
            ]

    async def fluoro(self, who: str, *words: str) -> str:
        """What the command prints."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from fluoro_client.entry import main; main()", *words),
            env=os.environ
            | {"FLUORO_ENDPOINT": f"127.0.0.1:{self._port}", "FLUORO_TOKEN": self._secrets[who]},
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await process.communicate()
        assert process.returncode == 0
        return output.decode()

    async def upload(self, content: bytes = b"a", **by: Any) -> str:
        parts = [UploadBlobRequest(header=UploadBlobHeader(size_bytes=len(content)))]
        parts.append(UploadBlobRequest(chunk=content))
        return str((await self.client.blobs.UploadBlob(iter(parts), **by)).blob.name)


@asynccontextmanager
async def scene(database_url: str, redis_url: str, blob_url: str) -> AsyncIterator[Scene]:
    ledger = Ledger(database_url)
    with ledger.connection() as connection:
        secrets = {
            owner: tokens.create(connection, owner, [role], creator="ledger")[1]
            for owner, role in (("ada", "submitter"), ("ops", "operator"), ("vic", "viewer"))
        }
    ledger.close()
    port = free_port()
    async with serving(
        database_url, redis_url, blob_url, identity="tokens", grpc_port=port
    ) as client:
        yield Scene(client, port, database_url, secrets)


def a_job(blob: str) -> Job:
    return Job(inputs=[blob], steps=[Step(name="a", inspect_dicom={})])


async def first_of(stream: Any) -> Any:
    """The first message; the stream is given up then."""
    message = await stream.read()
    stream.cancel()
    return message


def test_every_call_has_a_line_in_the_table_of_kinds() -> None:
    assert set(KINDS) == set(NEEDED)


async def upload_in_pieces(s: Scene, content: bytes, **by: Any) -> str:
    """In two streams, as an upload that broke off."""
    header = UploadBlobHeader(
        upload_id=str(uuid4()), size_bytes=len(content), sha256=sha256(content).digest()
    )
    await s.client.blobs.BeginUpload(
        BeginUploadRequest(upload_id=header.upload_id, header=header), **by
    )
    answer: Any = None
    for offset in (0, 1):
        header.offset = offset
        parts = [UploadBlobRequest(header=header)]
        parts.append(UploadBlobRequest(chunk=content[offset : offset + 1]))
        answer = await s.client.blobs.UploadBlob(iter(parts), **by)
    return str(answer.blob.name)


async def read_all(s: Scene, job: str, blob: str) -> None:
    """Every read there is, as ada."""
    jobs, ada = s.client.jobs, s.by("ada")
    reads: list[Awaitable[object]] = [
        jobs.GetJob(GetJobRequest(name=job), **ada),
        jobs.ListInputs(ListInputsRequest(job=job), **ada),
        jobs.ListTasks(ListTasksRequest(job=job), **ada),
        jobs.ListItems(ListItemsRequest(job=job), **ada),
        jobs.ListArtifacts(ListArtifactsRequest(job=job), **ada),
        jobs.ListResults(ListResultsRequest(job=job, step="a"), **ada),
        jobs.ExplainJob(ExplainJobRequest(name=job), **ada),
        jobs.WaitJob(WaitJobRequest(name=job, timeout=Duration()), **ada),
        first_of(jobs.WatchJob(WatchJobRequest(name=job), **ada)),
        first_of(s.client.blobs.DownloadBlob(DownloadBlobRequest(name=blob), **ada)),
        s.client.blobs.GetBlob(GetBlobRequest(name=blob), **ada),
        jobs.ListJobs(ListJobsRequest(), **ada),
        first_of(jobs.WatchJobs(WatchJobsRequest(), **ada)),
    ]
    await asyncio.gather(*reads)


async def test_every_read_has_one_row_that_says_who_and_of_which_thing(
    database_url: str, redis_url: str, blob_url: str
) -> None:
    async with scene(database_url, redis_url, blob_url) as s:
        blob = await s.upload(**s.by("ada"))
        request = SubmitJobRequest(job=a_job(blob))
        job = (await s.client.jobs.SubmitJob(request, **s.by("ada"))).job.name
        await read_all(s, job, blob)
        # Of these no row tells, unless an operator crosses to another owner.
        await s.client.jobs.CountJobs(CountJobsRequest(), **s.by("ada"))
        await s.client.pipelines.ListPipelines(ListPipelinesRequest(), **s.by("ada"))
        rows = s.rows()
        lists = ("Inputs", "Tasks", "Items", "Artifacts", "Results")
        of_job = ["GetJob", "ExplainJob", "WaitJob", "WatchJob", *(f"List{one}" for one in lists)]
        of_blob = ["GetBlob", "DownloadBlob"]
        assert sorted(row[2:] for row in rows if row[3] != "C") == sorted(
            [
                *((method, "R", job, "OK") for method in of_job),
                *((method, "R", blob, "OK") for method in of_blob),
                *((method, "E", "", "OK") for method in ("ListJobs", "WatchJobs")),
            ]
        )
        assert {row[:2] for row in rows} == {("ada", "ada")}
        how = set(s.rows("how, array_to_string(roles, '+'), calls"))
        assert how == {("token", "submitter", 1)}
        for peer, agent in s.rows("peer, agent"):
            assert peer.startswith("ipv4:127.0.0.1:")
            assert "grpc-python" in agent


async def test_every_change_has_a_row_for_each_thing_that_it_changed(
    database_url: str, redis_url: str, blob_url: str
) -> None:
    async with scene(database_url, redis_url, blob_url) as s:
        jobs, ada, ops = s.client.jobs, s.by("ada"), s.by("ops")
        blob = await s.upload(**ada)
        other = await upload_in_pieces(s, b"xy", **ada)
        request = SubmitJobRequest(job=a_job(blob), request_id="once")
        job = (await jobs.SubmitJob(request, **ada)).job.name
        await jobs.SubmitJob(request, **ada)
        run = RunJobRequest(submit=SubmitJobRequest(job=a_job(blob)))
        ran = (await first_of(jobs.RunJob(run, **ada))).snapshot.name
        await jobs.CountJobs(CountJobsRequest(), **s.by("ops", "ada"))
        await jobs.CancelJob(CancelJobRequest(name=job), **s.by("ops", "ada"))
        await jobs.RetryJob(RetryJobRequest(name=job), **ada)
        batch = BatchSubmitJobsRequest(requests=[SubmitJobRequest(job=a_job(blob)), request])
        new = (await jobs.BatchSubmitJobs(batch, **ada)).outcomes[0].job.name
        await jobs.BatchCancelJobs(BatchCancelJobsRequest(filter="*"), **ada)
        await jobs.BatchRetryJobs(BatchRetryJobsRequest(filter="*", validate_only=True), **ada)
        await jobs.DeleteJob(DeleteJobRequest(name=job), **ada)
        # Of these, one is gone and one is somebody else's.
        for name, by in ((job, ada), (ran, s.by("ops", "bob"))):
            await jobs.DeleteJob(DeleteJobRequest(name=name, allow_missing=True), **by)
        wanted = CreateTokenRequest(token=Token(owner="bob", roles=[ROLE_VIEWER]))
        token = (await s.client.tokens.CreateToken(wanted, **ops)).token.name
        await s.client.tokens.ListTokens(ListTokensRequest(), **ops)
        await s.client.tokens.RevokeToken(RevokeTokenRequest(name=token), **ops)
        assert sorted(s.rows("principal, owner, method, action, thing")) == sorted(
            [
                ("ada", "ada", "BeginUpload", "C", ""),
                *(("ada", "ada", "UploadBlob", "C", one) for one in (blob, "", other)),
                *[("ada", "ada", "SubmitJob", "C", job)] * 2,
                ("ada", "ada", "RunJob", "C", ran),
                ("ops", "ada", "CountJobs", "E", ""),
                ("ops", "ada", "CancelJob", "U", job),
                ("ada", "ada", "RetryJob", "U", job),
                *(("ada", "ada", "BatchSubmitJobs", "C", one) for one in (new, job)),
                *(("ada", "ada", "BatchCancelJobs", "U", one) for one in (job, ran, new)),
                ("ada", "ada", "BatchRetryJobs", "U", ""),
                ("ada", "ada", "DeleteJob", "D", job),
                ("ada", "ada", "DeleteJob", "D", ""),
                ("ops", "bob", "DeleteJob", "D", ""),
                ("ops", "ops", "CreateToken", "C", token),
                ("ops", "ops", "ListTokens", "E", ""),
                ("ops", "ops", "RevokeToken", "U", token),
            ]
        )


async def test_what_cannot_be_written_down_is_neither_done_nor_served(
    database_url: str, redis_url: str, blob_url: str
) -> None:
    def state(s: Scene) -> list[Any]:
        with psycopg.connect(s.database_url) as connection:
            statement = (
                "SELECT (SELECT count(*) FROM jobs), (SELECT count(*) FROM blobs),"
                " (SELECT count(*) FROM tokens), (SELECT count(*) FROM tokens WHERE revoke_time"
                " IS NOT NULL), array(SELECT (id, state, owner)::text FROM jobs ORDER BY 1)"
            )
            return connection.execute(statement).fetchall()

    async with scene(database_url, redis_url, blob_url) as s:
        jobs, ada, ops = s.client.jobs, s.by("ada"), s.by("ops")
        blob = await s.upload(**ada)
        job, ended = [
            (await jobs.SubmitJob(SubmitJobRequest(job=a_job(blob)), **ada)).job.name
            for _ in range(2)
        ]
        await jobs.CancelJob(CancelJobRequest(name=ended), **ada)
        wanted = CreateTokenRequest(token=Token(owner="bob", roles=[ROLE_VIEWER]))
        token = (await s.client.tokens.CreateToken(wanted, **ops)).token.name
        before = state(s)
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("ALTER TABLE audit RENAME TO gone")
        submit = SubmitJobRequest(job=a_job(blob))
        for call in (
            s.upload(b"other", **ada),
            jobs.SubmitJob(submit, **ada),
            first_of(jobs.RunJob(RunJobRequest(submit=submit), **ada)),
            jobs.BatchSubmitJobs(BatchSubmitJobsRequest(requests=[submit]), **ada),
            jobs.CancelJob(CancelJobRequest(name=job), **ada),
            jobs.BatchCancelJobs(BatchCancelJobsRequest(filter="*"), **ada),
            jobs.RetryJob(RetryJobRequest(name=ended), **ada),
            jobs.BatchRetryJobs(BatchRetryJobsRequest(filter="*"), **ada),
            jobs.DeleteJob(DeleteJobRequest(name=ended), **ada),
            s.client.tokens.CreateToken(wanted, **ops),
            s.client.tokens.RevokeToken(RevokeTokenRequest(name=token), **ops),
            jobs.GetJob(GetJobRequest(name=job), **ada),
            first_of(jobs.WatchJob(WatchJobRequest(name=job), **ada)),
            first_of(s.client.blobs.DownloadBlob(DownloadBlobRequest(name=blob), **ada)),
            jobs.CountJobs(CountJobsRequest(), **s.by("ops", "ada")),
        ):
            assert (await refused(call)).code.name in {"INTERNAL", "UNAVAILABLE"}
        await jobs.CountJobs(CountJobsRequest(), **ada)  # which has no row
        assert state(s) == before
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("ALTER TABLE gone RENAME TO audit")
        await jobs.CancelJob(CancelJobRequest(name=job), **ada)


async def test_refusals_are_counted_and_a_flood_of_unknown_callers_makes_few_rows(
    database_url: str, redis_url: str, blob_url: str
) -> None:
    theirs = "jobs/00000000-0000-7000-8000-000000000001"
    async with scene(database_url, redis_url, blob_url) as s:
        jobs, vic = s.client.jobs, s.by("vic")
        for _ in range(3):
            await refused(jobs.GetJob(GetJobRequest(name=theirs), **vic))
            await refused(jobs.CancelJob(CancelJobRequest(name=theirs), **vic))
            await refused(jobs.ListJobs(ListJobsRequest(), **s.by("vic", "ada")))
        await refused(jobs.GetJob(GetJobRequest(name="jobs/Doe^John"), **vic))
        for number in range(60):
            bad = {"metadata": (("authorization", f"Bearer fluoro_{number}"),)}
            call = (jobs.GetJob, jobs.ListJobs)[number % 2]
            request = (GetJobRequest(name=theirs), ListJobsRequest())[number % 2]
            await refused(call(request, **bad))
            await refused(call(request))
    # A gateway that stops writes down what it has counted.
    columns = "principal, owner, method, thing, outcome, reason, calls"
    assert sorted(s.rows(columns)) == [
        ("", "", "", "", "UNAUTHENTICATED", "CREDENTIALS_MISSING", 60),
        ("", "", "", "", "UNAUTHENTICATED", "TOKEN_INVALID", 60),
        ("vic", "ada", "ListJobs", "", "PERMISSION_DENIED", "ROLE_MISSING", 3),
        ("vic", "vic", "CancelJob", "", "PERMISSION_DENIED", "ROLE_MISSING", 3),
        ("vic", "vic", "GetJob", "", "INVALID_ARGUMENT", "INVALID_ARGUMENT", 1),
        ("vic", "vic", "GetJob", theirs, "NOT_FOUND", "JOB_NOT_FOUND", 3),
    ]


async def test_rows_are_never_changed(database_url: str, redis_url: str, blob_url: str) -> None:
    async with scene(database_url, redis_url, blob_url) as s:
        await s.client.jobs.ListJobs(ListJobsRequest(), **s.by("ada"))
    with psycopg.connect(database_url, autocommit=True) as connection:
        for change in ("DELETE FROM audit", "UPDATE audit SET owner = ''", "TRUNCATE audit"):
            with pytest.raises(psycopg.errors.RaiseException, match="never changed"):
                connection.execute(change)


async def test_reads_that_come_together_share_a_transaction(
    database_url: str, redis_url: str, blob_url: str
) -> None:
    async with scene(database_url, redis_url, blob_url) as s:
        calls = (s.client.jobs.ListJobs(ListJobsRequest(), **s.by("ada")) for _ in range(240))
        await asyncio.gather(*calls)
    times = [time for (time,) in s.rows("time")]
    assert len(times) == 240
    assert len(set(times)) < 160


async def test_operators_name_an_owner_in_a_filter_and_others_only_themselves(
    database_url: str, redis_url: str, blob_url: str
) -> None:
    async with scene(database_url, redis_url, blob_url) as s:
        ada, ops, vic = (s.by(who) for who in ("ada", "ops", "vic"))
        request = SubmitJobRequest(job=a_job(await s.upload(**ada)))
        name = (await s.client.jobs.SubmitJob(request, **ada)).job.name

        async def listed(text: str, by: Any) -> list[str]:
            answer = await s.client.jobs.ListJobs(ListJobsRequest(filter=text), **by)
            return [job.name for job in answer.jobs]

        assert await listed('owner = "ada" AND state = PENDING', ops) == [name]
        assert await listed("state = PENDING owner=ada", ops) == [name]
        assert await listed("owner = ada", ada) == [name]
        assert await listed("state = PENDING", ops) == [], "these are the operator's own"
        for text in ("NOT owner = ada", 'owner = "ada" OR state = PENDING', "(owner = ada)"):
            asked = s.client.jobs.ListJobs(ListJobsRequest(filter=text), **ops)
            assert (await refused(asked)).reason == "FILTER_INVALID", "or it would find nothing"
        told = await refused(s.client.jobs.ListJobs(ListJobsRequest(filter="owner = ada"), **vic))
        assert told.reason == "ROLE_MISSING"
        request = BatchCancelJobsRequest(filter="owner = ada")
        assert (await refused(s.client.jobs.BatchCancelJobs(request, **vic))).reason
        # The metadata is no way past the owner that a filter names, nor the other way round.
        for who, in_metadata, in_filter, reason in (
            (ops, "vic", "ada", "INVALID_ARGUMENT"),
            (ops, "ops", "ada", "INVALID_ARGUMENT"),
            (vic, "vic", "ada", "ROLE_MISSING"),
            (vic, "ada", "vic", "ROLE_MISSING"),
        ):
            both = {"metadata": (*who["metadata"], ("fluoro-owner", in_metadata))}
            assert (await refused(listed(f"owner = {in_filter}", both))).reason == reason
        same = {"metadata": (*ops["metadata"], ("fluoro-owner", "ada"))}
        assert await listed("owner = ada", same) == [name]
    crossed = [owner for principal, owner, *_ in s.rows() if principal == "ops" != owner]
    assert crossed == ["ada"] * 3


@pytest.mark.parametrize("method", ["ListJobs", "CountJobs", "BatchCancelJobs", "BatchRetryJobs"])
async def test_no_filling_hides_the_owner_that_a_filter_names(
    database_url: str, redis_url: str, blob_url: str, method: str
) -> None:
    unknown_field = b"\xca>" + b"\x80\x80\x04" + bytes(2**16)
    request = ListJobsRequest(filter="owner = ada").SerializeToString()
    if method != "ListJobs":
        request = CountJobsRequest(filter="owner = ada").SerializeToString()
    async with scene(database_url, redis_url, blob_url) as s:
        call = s.client.channel.unary_unary(f"/fluoro.v1.JobService/{method}")
        told = await refused(call(request + unknown_field, **s.by("ops")))
    assert told.reason == "MESSAGE_TOO_LARGE"


async def test_operators_list_and_export_what_was_recorded(
    database_url: str, redis_url: str, blob_url: str
) -> None:
    async with scene(database_url, redis_url, blob_url) as s:
        blob = await s.upload(**s.by("ada"))
        for _ in range(5):
            await s.client.blobs.GetBlob(GetBlobRequest(name=blob), **s.by("ada"))
        request = ListAuditEventsRequest(filter=f'blob = "{blob}"', page_size=4, order_by="time")
        denied = await refused(s.client.audit.ListAuditEvents(request, **s.by("ada")))
        assert denied.reason == "ROLE_MISSING"
        events: list[AuditEvent] = []
        while not events or request.page_token:
            page = await s.client.audit.ListAuditEvents(request, **s.by("ops"))
            events += page.events
            request.page_token = page.next_page_token
        assert [event.action for event in events] == [AuditEvent.ACTION_CREATE] + [
            AuditEvent.ACTION_READ
        ] * 5
        assert {(e.principal, e.how, e.owner, e.thing, e.outcome) for e in events} == {
            ("ada", "token", "ada", blob, "OK")
        }
        assert events[0].method == "fluoro.v1.BlobService.UploadBlob"
        assert list(events[0].roles) == ["submitter"]
        bad = ListAuditEventsRequest(filter="labels.a = b")
        answer = await refused(s.client.audit.ListAuditEvents(bad, **s.by("ops")))
        assert answer.reason == "FILTER_INVALID"
        for form, marks in (
            (("--export", "fhir"), ('"resourceType":"AuditEvent"', blob, "IHE.BasicAudit.Read")),
            (("--export", "dicom"), ("<AuditMessage>", blob, 'UserID="ada"')),
            (("--output", "json"), ('"principal": "ada"', blob, "ACTION_READ")),
            ((), ("GetBlob", blob, "token")),
        ):
            words = ("audit", "--filter", f'blob = "{blob}" AND action = READ', *form)
            output = await s.fluoro("ops", *words)
            assert all(mark in output for mark in marks), output
            assert output.count(blob) >= 5
            if form:
                assert len(output.splitlines()) == 5
        # Refusals may be written by now or not.
        lists = [row for row in s.rows() if row[2] == "ListAuditEvents" and row[-1] == "OK"]
        assert lists == [("ops", "ops", "ListAuditEvents", "E", "", "OK")] * (2 + 4)
