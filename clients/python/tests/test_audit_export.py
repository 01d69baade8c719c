"""What repositories take of the audit, judged by FHIR's own model and the schema of DICOM."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from fhir.resources.R4B.auditevent import AuditEvent as R4AuditEvent
from fluoro.v1.audit_service_pb2 import AuditEvent
from fluoro_client.audit_export import BALP, DCM, dicom_xml, fhir_json
from google.protobuf.timestamp_pb2 import Timestamp
from lxml import etree

SCHEMA = etree.RelaxNG(etree.parse(Path(__file__).with_name("audit_message.rng")))
GATEWAY = "fluoro.clinic.example:443"
JOB = "jobs/01a21a6e-6441-75ad-89ce-834abed0ccf9"
ACTIONS = {
    AuditEvent.ACTION_CREATE: ("Create", "create", "110153", "110152", "AUT"),
    AuditEvent.ACTION_READ: ("Read", "read", "110152", "110153", "IRCP"),
    AuditEvent.ACTION_UPDATE: ("Update", "update", "110153", "110152", "AUT"),
    AuditEvent.ACTION_DELETE: ("Delete", "delete", "110150", "custodian", "AUT"),
    AuditEvent.ACTION_EXECUTE: ("Query", "search", "110153", "110152", "IRCP"),
}


def event_of(**fields: Any) -> AuditEvent:
    given = {
        "name": "auditEvents/01a21a6e-6441-75ad-89ce-834abed0ccf8",
        "time": Timestamp(seconds=1_790_000_000, nanos=123_456_000),
        "principal": "ops",
        "how": "jwt",
        "roles": ["operator", "viewer"],
        "owner": "ada",
        "method": "fluoro.v1.JobService.GetJob",
        "action": AuditEvent.ACTION_READ,
        "thing": JOB,
        "peer": "ipv6:%5B2001:db8::1%5D:50312",
        "user_agent": "grpc-python/1.80",
        "outcome": "OK",
        "calls": 1,
    }
    return AuditEvent(**(given | fields))


NOBODY = {
    "principal": "",
    "how": "",
    "roles": [],
    "owner": "",
    "method": "",
    "thing": "",
    "peer": "unix:",
    "outcome": "UNAUTHENTICATED",
    "reason": "TOKEN_INVALID",
    "calls": 60,
}
EVENTS = [
    *(event_of(action=action) for action in ACTIONS),
    event_of(thing=JOB.replace("jobs", "blobs")),
    event_of(thing=JOB.replace("jobs", "tokens"), action=AuditEvent.ACTION_CREATE),
    event_of(thing=""),
    event_of(outcome="NOT_FOUND", reason="JOB_NOT_FOUND", calls=3),
    event_of(outcome="INTERNAL", reason="INTERNAL", user_agent='<&">', peer="ipv4:192.0.2.7"),
    event_of(action=AuditEvent.ACTION_UNSPECIFIED),
    event_of(**NOBODY),
]


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_is_an_audit_event_of_fhir(event: AuditEvent) -> None:
    line = fhir_json(event, GATEWAY)
    assert "\n" not in line
    resource = R4AuditEvent.model_validate_json(line)
    assert resource.recorded.isoformat() == "2026-09-21T14:13:20.123456+00:00"
    assert resource.id == event.name.removeprefix("auditEvents/")


@pytest.mark.parametrize("action", ACTIONS)
def test_what_went_well_follows_the_pattern_of_its_action(action: int) -> None:
    """The rules of IHE BALP's profiles, each of which says how often a slice comes."""
    pattern, interaction, client, server, user = ACTIONS[action]
    resource = json.loads(fhir_json(event_of(action=action), GATEWAY))
    assert resource["meta"]["profile"] == [BALP + pattern]
    assert resource["type"]["code"] == "rest"
    assert interaction in [coding["code"] for coding in resource["subtype"]]
    assert resource["action"] == ("E" if pattern == "Query" else pattern[0])
    assert resource["outcome"] == "0"
    agents = {agent["type"]["coding"][0]["code"]: agent for agent in resource["agent"]}
    assert set(agents) == {client, server, user}
    assert agents[client]["type"]["coding"][0]["system"] == DCM
    for end, address in ((client, "2001:db8::1"), (server, "fluoro.clinic.example")):
        assert agents[end]["network"]["address"] == address
        assert "identifier" in agents[end]["who"]
    assert agents[user]["requestor"] is True
    assert "network" not in agents[user]
    (data,) = [entity for entity in resource["entity"] if entity["type"]["code"] == "2"]
    if pattern == "Query":
        assert data["role"]["code"] == "24"
        assert base64.b64decode(data["query"]) == b"fluoro.v1.JobService.GetJob"
        assert "what" not in data
    else:
        assert data["role"]["code"] in {"3", "4", "20"}
        assert data["what"]["identifier"]["value"] == JOB


@pytest.mark.parametrize(
    ("fields", "outcome"),
    [({"outcome": "NOT_FOUND", "reason": "JOB_NOT_FOUND"}, "4"), ({"outcome": "INTERNAL"}, "8")],
)
def test_a_refusal_claims_no_pattern(fields: dict[str, str], outcome: str) -> None:
    resource = json.loads(fhir_json(event_of(**fields), GATEWAY))
    assert "meta" not in resource
    assert resource["outcome"] == outcome
    assert resource["outcomeDesc"] == " ".join(fields.values())


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_is_an_audit_message_of_dicom(event: AuditEvent) -> None:
    line = dicom_xml(event, GATEWAY)
    assert "\n" not in line
    message = etree.fromstring(line)
    SCHEMA.assertValid(message)
    head = message.find("EventIdentification")
    assert head.get("EventDateTime") == "2026-09-21T14:13:20.123456Z"
    things = [
        each.get("ParticipantObjectID")
        for each in message.findall("ParticipantObjectIdentification")
    ]
    assert things == [*([event.thing] if event.thing else []), event.owner or "nobody"]
    requestor = message.find("ActiveParticipant[@UserIsRequestor='true']")
    assert requestor.get("UserID") == (event.principal or "unix:")


def test_the_schema_refuses_what_is_no_audit_message() -> None:
    for before, after in (
        ('EventActionCode="R"', 'EventActionCode="X"'),
        ("<AuditSourceIdentification", "<AuditSource"),
        ('UserIsRequestor="true"', ""),
    ):
        line = dicom_xml(event_of(), GATEWAY).replace(before, after)
        line = (
            line.replace("</AuditSourceIdentification", "</AuditSource")
            if "Source" in after
            else line
        )
        assert not SCHEMA.validate(etree.fromstring(line))
