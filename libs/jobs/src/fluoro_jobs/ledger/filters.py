"""Filters of jobs, a subset of AIP-160: a condition of SQL, and what can pass it. Pure.

As in AIP-160, OR binds more tightly than AND, and terms without a word between them are joined by
AND. There are no bare words, functions and wildcards. Errors give a position and never quote the
filter: the values of labels are the caller's.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from fluoro_jobs.errors import FieldViolation, FluoroError, Reason
from fluoro_jobs.states import JobState, is_terminal

MAX_LENGTH: Final = 2000
"""Characters of a filter. More take long to parse."""
MAX_TERMS: Final = 32
"""Comparisons in a filter. Each costs a look at every job that a page looks at."""
MAX_DEPTH: Final = 16
"""Levels of AND, OR and NOT."""

_GRAMMAR: Final = Lark(
    r"""
    ?start: and
    ?and: factor ("AND"? factor)*
    ?factor: term ("OR" term)*
    ?term: ("NOT" | "-") simple -> not
        | simple
    ?simple: restriction
        | "(" and ")"
    restriction: path OPERATOR value
    path: piece ("." piece)*
    value: piece ("." piece)*
    ?piece: TEXT | STRING
    OPERATOR: "!=" | "<=" | ">=" | "=" | "<" | ">" | ":"
    TEXT: /[^\s"'()=<>!:,.\-][^\s"'()=<>!:,.]*/
    STRING: /"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'/s
    %ignore /\s+/
    """,
    parser="lalr",
    maybe_placeholders=False,
)
_EXPECTED: Final = (
    "Expected FIELD OPERATOR VALUE, joined by AND, OR and NOT; values with signs go in quotes"
)
_ALL: Final = frozenset(JobState)
_ENDED: Final = frozenset(state for state in JobState if is_terminal(state))
EARLIEST: Final = datetime.min.replace(tzinfo=UTC)
LATEST: Final = datetime.max.replace(tzinfo=UTC)
"""A reach that has these is not bounded there."""
_INVERSE: Final = {"=": "!=", "!=": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}


@dataclass(frozen=True, slots=True)
class Reach:
    """Bounds of what can pass a filter: what an index may leave out.

    states: which a job may have. created, ended: first and last time, both included; of `ended`
    only for jobs that have.
    """

    states: frozenset[JobState] = _ALL
    created: tuple[datetime, datetime] = (EARLIEST, LATEST)
    ended: tuple[datetime, datetime] = (EARLIEST, LATEST)

    def both(self, other: "Reach") -> "Reach":
        """Of what passes both."""
        return Reach(
            self.states & other.states,
            _within(self.created, other.created),
            _within(self.ended, other.ended),
        )

    def either(self, other: "Reach") -> "Reach":
        """Of what passes one of them."""
        return Reach(
            self.states | other.states,
            _around(self.created, other.created),
            _around(self.ended, other.ended),
        )


@dataclass(frozen=True, slots=True)
class Filter:
    """sql: a condition on a row of `jobs`, never null. parameters: what it needs."""

    sql: str = "true"
    parameters: dict[str, Any] = field(default_factory=dict)
    reach: Reach = Reach()


def parse(text: str) -> Filter:
    """The filter; all jobs pass an empty one.

    FluoroError FILTER_INVALID, with the `position` of the first character that does not fit.
    """
    if len(text) > MAX_LENGTH:
        _refuse(f"At most {MAX_LENGTH} characters", MAX_LENGTH)
    if not text.strip():
        return Filter()
    try:
        tree = _GRAMMAR.parse(text)
    except UnexpectedInput as error:
        _refuse(_EXPECTED, _position(error, text))
    compiler = _Compiler()
    sql, reach = compiler.condition(tree, negated=False, depth=0)
    return Filter(sql, compiler.parameters, reach)


class _Compiler:
    """Turns a tree into a condition; gathers its parameters."""

    def __init__(self) -> None:
        self.parameters: dict[str, Any] = {}
        self._terms = 0

    def condition(self, tree: "Tree[Token]", *, negated: bool, depth: int) -> tuple[str, Reach]:
        """The condition in SQL, and its reach.

        A negation moves inwards (De Morgan), so that the reach of each term is known.
        """
        if tree.data == "restriction":
            return self._term(tree, negated)
        if depth > MAX_DEPTH:
            _refuse(f"At most {MAX_DEPTH} levels of AND, OR and NOT", _start(tree))
        parts: list[Any] = tree.children
        if tree.data == "not":
            return self.condition(parts[0], negated=not negated, depth=depth + 1)
        each = [self.condition(part, negated=negated, depth=depth + 1) for part in parts]
        is_and = (tree.data == "and") is not negated
        reach = each[0][1]
        for _, other in each[1:]:
            reach = reach.both(other) if is_and else reach.either(other)
        return f"({(' AND ' if is_and else ' OR ').join(sql for sql, _ in each)})", reach

    def _term(self, tree: "Tree[Token]", negated: bool) -> tuple[str, Reach]:
        path, operator, value = tree.children
        assert isinstance(path, Tree)
        assert isinstance(operator, Token)
        assert isinstance(value, Tree)
        names, text = [_text(piece) for piece in path.children], _joined(value)
        start, at = _start(tree), _start(value)
        self._terms += 1
        if self._terms > MAX_TERMS:
            _refuse(f"At most {MAX_TERMS} comparisons", start)
        if any("\0" in piece for piece in (*names, text)):
            _refuse("Must not hold NUL; no job does", start)
        if names[0] == "labels":
            compiled = self._label(names[1:], str(operator), text, operator.start_pos or 0)
        elif len(names) == 1 and names[0] in _FIELDS:
            compiled = _FIELDS[names[0]](self, str(operator), text, at)
        else:
            fields = ", ".join([*_FIELDS, "labels.KEY"])
            _refuse(f"The field must be one of {fields}", start)
        if compiled is None:
            _refuse("This field has no such operator", operator.start_pos or 0)
        sql, reach, inverse = compiled
        return (f"NOT {sql}", inverse) if negated else (sql, reach)

    def parameter(self, value: object) -> str:
        """A place for the value in the condition."""
        name = f"f{len(self.parameters)}"
        self.parameters[name] = value
        return f"%({name})s"

    def _label(self, keys: list[str], operator: str, text: str, at: int) -> "_Term | None":
        """`labels.KEY = VALUE`; `labels.KEY:*` and `labels:KEY` for jobs that have the label."""
        if operator == ":" and not keys:
            return f"(labels ? {self.parameter(text)})", Reach(), Reach()
        if not keys:
            _refuse("Name the label: labels.KEY", at)
        # A dot in a key is part of it: keys have no parts.
        key = self.parameter(".".join(keys))
        if operator == ":" and text == "*":
            return f"(labels ? {key})", Reach(), Reach()
        if operator not in {"=", "!="}:
            return None
        word = "IS NOT DISTINCT FROM" if operator == "=" else "IS DISTINCT FROM"
        return f"(labels ->> {key} {word} {self.parameter(text)})", Reach(), Reach()


_Term = tuple[str, Reach, Reach]
"""A condition, what it reaches, and what its negation reaches."""


def _state(compiler: _Compiler, operator: str, text: str, at: int) -> _Term | None:
    name = text.removeprefix("STATE_")
    if name not in _ALL:
        _refuse(f"Must be one of {', '.join(JobState)}", at)
    if operator not in {"=", "!="}:
        return None
    one = Reach(frozenset({JobState(name)}))
    others = Reach(_ALL - one.states)
    sql = f"(state {operator.replace('!=', '<>')} {compiler.parameter(name)})"
    return (sql, one, others) if operator == "=" else (sql, others, one)


def _column(name: str) -> Callable[[_Compiler, str, str, int], _Term | None]:
    def compiled(compiler: _Compiler, operator: str, text: str, _: int) -> _Term | None:
        if operator not in {"=", "!="}:
            return None
        word = "IS NOT DISTINCT FROM" if operator == "=" else "IS DISTINCT FROM"
        return f"({name} {word} {compiler.parameter(text)})", Reach(), Reach()

    return compiled


def _create_time(compiler: _Compiler, operator: str, text: str, at: int) -> _Term | None:
    if operator == ":":
        return None
    when = _time(text, at)
    sql = f"(create_time {operator.replace('!=', '<>')} {compiler.parameter(when)})"
    reach, inverse = (
        replace(Reach(), created=_bounds(one, when)) for one in (operator, _INVERSE[operator])
    )
    return sql, reach, inverse


def _end_time(compiler: _Compiler, operator: str, text: str, at: int) -> _Term | None:
    """No comparison holds for a job that has not ended."""
    if operator == ":" and text == "*":
        return "(end_time IS NOT NULL)", Reach(_ENDED), Reach(_ALL - _ENDED)
    if operator == ":":
        return None
    when = _time(text, at)
    sql = f"(end_time {operator.replace('!=', '<>')} {compiler.parameter(when)})"
    return f"({sql} IS TRUE)", Reach(_ENDED, ended=_bounds(operator, when)), Reach()


_FIELDS: Final[dict[str, Callable[[_Compiler, str, str, int], _Term | None]]] = {
    "state": _state,
    "reason": _column("reason"),
    "pipeline": _column("pipeline"),
    "create_time": _create_time,
    "end_time": _end_time,
}


def _time(text: str, at: int) -> datetime:
    try:
        when = datetime.fromisoformat(text)
        zoned = when.tzinfo is not None
        when = when.astimezone(UTC)
    except (ValueError, OverflowError):
        zoned = False
    if not zoned:
        _refuse('Must be a time with its zone, in quotes: "2026-01-31T12:00:00Z"', at)
    return when


def _bounds(operator: str, when: datetime) -> tuple[datetime, datetime]:
    if operator == "=":
        return when, when
    return (
        when if operator in {">", ">="} else EARLIEST,
        when if operator in {"<", "<="} else LATEST,
    )


def _within(
    one: tuple[datetime, datetime], other: tuple[datetime, datetime]
) -> tuple[datetime, datetime]:
    return max(one[0], other[0]), min(one[1], other[1])


def _around(
    one: tuple[datetime, datetime], other: tuple[datetime, datetime]
) -> tuple[datetime, datetime]:
    return min(one[0], other[0]), max(one[1], other[1])


def _joined(value: "Tree[Token]") -> str:
    """A value; one with dots, a UID say, comes in pieces."""
    return ".".join(_text(piece) for piece in value.children)


def _text(piece: "Token | Tree[Token]") -> str:
    assert isinstance(piece, Token)
    return (
        re.sub(r"\\(.)", r"\1", piece[1:-1], flags=re.DOTALL) if piece.type == "STRING" else piece
    )


def _start(tree: "Tree[Token]") -> int:
    return next((token.start_pos or 0 for token in tree.scan_values(lambda _: True)), 0)


def _position(error: UnexpectedInput, text: str) -> int:
    """Of the first character that does not fit; the filter's length if it ends too soon."""
    if isinstance(error, UnexpectedToken) and error.token.type == "$END":
        return len(text)
    if isinstance(error, UnexpectedCharacters | UnexpectedToken):
        return error.pos_in_stream or 0
    return len(text)


def _refuse(what: str, position: int) -> NoReturn:
    description = f"{what} (at character {position + 1})."
    raise FluoroError(
        Reason.FILTER_INVALID,
        f"filter: {description}",
        [FieldViolation("filter", description)],
        metadata={"position": str(position + 1)},
    )
