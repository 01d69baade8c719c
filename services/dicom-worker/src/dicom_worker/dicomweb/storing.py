"""STOW-RS (PS3.18 10.5): instances to a server, and what it says of each."""

from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Final, NamedTuple

from fluoro_jobs.errors import FluoroError, Reason

from dicom_worker.dicomweb.multipart import body_of, invalid, new_boundary
from dicom_worker.dicomweb.search import JSON, first
from dicom_worker.dicomweb.server import Server, refusal, unavailable

REFERENCED_SEQUENCE, FAILED_SEQUENCE = "00081199", "00081198"
INSTANCE_UID: Final = "00081155"
WARNING_REASON, FAILURE_REASON = "00081196", "00081197"
ANSWERED: Final = frozenset(
    (
        HTTPStatus.OK,
        HTTPStatus.CREATED,
        HTTPStatus.ACCEPTED,
        HTTPStatus.NO_CONTENT,
        HTTPStatus.CONFLICT,
    )
)
"""Statuses with an answer about each instance (PS3.18 table 10.5.3-1)."""
TO_HALVE: Final = frozenset((HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.INTERNAL_SERVER_ERROR))
"""Statuses that may be about one instance among others: one that is too large, or is too much."""
DUPLICATES: Final = frozenset((0x0111, 0xB00E))
"""Failure Reasons of an instance that is there already: PS3.7 C.5.5, and one that some give."""
MEANINGS: Final = (
    (range(0x0110, 0x0111), "processing failure"),
    (range(0x0122, 0x0123), "it does not take this SOP Class"),
    (range(0x0124, 0x0125), "not authorized"),
    (range(0xA700, 0xA800), "out of resources"),
    (range(0xA900, 0xAA00), "the data set does not match its SOP Class"),
    (range(0xC122, 0xC123), "it does not take this Transfer Syntax"),
    (range(0xC000, 0xD000), "it cannot understand it"),
)
"""Failure Reasons (PS3.18 table 10.5.3-2), the first that holds one counts."""


class Instance(NamedTuple):
    """A file to store, with the UIDs in it: SOP Class, SOP Instance, study and series."""

    file: Path
    sop_class: str
    uid: str
    study: str
    series: str


class Outcome(NamedTuple):
    """What a server says of one instance. warning: 0 if there is none."""

    stored: bool
    failure: int = 0
    warning: int = 0


def store(
    server: Server, batch: Sequence[Instance]
) -> Iterator[tuple[Instance, Outcome | FluoroError]]:
    """What the server says of each instance, or that it says nothing of it.

    A request that it cannot take is sent again in halves. FluoroError PACS_UNAVAILABLE,
    PACS_REFUSED, PACS_ANSWER_INVALID about all that was not told.
    """
    boundary = new_boundary()
    size, body = body_of([instance.file for instance in batch], boundary)
    headers = {
        "Accept": JSON,
        "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
        "Content-Length": str(size),
    }
    answer = server.ask("POST", "/studies", headers, body, tells=TO_HALVE)
    if answer.status in TO_HALVE and len(batch) > 1:
        server.close()
        # One instance may be what the server fails on. Halves find it, and the others are stored.
        half = len(batch) // 2
        yield from store(server, batch[:half])
        yield from store(server, batch[half:])
        return
    if answer.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        server.close()
        yield batch[0], unavailable(f"it answered {answer.status}")
        return
    if answer.status not in ANSWERED:
        server.close()
        raise refusal(answer.status)
    told = outcomes(server.json(answer, over=invalid("it is too large")))
    untold = invalid("it does not say what became of the instance")
    for instance in batch:
        yield instance, told.get(instance.uid, untold)


def outcomes(answer: object) -> Mapping[str, Outcome]:
    """What the Store Instances Response Module (PS3.18 table 10.5.3-3) says, by SOP Instance UID.

    An instance that it calls stored and failed has failed.
    """
    found: dict[str, Outcome] = {}
    for match in referenced(answer, REFERENCED_SEQUENCE):
        found[str(first(match, INSTANCE_UID))] = Outcome(True, warning=code(match, WARNING_REASON))
    for match in referenced(answer, FAILED_SEQUENCE):
        found[str(first(match, INSTANCE_UID))] = Outcome(False, failure=code(match, FAILURE_REASON))
    return found


def referenced(answer: object, sequence: str) -> Iterator[Mapping[str, object]]:
    """The items of a sequence in an answer. PACS_ANSWER_INVALID if it is no data set."""
    if answer is None:
        return
    # Some servers answer with a list of one data set.
    data = answer[0] if isinstance(answer, list) and answer else answer
    if not isinstance(data, dict):
        raise invalid("it is no data set")
    element = data.get(sequence)
    values = element.get("Value") if isinstance(element, dict) else None
    for value in values if isinstance(values, list) else []:
        if isinstance(value, dict):
            yield value


def code(match: Mapping[str, object], tag: str) -> int:
    """A Failure or Warning Reason; 0 if there is none."""
    found = first(match, tag)
    return found if isinstance(found, int) and 0 <= found <= 0xFFFF else 0  # noqa: PLR2004 - US, 16 bits


def refused(failure: int) -> FluoroError:
    """The server does not take an instance."""
    meaning = next((text for codes, text in MEANINGS if failure in codes), "")
    told = f"failure reason {failure:04X}H{meaning and ', '}{meaning}" if failure else "no reason"
    return FluoroError(Reason.PACS_REFUSED, f"The server did not store it: {told}.")


def conflict() -> FluoroError:
    """The server has another instance of that UID."""
    return FluoroError(
        Reason.PACS_CONFLICT,
        "The server has another data set under the same SOP Instance UID, and keeps that.",
    )
