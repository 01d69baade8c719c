"""What the audit holds, page by page, by filter and in the order of time.

As with jobs (`search.py`): a page follows an index from a key, looks at LOOKED_AT rows at most, and
filters those. What a filter says about thing and owner chooses the index, and what it says about
time where that is entered.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Self
from uuid import UUID

from fluoro.v1.audit_service_pb2 import (
    AuditEvent,
    ListAuditEventsRequest,
    ListAuditEventsResponse,
)
from lark import Token
from psycopg.rows import TupleRow

from fluoro_jobs.errors import FieldViolation, FluoroError, Reason
from fluoro_jobs.ledger.connection import LedgerConnection
from fluoro_jobs.ledger.filters import (
    EARLIEST,
    INVERSE,
    LATEST,
    Compiler,
    Term,
    around,
    bounds,
    refuse,
    time_of,
    tree_of,
    within,
)
from fluoro_jobs.ledger.paging import (
    LOOKED_AT,
    cut,
    page_size,
    read_token,
    uuid_of,
    write_token,
)
from fluoro_jobs.ledger.rows import rows_of
from fluoro_jobs.ledger.search import CLOCK_SLACK, FIRST, LAST, id_at

ORDERS: Final = {"": True, "time desc": True, "time": False}
"""Whether the newest come first."""

_COLUMNS: Final = """id, time, principal, how, roles, owner, method, action, thing, peer, agent,
  outcome, reason, calls"""
# The row after the last one that was looked at comes along unfiltered: it is where the next page
# starts.
_PAGE: Final = f"""
SELECT {_COLUMNS}, place FROM (
  SELECT *, row_number() OVER (ORDER BY {{order}}) AS place FROM (
    SELECT * FROM audit WHERE {{which}} AND id {{comes}} %(start)s
    ORDER BY {{order}} LIMIT (SELECT {LOOKED_AT} + 1)
  ) looked_at
) numbered
WHERE {{end}} AND (place > {LOOKED_AT} OR {{filter}})
ORDER BY {{order}} LIMIT %(limit)s
"""
# One owner or thing, and said as a range: the order is then that of this index and of no other.
# After an equality PostgreSQL may walk through all rows by id, if few owners make most of them.
# Bounds are parameters, not literals, so that one plan serves every owner.
_ONE: Final = "{column} >= %({column})s AND {column} <= %({column})s"
_ACTIONS: Final = {
    name.removeprefix("ACTION_"): number for name, number in AuditEvent.Action.items() if number
}
_LETTERS: Final = {name[0]: number for name, number in _ACTIONS.items()}
_NAME: Final = re.compile(r"[0-9a-f-]{36}")


@dataclass(frozen=True, slots=True)
class Reach:
    """Bounds of what can pass a filter. owner, thing: the only ones that can; None for several."""

    times: tuple[datetime, datetime] = (EARLIEST, LATEST)
    owner: str | None = None
    thing: str | None = None

    def both(self, other: Self) -> Self:
        """Of what passes both."""
        return replace(
            self,
            times=within(self.times, other.times),
            owner=other.owner if self.owner is None else self.owner,
            # Two names in an AND may differ. Either one bounds the search; the filter itself then
            # lets nothing pass.
            thing=other.thing if self.thing is None else self.thing,
        )

    def either(self, other: Self) -> Self:
        """Of what passes one of them."""
        return replace(
            self,
            times=around(self.times, other.times),
            # Unless both sides name the same one, the index must not leave out the rows of either.
            owner=self.owner if self.owner == other.owner else None,
            thing=self.thing if self.thing == other.thing else None,
        )


_Compiled = Callable[["_Events", str, str, int], Term[Reach] | None]


class _Events(Compiler[Reach]):
    """Filters of events."""

    def _compiled(
        self, names: list[str], operator: Token, text: str, at: tuple[int, int]
    ) -> Term[Reach] | None:
        if len(names) != 1 or names[0] not in _FIELDS:
            refuse(f"The field must be one of {', '.join(_FIELDS)}", at[0])
        return _FIELDS[names[0]](self, str(operator), text, at[1])


def _time(compiler: _Events, operator: str, text: str, at: int) -> Term[Reach] | None:
    if operator == ":":
        return None
    when = time_of(text, at)
    sql = f"(time {operator.replace('!=', '<>')} {compiler.parameter(when)})"
    return sql, Reach(bounds(operator, when)), Reach(bounds(INVERSE[operator], when))


def _equal(column: str, make: Callable[[str, int], str], of: str = "") -> _Compiled:
    """make: the value in the column. of: which bound of a Reach it is, if any."""

    def compiled(compiler: _Events, operator: str, text: str, at: int) -> Term[Reach] | None:
        if operator not in {"=", "!="}:
            return None
        value = make(text, at)
        one = Reach(**{of: value}) if of else Reach()  # type: ignore[arg-type]  # owner or thing
        sql = f"({column} {operator.replace('!=', '<>')} {compiler.parameter(value)})"
        # What is not equal to one value may be anything else, so a negation bounds nothing.
        return (sql, one, Reach()) if operator == "=" else (sql, Reach(), one)

    return compiled


def _as_given(text: str, _: int) -> str:
    return text


def _name_in(collection: str) -> Callable[[str, int], str]:
    def name(text: str, at: int) -> str:
        id_ = text.removeprefix(f"{collection}/")
        if _NAME.fullmatch(id_) is None:
            refuse(f"Must be {collection}/{{uuid}}", at)
        return f"{collection}/{id_}"

    return name


def _action(text: str, at: int) -> str:
    if text not in _ACTIONS:
        refuse(f"Must be one of {', '.join(_ACTIONS)}", at)
    return text[0]


def _method(compiler: _Events, operator: str, text: str, at: int) -> Term[Reach] | None:
    """The full name, or what stands after its last dot."""
    column = "method" if "." in text else "regexp_replace(method, '.*[.]', '')"
    return _equal(column, _as_given)(compiler, operator, text, at)


_FIELDS: Final[dict[str, _Compiled]] = {
    "time": _time,
    "principal": _equal("principal", _as_given),
    "owner": _equal("owner", _as_given, "owner"),
    "method": _method,
    "action": _equal("action", _action),
    "job": _equal("thing", _name_in("jobs"), "thing"),
    "blob": _equal("thing", _name_in("blobs"), "thing"),
    "token": _equal("thing", _name_in("tokens"), "thing"),
    "outcome": _equal("outcome", _as_given),
    "reason": _equal("reason", _as_given),
}


def list_events(
    connection: LedgerConnection, request: ListAuditEventsRequest
) -> ListAuditEventsResponse:
    """One page. FluoroError FILTER_INVALID, or INVALID_ARGUMENT for the other fields."""
    limit, newest_first = page_size(request), ORDERS.get(request.order_by)
    if newest_first is None:
        what = f"Must be one of: {', '.join(filter(None, ORDERS))}."
        raise FluoroError(
            Reason.INVALID_ARGUMENT, f"order_by: {what}", [FieldViolation("order_by", what)]
        )
    sql, reach, parameters = compile_filter(request.filter)
    key = read_token(request, str)
    statement, given = _statement(sql, reach, uuid_of(key[0]) if key else None, newest_first)
    rows = connection.execute(statement, parameters | given | {"limit": limit + 1})
    events, following = cut(rows_of(rows), limit, _event)
    token = write_token(request, [str(following[0])]) if following else ""
    return ListAuditEventsResponse(events=events, next_page_token=token)


def compile_filter(text: str) -> tuple[str, Reach, dict[str, Any]]:
    """A condition on a row, what can pass it, and its parameters. FluoroError FILTER_INVALID."""
    if (tree := tree_of(text)) is None:
        return "true", Reach(), {}
    compiler = _Events()
    return *compiler.condition(tree, negated=False, depth=0), compiler.parameters


def _statement(
    sql: str, reach: Reach, key: UUID | None, newest_first: bool
) -> tuple[str, dict[str, Any]]:
    """Each kind of search has a text of its own: PostgreSQL plans one for all its values."""
    # The id holds the time when it was made, by the gateway's clock, and the column PostgreSQL's
    # time. The slack covers their difference; the filter compares the column.
    low = id_at(reach.times[0], -CLOCK_SLACK) or FIRST
    high = id_at(reach.times[1], CLOCK_SLACK) or LAST
    start, last = (high, low) if newest_first else (low, high)
    if key is not None:
        # A token may come from a page of wider bounds. The stricter of both is right.
        start = min(key, high) if newest_first else max(key, low)
    comes, goes = ("<=", ">=") if newest_first else (">=", "<=")
    way = " DESC" if newest_first else ""
    which, order = "true", f"id{way}"
    # The thing before the owner: a job has few rows, an owner may have millions.
    for column in ("thing", "owner"):
        if getattr(reach, column) is not None:
            which, order = _ONE.format(column=column), f"{column}{way}, id{way}"
            break
    if reach.thing is not None:
        which += " AND thing <> ''"  # of which the index is
    text = _PAGE.format(
        which=which,
        order=order,
        comes=comes,
        end="true" if last in {FIRST, LAST} else f"id {goes} %(last)s",
        filter=sql,
    )
    return text, {"start": start, "last": last, "thing": reach.thing, "owner": reach.owner}


def _event(row: TupleRow) -> AuditEvent:
    # The last column is the place within the page, of use to the statement alone.
    id_, time, principal, how, roles, owner, method, action, thing, *rest = row[:-1]
    peer, agent, outcome, reason, calls = rest
    event = AuditEvent(
        name=f"auditEvents/{id_}",
        principal=principal,
        how=how,
        roles=roles,
        owner=owner,
        method=method,
        action=_LETTERS.get(action, AuditEvent.ACTION_UNSPECIFIED),
        thing=thing,
        peer=peer,
        user_agent=agent,
        outcome=outcome,
        reason=reason,
        calls=calls,
    )
    event.time.FromDatetime(time)
    return event
