"""FetchDicomweb: instances from a PACS, each a file that later steps work on."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from typing import Final

from fluoro.v1.dicomweb_pb2 import FetchDicomweb, FetchDicomwebResult, FetchedInstance
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.worker.context import StepContext, StepItem
from fluoro_jobs.worker.handler import handles

from dicom_worker.dicomweb.retrieve import identity, retrieve
from dicom_worker.dicomweb.search import (
    MAX_INSTANCES,
    Listed,
    Place,
    instances_of,
    place_of,
    places_of,
)
from dicom_worker.dicomweb.server import Server
from dicom_worker.dicomweb.settings import DicomwebSettings, url_of
from dicom_worker.dicomweb.silence import Silence

TRIES: Final = 3
"""For one instance, in one attempt."""
PAUSE_SECONDS: Final = 0.5
"""Before the second try, doubled before each further one."""


@handles(FetchDicomweb)
def fetch_dicomweb(request: FetchDicomweb, context: StepContext) -> FetchDicomwebResult:
    """Leaves `instance-series-1~0000.dcm` and so on for what the references and the query name."""
    settings = DicomwebSettings()
    result = FetchDicomwebResult()
    with servers(request, settings, context) as there:
        wanted, failed = search(request, there)
        for item, error in zip(context.make("search", list(failed)), failed.values(), strict=True):
            with item:
                raise error
        silence = Silence()
        keys = keyed(wanted)
        for item, place in zip(context.make("fetch", list(keys)), keys.values(), strict=True):
            with item, silence:
                result.instances.append(
                    fetched(item, there[place.server], place, settings, context)
                )
        silence.check()
    return result


@contextmanager
def servers(
    request: FetchDicomweb, settings: DicomwebSettings, context: StepContext
) -> Iterator[Mapping[str, Server]]:
    """The servers that are named. FluoroError PACS_NOT_ALLOWED if one is not listed."""
    names = dict.fromkeys(place_of(reference).server for reference in request.references)
    if request.HasField("query"):
        names[request.query.server] = None
    out = settings.outbound()
    there = {
        name: Server(
            name,
            url_of(settings.sources, name, "FLUORO_DICOMWEB_SOURCES"),
            settings,
            out,
            context.check,
        )
        for name in names
    }
    try:
        yield there
    finally:
        for server in there.values():
            server.close()


def search(
    request: FetchDicomweb, there: Mapping[str, Server]
) -> tuple[list[Listed], dict[str, FluoroError]]:
    """What to fetch, each once; and what found nothing, or was refused, by its key."""
    found: dict[Place, Listed] = {}
    failed: dict[str, FluoroError] = {}

    def add(key: str, place: Place) -> None:
        with noted(failed, key):
            # What another reference named may count twice here. Few are so near to the limit.
            listed = instances_of(there[place.server], place, MAX_INSTANCES - len(found))
            found.update((one.place, one) for one in listed)

    for number, reference in enumerate(request.references):
        add(f"reference-{number}", place_of(reference))
    if request.HasField("query"):
        with noted(failed, "query"):
            for number, place in enumerate(places_of(there[request.query.server], request.query)):
                add(f"query/{number:04}", place)
    return list(found.values()), failed


@contextmanager
def noted(failed: dict[str, FluoroError], key: str) -> Iterator[None]:
    """Notes what goes wrong for good in the body, but for what concerns all of the step."""
    try:
        yield
    except FluoroError as error:
        # To leave a reference out for these would make the rest look like all there is.
        if error.may_retry or error.reason is Reason.TOO_MANY_INPUTS:
            raise
        failed[key] = error


def keyed(wanted: Iterable[Listed]) -> dict[str, Place]:
    """Keys of what is fetched: `series-1/0000`. The same list gives the same ones."""
    keys = {}
    in_order = sorted(wanted, key=lambda one: (series_of(one), one.number, one.place.instance))
    for number, (_, series) in enumerate(groupby(in_order, series_of), 1):
        for position, one in enumerate(series):
            # Keys come from the order and not from UIDs: they stand in names and logs.
            keys[f"series-{number}/{position:04}"] = one.place
    return keys


def series_of(one: Listed) -> tuple[str, str, str]:
    """What tells its series from others."""
    return one.place.server, one.place.study, one.place.series


def fetched(
    item: StepItem,
    server: Server,
    place: Place,
    settings: DicomwebSettings,
    context: StepContext,
) -> FetchedInstance:
    """Fetches an instance, and makes sure that it is the one."""
    file = item.folder / "instance"
    pause = PAUSE_SECONDS
    for left in reversed(range(TRIES)):
        try:
            size = retrieve(server, place, file, settings.max_instance_bytes)
            break
        except FluoroError as error:
            if not left or not error.may_retry:
                raise
        # Not a sleep: a cancelled attempt goes on at once, and `retrieve` ends it.
        context.cancelled.wait(pause)
        pause *= 2
    syntax, instances = identity(file)
    # A server may answer with another instance, and it would be filed under this one's name.
    if instances != {place.instance}:
        raise FluoroError(Reason.PACS_ANSWER_INVALID, "The server sent another instance.")
    return FetchedInstance(
        item=item.key,
        instance=item.put("instance", ".dcm", "instance", "application/dicom", file),
        server=server.name,
        study_instance_uid=place.study,
        series_instance_uid=place.series,
        sop_instance_uid=place.instance,
        transfer_syntax_uid=syntax,
        size_bytes=size,
    )
