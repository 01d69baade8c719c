"""Tests of your own code against the fake gateway: real gRPC, no servers, milliseconds.

`pytest test_with_the_fake.py`
"""

from pathlib import Path

import pytest
from fluoro.v1 import job_pb2
from fluoro_client import Client
from fluoro_client.testing import FakeGateway, Fault, File, Outcome


def report_of(client: Client, study: bytes, target: Path) -> Path:
    """The code under test: makes a report of a study. RuntimeError with what went wrong."""
    job = client.run("imaging-report", [study])
    if job.state != job_pb2.Job.STATE_SUCCEEDED:
        raise RuntimeError(job.reason)
    [found] = client.list_artifacts(job.name, roles=["report"])
    return client.download(found.artifact, target)


def test_it_writes_the_report(tmp_path: Path) -> None:
    with FakeGateway() as gateway, Client(gateway.endpoint, owner="ada") as client:
        report = File("report.pdf", b"%PDF-", "report", "application/pdf")
        gateway.script("report", Outcome(artifacts=[report]))
        assert report_of(client, b"a study", tmp_path / "a.pdf").read_bytes() == b"%PDF-"


def test_it_does_not_notice_a_ledger_that_is_away_for_a_moment(tmp_path: Path) -> None:
    with FakeGateway() as gateway, Client(gateway.endpoint, owner="ada") as client:
        gateway.fail("RunJob", Fault("LEDGER_UNAVAILABLE"), times=2)
        report = File("report.pdf", b"%PDF-", "report", "application/pdf")
        gateway.script("report", Outcome(artifacts=[report]))
        assert report_of(client, b"a study", tmp_path / "a.pdf").exists()
        assert len(gateway.jobs) == 1


def test_it_says_why_there_is_no_report(tmp_path: Path) -> None:
    with FakeGateway() as gateway, Client(gateway.endpoint, owner="ada") as client:
        gateway.script("render", Outcome("PIXELS_UNDECODABLE", "The file is damaged."))
        with pytest.raises(RuntimeError, match="STEP_FAILED"):
            report_of(client, b"a study", tmp_path / "a.pdf")
