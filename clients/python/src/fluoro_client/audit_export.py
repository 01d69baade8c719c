"""Events of the audit as repositories take them: FHIR R4 AuditEvent, DICOM audit messages. Pure.

FHIR follows IHE Basic Audit Log Patterns (BALP): the patterns Create, Read, Update, Delete and
Query, without a patient, whom Fluoro does not record. DICOM messages have the form of PS3.15 A.5.1.
Their events are Fluoro's own and not those of A.5.3, which name studies and patients.
"""

import base64
import json
import re
from typing import Any, Final, NamedTuple
from urllib.parse import unquote
from xml.sax.saxutils import quoteattr

from fluoro.v1.audit_service_pb2 import AuditEvent

BALP: Final = "https://profiles.ihe.net/ITI/BALP/StructureDefinition/IHE.BasicAudit."
DCM: Final = "http://dicom.nema.org/resources/ontology/DCM"
HL7: Final = "http://terminology.hl7.org/CodeSystem/"
PARTICIPATION: Final = f"{HL7}v3-ParticipationType"
METHODS: Final = "urn:fluoro:method"
"""The system of which a call's full name is a code."""


class _Kind(NamedTuple):
    """letter: of the action. interaction: FHIR's. client, server, user: what each takes part as."""

    pattern: str
    letter: str
    interaction: str
    client: tuple[str, str]
    server: tuple[str, str]
    user: str


_SOURCE, _DESTINATION = (DCM, "110153"), (DCM, "110152")
_KINDS: Final = {
    AuditEvent.ACTION_CREATE: _Kind("Create", "C", "create", _SOURCE, _DESTINATION, "AUT"),
    AuditEvent.ACTION_READ: _Kind("Read", "R", "read", _DESTINATION, _SOURCE, "IRCP"),
    AuditEvent.ACTION_UPDATE: _Kind("Update", "U", "update", _SOURCE, _DESTINATION, "AUT"),
    AuditEvent.ACTION_DELETE: _Kind(
        "Delete",
        "D",
        "delete",
        (DCM, "110150"),
        (f"{HL7}provenance-participant-type", "custodian"),
        "AUT",
    ),
    AuditEvent.ACTION_EXECUTE: _Kind("Query", "E", "search", _SOURCE, _DESTINATION, "IRCP"),
}
_ROLES: Final = {"jobs": ("20", "Job"), "blobs": ("4", "Domain Resource")}
"""Object roles of things; those of FHIR have DICOM's numbers."""
_TOKEN: Final = ("13", "Security Resource")
_OURS: Final = {"INTERNAL", "UNKNOWN", "DATA_LOSS"}
"""Outcomes that are faults of the service: serious failures. Other refusals are minor ones."""
_NOT_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def fhir_json(event: AuditEvent, source: str) -> str:
    """An AuditEvent of FHIR R4 as a line of NDJSON. source: address of the gateway."""
    return json.dumps(fhir(event, source), ensure_ascii=False, separators=(",", ":"))


def fhir(event: AuditEvent, source: str) -> dict[str, Any]:
    """The same as an object."""
    kind = _kind(event)
    is_query = event.action == AuditEvent.ACTION_EXECUTE
    resource: dict[str, Any] = {
        "resourceType": "AuditEvent",
        "id": event.name.removeprefix("auditEvents/"),
        "type": _coding(f"{HL7}audit-event-type", "rest"),
        "subtype": [
            _coding("http://hl7.org/fhir/restful-interaction", kind.interaction),
            *([_coding(METHODS, event.method)] if event.method else []),
        ],
        "action": kind.letter,
        "recorded": _time(event),
        "outcome": _outcome(event),
        "agent": _agents(event, kind, source),
        "source": {
            "observer": {"identifier": {"value": source}},
            "type": [_coding(f"{HL7}security-source-type", "4")],
        },
        "entity": _entities(event, is_query),
    }
    if event.outcome != "OK":
        resource["outcomeDesc"] = _description(event)
    # The patterns are about what went well, and about one thing.
    elif is_query or event.thing:
        resource["meta"] = {"profile": [f"{BALP}{kind.pattern}"]}
    return resource


def dicom_xml(event: AuditEvent, source: str) -> str:
    """An AuditMessage of DICOM PS3.15 A.5.1, in one line. source: address of the gateway."""
    kind, (address, is_ip) = _kind(event), _address(event.peer)
    event_id = _coded("EventID", "rest", f"{HL7}audit-event-type", "RESTful Operation")
    event_type = _coded("EventTypeCode", event.method, METHODS, event.method)
    failed = event.outcome != "OK"
    description = _element("EventOutcomeDescription", {}, _text(_description(event)))
    network = {"NetworkAccessPointID": address, "NetworkAccessPointTypeCode": "2"} if is_ip else {}
    application = _coded("RoleIDCode", "110150", "DCM", "Application")
    things = [_object(event.thing, *_thing(event.thing), event)] if event.thing else []
    return _element(
        "AuditMessage",
        {},
        _element(
            "EventIdentification",
            {
                "EventActionCode": kind.letter,
                "EventDateTime": _time(event),
                "EventOutcomeIndicator": _outcome(event),
            },
            event_id,
            *([event_type] if event.method else []),
            *([description] if failed else []),
        ),
        _element(
            "ActiveParticipant",
            {"UserID": event.principal or address, "UserIsRequestor": "true", **network},
            *(_coded("RoleIDCode", role, "urn:fluoro:role", role) for role in event.roles),
        ),
        _element("ActiveParticipant", {"UserID": source, "UserIsRequestor": "false"}, application),
        _element(
            "AuditSourceIdentification",
            {"AuditSourceID": source},
            _element("AuditSourceTypeCode", {"csd-code": "4"}),
        ),
        *things,
        _object(event.owner or "nobody", "owner", "6", event),
    )


