"""The command on the audit, for operators."""

from collections.abc import AsyncIterator, Callable

from fluoro.v1.audit_service_pb2 import AuditEvent

from fluoro_client.aio import AsyncClient
from fluoro_client.audit_export import dicom_xml, fhir_json
from fluoro_client.commands.runner import say
from fluoro_client.options import Exit, ExportName, Output, Settings
from fluoro_client.present import audit_table, print_view, to_json

LARGEST_PAGE = 1000


async def audit(
    client: AsyncClient,
    settings: Settings,
    *,
    filter_by: str,
    oldest_first: bool,
    limit: int | None,
    table_events: int,
    export: ExportName | None,
) -> Exit:
    """Lists or exports events. What is not a table is written as it comes, an event a line."""
    line = _line(settings, export)
    if line is None and limit is None:
        limit = table_events
    page_size = min(limit or LARGEST_PAGE, LARGEST_PAGE)
    events = _first(
        client.audit_events(filter_by, oldest_first=oldest_first, page_size=page_size), limit
    )
    if line is None:
        print_view(audit_table([event async for event in events]))
        return Exit.OK
    async for event in events:
        say(line(event))
    return Exit.OK


def _line(settings: Settings, export: ExportName | None) -> Callable[[AuditEvent], str] | None:
    """What an event is written as; None for a table."""
    if export is ExportName.FHIR:
        return lambda event: fhir_json(event, settings.endpoint)
    if export is ExportName.DICOM:
        return lambda event: dicom_xml(event, settings.endpoint)
    if settings.output is Output.JSON:
        return lambda event: to_json(event, one_line=True)
    return None


async def _first(events: AsyncIterator[AuditEvent], limit: int | None) -> AsyncIterator[AuditEvent]:
    """The first of them, or all."""
    count = 0
    async for event in events:
        yield event
        count += 1
        if count == limit:
            return
