"""AuditService: operators read who did what."""

from fluoro.v1.audit_service_pb2 import ListAuditEventsRequest, ListAuditEventsResponse
from fluoro_jobs.ledger import audit_search

from gateway.ledger_calls import LedgerCalls
from gateway.rpc import Call


class AuditEvents:
    """The methods of fluoro.v1.AuditService."""

    def __init__(self, calls: LedgerCalls) -> None:
        self._calls = calls

    async def list_audit_events(
        self, request: ListAuditEventsRequest, call: Call
    ) -> ListAuditEventsResponse:
        """A page of events, of all owners."""
        return await self._calls.run_for(call.owner, audit_search.list_events, request)