def _agents(event: AuditEvent, kind: _Kind, source: str) -> list[dict[str, Any]]:
    address, is_ip = _address(event.peer)
    host = source.rpartition(":")[0] or source
    agents: list[dict[str, Any]] = [
        {
            "type": _concept(*kind.client),
            "who": {"identifier": {"value": address}, "display": event.user_agent or address},
            "requestor": not event.principal,
            "network": {"address": address, "type": "2" if is_ip else "5"},
        },
        {
            "type": _concept(*kind.server),
            "who": {"identifier": {"value": source}},
            "requestor": False,
            "network": {"address": host, "type": "1"},
        },
    ]
    if event.principal:
        user: dict[str, Any] = {
            "type": _concept(PARTICIPATION, kind.user),
            "who": {"identifier": {"value": event.principal}},
            "name": event.principal,
            "requestor": True,
        }
        if event.roles:
            user["role"] = [_concept("urn:fluoro:role", role) for role in event.roles]
        agents.append(user)
    return agents


def _entities(event: AuditEvent, is_query: bool) -> list[dict[str, Any]]:
    details = [
        {"type": name, "valueString": value}
        for name, value in (("how", event.how), ("calls", str(event.calls)))
        if value
    ]
    entities: list[dict[str, Any]] = []
    if is_query:
        # What was asked is not recorded, as it may name a patient; which call it was is.
        query = base64.b64encode(event.method.encode()).decode()
        role = _coding(f"{HL7}object-role", "24")
        entities.append({"type": _coding(f"{HL7}audit-entity-type", "2"), "role": role})
        entities[0]["query"] = query
    elif event.thing:
        _, role_code = _thing(event.thing)
        entities.append(
            {
                "what": {"identifier": {"value": event.thing}},
                "type": _coding(f"{HL7}audit-entity-type", "2"),
                # The patterns have no role for tokens; a resource is what comes closest.
                "role": _coding(f"{HL7}object-role", role_code if role_code == "20" else "4"),
            }
        )
    entities.append(
        {
            "what": {"identifier": {"value": event.owner or "nobody"}},
            "type": _coding(f"{HL7}audit-entity-type", "4"),
            "role": _coding(f"{HL7}object-role", "6"),
            "detail": details,
        }
    )
    return entities


def _kind(event: AuditEvent) -> _Kind:
    """An event from before actions were recorded executed something."""
    return _KINDS.get(event.action, _KINDS[AuditEvent.ACTION_EXECUTE])


def _thing(name: str) -> tuple[str, str]:
    """What a thing is, and its object role."""
    collection = name.partition("/")[0]
    return collection.removesuffix("s"), _ROLES.get(collection, _TOKEN)[0]


def _outcome(event: AuditEvent) -> str:
    return "0" if event.outcome == "OK" else "8" if event.outcome in _OURS else "4"


def _description(event: AuditEvent) -> str:
    times = f", {event.calls} calls" if event.calls > 1 else ""
    return f"{event.outcome} {event.reason}".strip() + times


def _time(event: AuditEvent) -> str:
    return event.time.ToJsonString()


def _address(peer: str) -> tuple[str, bool]:
    """Without scheme and port, and whether it is an IP address. gRPC writes `ipv6:%5B::1%5D:1`."""
    scheme, _, rest = peer.partition(":")
    if scheme not in {"ipv4", "ipv6"}:
        return peer or "unknown", False
    host = unquote(rest)
    if host.startswith("["):
        return host[1:].partition("]")[0], True
    return (host.partition(":")[0] if scheme == "ipv4" else host), True


def _coding(system: str, code: str) -> dict[str, str]:
    return {"system": system, "code": code}


def _concept(system: str, code: str) -> dict[str, Any]:
    return {"coding": [_coding(system, code)]}


def _coded(element: str, code: str, system: str, meaning: str) -> str:
    attributes = {"csd-code": code, "codeSystemName": system, "originalText": meaning}
    return _element(element, attributes)


def _object(id_: str, what: str, role: str, event: AuditEvent) -> str:
    details = {"how": event.how, "user_agent": event.user_agent, "calls": str(event.calls)}
    return _element(
        "ParticipantObjectIdentification",
        {
            "ParticipantObjectID": id_,
            "ParticipantObjectTypeCode": "2",
            # A blob is not among DICOM's roles.
            **({"ParticipantObjectTypeCodeRole": role} if what != "blob" else {}),
        },
        _coded("ParticipantObjectIDTypeCode", what, "urn:fluoro:thing", f"Fluoro {what}"),
        _element("ParticipantObjectName", {}, _text(id_)),
        *(
            _element(
                "ParticipantObjectDetail",
                {"type": name, "value": base64.b64encode(value.encode()).decode()},
            )
            for name, value in details.items()
            if value and what == "owner"
        ),
    )


def _element(name: str, attributes: dict[str, str], *content: str) -> str:
    """content: XML."""
    said = "".join(f" {key}={quoteattr(_plain(value))}" for key, value in attributes.items())
    return f"<{name}{said}>{''.join(content)}</{name}>" if content else f"<{name}{said}/>"


def _text(value: str) -> str:
    return _plain(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _plain(value: str) -> str:
    """Without what XML 1.0 cannot hold."""
    return _NOT_XML.sub("", value)
