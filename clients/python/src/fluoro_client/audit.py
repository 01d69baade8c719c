"""Who did what, for operators."""

from collections.abc import AsyncGenerator
from typing import Protocol

from fluoro.v1 import audit_service_pb2

from fluoro_client.channel import Connection
from fluoro_client.sharing import Calling


class Calls(Calling, Protocol):
    """What these methods need of a client."""

    _connection: Connection


class AuditCalls:
    """Methods of a client about the audit."""

    async def audit_events(
        self: Calls, filter_by: str = "", *, oldest_first: bool = False, page_size: int = 1000
    ) -> AsyncGenerator[audit_service_pb2.AuditEvent, None]:
        """What was recorded, page by page as it is read, newest first unless asked otherwise.

        Needs the role operator. filter_by: only events that pass, `owner = ada AND action = READ`,
        say (docs/audit.md). Each page is a call, and recorded itself.
        """
        request = audit_service_pb2.ListAuditEventsRequest(
            filter=filter_by, order_by="time" if oldest_first else "", page_size=page_size
        )
        async for page in self._pages(self._connection.audit.ListAuditEvents, request):
            for event in page.events:
                yield event
