"""What an error of PostgreSQL means for who asked."""

from typing import Final

import psycopg
from fluoro_telemetry import metrics

from fluoro_jobs.errors import FluoroError, Reason

_EXPLANATIONS: Final = {
    Reason.LEDGER_UNAVAILABLE: "PostgreSQL cannot be reached. Try again.",
    Reason.LEDGER_BUSY: "PostgreSQL gave the statement up before it was done. Try again.",
    Reason.LEDGER_READ_ONLY: (
        "The PostgreSQL that answers takes no writes; a failover may be under way. Try again."
    ),
    Reason.LEDGER_FULL: (
        "PostgreSQL has no disk space or memory left. Try again once there is some."
    ),
}

_REASONS: Final = {
    "25006": Reason.LEDGER_READ_ONLY,  # read_only_sql_transaction
    "25P04": Reason.LEDGER_BUSY,  # transaction_timeout, which is not ours
    # idle_in_transaction_session_timeout: this process was stopped inside a transaction.
    "25P03": Reason.LEDGER_BUSY,
    "40001": Reason.LEDGER_BUSY,  # serialization_failure
    "40P01": Reason.LEDGER_BUSY,  # deadlock_detected
    "55P03": Reason.LEDGER_BUSY,  # lock_not_available: lock_timeout
    # query_canceled: statement_timeout, or somebody's pg_cancel_backend().
    "57014": Reason.LEDGER_BUSY,
    "53100": Reason.LEDGER_FULL,  # disk_full
    "53200": Reason.LEDGER_FULL,  # out_of_memory
    "53400": Reason.LEDGER_FULL,  # configuration_limit_exceeded: temp_file_limit
}
"""By SQLSTATE (PostgreSQL's appendix A)."""
_PROGRAM_LIMIT_EXCEEDED: Final = "54"
"""Class of SQLSTATEs: too complex, too many columns, a row or an index entry too large."""


def reason_of(error: Exception) -> Reason | None:
    """What a psycopg error means for who asked; None for one that is not an outage but a bug."""
    # Errors of the pool are psycopg's too, and have no SQLSTATE.
    state = error.sqlstate if isinstance(error, psycopg.Error) else None
    if state in _REASONS:
        return _REASONS[state]
    if state is not None and state.startswith(_PROGRAM_LIMIT_EXCEEDED):
        # This statement is too much for any PostgreSQL; psycopg calls it operational all the same.
        return None
    if isinstance(error, psycopg.InternalError) and state is None:
        # Not PostgreSQL's, but psycopg's own: of a COMMIT whose server ended, poolers tell twice.
        return Reason.LEDGER_UNAVAILABLE
    # What remains of these classes means a broken connection. Anything else is a bug in a
    # statement.
    return (
        Reason.LEDGER_UNAVAILABLE
        if isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))
        else None
    )


def outage(reason: Reason) -> FluoroError:
    """What to tell who asked, counted in the metrics. reason: one of LEDGER_OUTAGES."""
    metrics.LEDGER_REFUSALS.labels(reason=reason).inc()
    return FluoroError(reason, _EXPLANATIONS[reason])
