"""QIDO-RS (PS3.18 10.6): which instances a server has."""

import re
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urlencode

from fluoro.v1.dicomweb_pb2 import DicomwebQuery
from fluoro_jobs.errors import FluoroError, Reason

from dicom_worker.dicomweb.multipart import invalid
from dicom_worker.dicomweb.server import Server

MAX_INSTANCES: Final = 10_000
"""As many as a step may have inputs."""
PAGE: Final = 500
"""Matches asked for at a time."""
JSON: Final = "application/dicom+json"
PLAIN: Final = "/:@!$'(),;"
"""What a query may hold as it is (RFC 3986 3.4): Orthanc 1.10 decodes nothing in values."""
UID: Final = re.compile(r"[0-9]+(\.[0-9]+)*")
MAX_UID: Final = 64
STUDY, SERIES, SOP_INSTANCE = "0020000D", "0020000E", "00080018"
INSTANCE_NUMBER: Final = "00200013"
REFERENCE: Final = re.compile(
    r"dicomweb://([^/]+)/studies/([^/]+)(?:/series/([^/]+)(?:/instances/([^/]+))?)?"
)

Match = Mapping[str, Any]
"""A data set in DICOM JSON (PS3.18 annex F)."""


class Place(NamedTuple):
    """What a reference names. Empty: all that there is."""

    server: str
    study: str
    series: str = ""
    instance: str = ""

    @property
    def path(self) -> str:
        """Of its resource on the server."""
        named = (("studies", self.study), ("series", self.series), ("instances", self.instance))
        return "".join(f"/{kind}/{uid}" for kind, uid in named if uid)


class Listed(NamedTuple):
    """An instance that a server says it has. number: Instance Number; large if there is none."""

    place: Place
    number: int


def place_of(reference: str) -> Place:
    """What a reference names; the rules in dicomweb.proto let no other text through."""
    found = REFERENCE.fullmatch(reference)
    if found is None or any(len(uid or "") > MAX_UID for uid in found.groups()[1:]):
        raise FluoroError(Reason.INVALID_ARGUMENT, f"A UID has at most {MAX_UID} characters.")
    return Place(found[1], found[2], found[3] or "", found[4] or "")


def instances_of(server: Server, place: Place, most: int) -> list[Listed]:
    """The instances of a study or series; PACS_NOT_FOUND if there is none.

    FluoroError TOO_MANY_INPUTS if there are more than `most`; PACS_… as `Server` raises it.
    """
    if place.instance:
        return [Listed(place, 0)]
    found = []
    path = f"{place.path}/instances"
    for match in matches(server, path, {"includefield": SERIES}, SOP_INSTANCE, most):
        series = place.series or uid(match, SERIES)
        instance = uid(match, SOP_INSTANCE)
        found.append(Listed(Place(place.server, place.study, series, instance), number(match)))
    if not found:
        raise not_found()
    return found


def places_of(server: Server, query: DicomwebQuery) -> Iterator[Place]:
    """The studies that match a query, or the series of them if it names a modality.

    FluoroError PACS_NOT_FOUND if nothing does, and as in `instances_of`.
    """
    wanted = {
        "PatientID": query.patient_id,
        "AccessionNumber": query.accession_number,
        "StudyDate": query.study_date,
        "ModalitiesInStudy": query.modality,
    }
    parameters = {name: value for name, value in wanted.items() if value}
    found = False
    for match in matches(server, "/studies", parameters, STUDY, MAX_INSTANCES):
        study = Place(query.server, uid(match, STUDY))
        for place in series_of(server, study, query.modality) if query.modality else [study]:
            found = True
            yield place
    if not found:
        raise not_found()


def series_of(server: Server, study: Place, modality: str) -> Iterator[Place]:
    """The series of a study that are of this modality."""
    only = {"Modality": modality}
    for match in matches(server, f"{study.path}/series", only, SERIES, MAX_INSTANCES):
        yield Place(study.server, study.study, uid(match, SERIES))


def matches(
    server: Server, path: str, parameters: Mapping[str, str], key: str, most: int
) -> Iterator[Match]:
    """What matches, each once by the UID in attribute `key`, page by page.

    A server may give fewer than were asked for, so an empty page is the end; some know no pages, so
    a page with nothing new is, too.
    """
    seen: set[str] = set()
    offset = 0
    while True:
        asked = {**parameters, "limit": str(PAGE), "offset": str(offset)}
        answer = server.get(f"{path}?{urlencode(asked, safe=PLAIN, quote_via=quote)}", JSON)
        page = server.json(answer, over=too_many()) if answer.status == HTTPStatus.OK else None
        if page is None:
            return
        if not isinstance(page, list) or not all(isinstance(match, dict) for match in page):
            raise invalid("it is no list of matches")
        before = len(seen)
        for match in page:
            # What is stored while pages are asked for shifts the matches, so some come twice.
            if (found := uid(match, key)) in seen:
                continue
            seen.add(found)
            if len(seen) > most:
                raise too_many()
            yield match
        # Not PAGE: a server that gives fewer than asked for would have the next ones skipped.
        offset += len(page)
        if len(seen) == before:
            return


def uid(match: Match, tag: str) -> str:
    """A UID in a match. It becomes part of a URL, so nothing but a UID will do."""
    found = first(match, tag)
    if not isinstance(found, str) or len(found) > MAX_UID or not UID.fullmatch(found):
        raise invalid("a match has no UID, or one that is none")
    return found


def number(match: Match) -> int:
    """The Instance Number in a match. Some servers write numbers as strings."""
    found = first(match, INSTANCE_NUMBER)
    if isinstance(found, int | float) and abs(found) < 2**31:
        return int(found)
    text = found.strip() if isinstance(found, str) else ""
    # An instance without a number comes behind those that have one.
    return int(text) if re.fullmatch(r"[+-]?[0-9]{1,9}", text) else 2**31


def first(match: Match, tag: str) -> object:
    """The first value of an attribute; None if it has none."""
    element = match.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values[0] if isinstance(values, list) and values else None


def not_found() -> FluoroError:
    """The server has nothing of it."""
    return FluoroError(
        Reason.PACS_NOT_FOUND, "The server has no such instances. Correct the UIDs or the query."
    )


def too_many() -> FluoroError:
    """It is more than a step may fetch."""
    return FluoroError(
        Reason.TOO_MANY_INPUTS,
        f"The server lists more than {MAX_INSTANCES} instances, or more than an answer may hold. "
        "Fetch less at a time.",
    )
