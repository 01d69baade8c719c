"""Filters, a subset of AIP-160: a condition of SQL, and what can pass it. Pure.

The language, and the fields of jobs; those of the audit are in `audit_search.py`.

As in AIP-160, OR binds more tightly than AND, and terms without a word between them are joined by
AND. There are no bare words, functions and wildcards. Errors give a position and never quote the
filter: the values of labels are the caller's.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final, Generic, NoReturn, Protocol, Self, TypeVar

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from fluoro_jobs.errors import FieldViolation, FluoroError, Reason
from fluoro_jobs.ids import OWNER
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
_TOKEN: Final = re.compile(
    r"""[^\s"'()=<>!:,.\-][^\s"'()=<>!:,.]*|"(?:[^"\\]|\\.)*+"?|'(?:[^'\\]|\\.)*+'?|\S""",
    re.DOTALL,
)
_NOT_ALONE: Final = frozenset(("OR", "NOT", "-", ".", "=", ":"))
"""Before a comparison that does not have to hold, or that is none."""
_BEFORE_VALUES: Final = frozenset(("=", "<", ">", ":", "."))
"""OR and NOT are texts behind these, as in `labels.state = OR`."""
_OWNER: Final = re.compile(OWNER)
_EXPECTED: Final = (
    "Expected FIELD OPERATOR VALUE, joined by AND, OR and NOT; values with signs go in quotes"
)
_ALL: Final = frozenset(JobState)
_ENDED: Final = frozenset(state for state in JobState if is_terminal(state))
EARLIEST: Final = datetime.min.replace(tzinfo=UTC)
LATEST: Final = datetime.max.replace(tzinfo=UTC)
"""A reach that has these is not bounded there."""
INVERSE: Final = {"=": "!=", "!=": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
"""Of comparisons of times."""


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
            within(self.created, other.created),
            within(self.ended, other.ended),
        )

    def either(self, other: "Reach") -> "Reach":
        """Of what passes one of them."""
        return Reach(
            self.states | other.states,
            around(self.created, other.created),
            around(self.ended, other.ended),
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
    if (tree := tree_of(text)) is None:
        return Filter()
    compiler = _Jobs()
    sql, reach = compiler.condition(tree, negated=False, depth=0)
    decides = owner_of(text)
    for owner, at in compiler.owners:
        if owner != decides or not _OWNER.fullmatch(owner):
            refuse(
                'Write one owner as owner = "x", beside all else: owner = "x" AND …, in the '
                "characters a-z 0-9 - _ . @",
                at,
            )
    return Filter(sql, compiler.parameters, reach)


def tree_of(text: str) -> "Tree[Token] | None":
    """What a filter says, whatever it is about; None if it is empty. FluoroError FILTER_INVALID."""
    if len(text) > MAX_LENGTH:
        refuse(f"At most {MAX_LENGTH} characters", MAX_LENGTH)
    if not text.strip():
        return None
    try:
        return _GRAMMAR.parse(text)
    except UnexpectedInput as error:
        refuse(_EXPECTED, _position(error, text))


def owner_of(text: str) -> str | None:
    """The one owner whose jobs can pass, if a filter of jobs names it: `owner = "x" AND …`.

    Does not parse: whoever decides whose call it is cannot wait for that. `parse` refuses what
    cannot be read, and what this mistakes.
    """
    if len(text) > MAX_LENGTH or "owner" not in text:
        return None
    tokens: list[str] = ["", *_TOKEN.findall(text), "", "", ""]
    depth = 0
    for place in range(1, len(tokens) - 3):
        depth += (tokens[place] == "(") - (tokens[place] == ")")
        name, operator, value = tokens[place : place + 3]
        if depth == 0 and (name, operator) == ("owner", "=") and value:
            end = place + 3
            while tokens[end] == "." and tokens[end + 1]:
                value, end = f"{value}.{tokens[end + 1]}", end + 2
            before = tokens[place - 1]
            is_alone = before not in _NOT_ALONE or (
                before in {"OR", "NOT"} and tokens[place - 2] in _BEFORE_VALUES
            )
            if is_alone and tokens[end] != "OR":
                return value[1:-1] if value[0] in "\"'" else value
    return None


class Bounds(Protocol):
    """Of what can pass a filter."""

    def both(self, other: Self) -> Self:
        """Of what passes both."""

    def either(self, other: Self) -> Self:
        """Of what passes one of them."""


R = TypeVar("R", bound=Bounds)

Term = tuple[str, R, R]
"""A condition, what it reaches, and what its negation reaches."""


class Compiler(ABC, Generic[R]):
    """Turns a tree into a condition; gathers its parameters."""

    def __init__(self) -> None:
        self.parameters: dict[str, Any] = {}
        self._terms = 0

    def condition(self, tree: "Tree[Token]", *, negated: bool, depth: int) -> tuple[str, R]:
        """The condition in SQL, and its reach.

        A negation moves inwards (De Morgan), so that the reach of each term is known.
        """
        if tree.data == "restriction":
            return self._term(tree, negated)
        # The compiler recurses once a level: nested NOTs could use up the stack of the thread.
        if depth > MAX_DEPTH:
            refuse(f"At most {MAX_DEPTH} levels of AND, OR and NOT", _start(tree))
        parts: list[Any] = tree.children
        if tree.data == "not":
            return self.condition(parts[0], negated=not negated, depth=depth + 1)
        each = [self.condition(part, negated=negated, depth=depth + 1) for part in parts]
        is_and = (tree.data == "and") is not negated
        reach = each[0][1]
        for _, other in each[1:]:
            reach = reach.both(other) if is_and else reach.either(other)
        return f"({(' AND ' if is_and else ' OR ').join(sql for sql, _ in each)})", reach

    def parameter(self, value: object) -> str:
        """A place for the value in the condition."""
        name = f"f{len(self.parameters)}"
        self.parameters[name] = value
        return f"%({name})s"

    def _term(self, tree: "Tree[Token]", negated: bool) -> tuple[str, R]:
        path, operator, value = tree.children
        assert isinstance(path, Tree)
        assert isinstance(operator, Token)
        assert isinstance(value, Tree)
        names, text = [_text(piece) for piece in path.children], _joined(value)
        start, at = _start(tree), _start(value)
        self._terms += 1
        if self._terms > MAX_TERMS:
            refuse(f"At most {MAX_TERMS} comparisons", start)
        # PostgreSQL's text takes no NUL and would refuse the whole statement.
        if any("\0" in piece for piece in (*names, text)):
            refuse("Must not hold NUL; nothing does", start)
        compiled = self._compiled(names, operator, text, (start, at))
        if compiled is None:
            refuse("This field has no such operator", operator.start_pos or 0)
        sql, reach, inverse = compiled
        # SQL's NOT, but the reach of the inverse: a term that reaches little has a negation that
        # reaches much.
        return (f"NOT {sql}", inverse) if negated else (sql, reach)

    @abstractmethod
    def _compiled(
        self, names: list[str], operator: Token, text: str, at: tuple[int, int]
    ) -> "Term[R] | None":
        """A comparison; None if the field has no such operator.

        names: of the field, and its parts. at: where field and value begin. FluoroError
        FILTER_INVALID.
        """


class _Jobs(Compiler[Reach]):
    """Filters of jobs. owners: those that it names, and where."""

    def __init__(self) -> None:
        super().__init__()
        self.owners: list[tuple[str, int]] = []

    def _compiled(
        self, names: list[str], operator: Token, text: str, at: tuple[int, int]
    ) -> "_Term | None":
        if names[0] == "labels":
            return self._label(names[1:], str(operator), text, operator.start_pos or 0)
        if len(names) != 1 or names[0] not in _FIELDS:
            fields = ", ".join([*_FIELDS, "labels.KEY"])
            refuse(f"The field must be one of {fields}", at[0])
        if names[0] == "owner":
            self.owners.append((text, at[0]))
        return _FIELDS[names[0]](self, str(operator), text, at[1])

    def _label(self, keys: list[str], operator: str, text: str, at: int) -> "_Term | None":
        """`labels.KEY = VALUE`; `labels.KEY:*` and `labels:KEY` for jobs that have the label."""
        if operator == ":" and not keys:
            return f"(labels ? {self.parameter(text)})", Reach(), Reach()
        if not keys:
            refuse("Name the label: labels.KEY", at)
        # A dot in a key is part of it: keys have no parts.
        key = self.parameter(".".join(keys))
        if operator == ":" and text == "*":
            return f"(labels ? {key})", Reach(), Reach()
        if operator not in {"=", "!="}:
            return None
        # A job without the label is not equal to anything. With `<>` the comparison would be null,
        # and its negation null too.
        word = "IS NOT DISTINCT FROM" if operator == "=" else "IS DISTINCT FROM"
        # Labels have no index, so what a filter says of them bounds nothing.
        return f"(labels ->> {key} {word} {self.parameter(text)})", Reach(), Reach()


_Term = Term[Reach]


def _state(compiler: _Jobs, operator: str, text: str, at: int) -> _Term | None:
    name = text.removeprefix("STATE_")
    if name not in _ALL:
        refuse(f"Must be one of {', '.join(JobState)}", at)
    if operator not in {"=", "!="}:
        return None
    one = Reach(frozenset({JobState(name)}))
    others = Reach(_ALL - one.states)
    sql = f"(state {operator.replace('!=', '<>')} {compiler.parameter(name)})"
    return (sql, one, others) if operator == "=" else (sql, others, one)


def _column(name: str) -> Callable[[_Jobs, str, str, int], _Term | None]:
    def compiled(compiler: _Jobs, operator: str, text: str, _: int) -> _Term | None:
        if operator not in {"=", "!="}:
            return None
        # `reason` and `pipeline` may be null. A filter must never be, or NOT would lose the same
        # jobs.
        word = "IS NOT DISTINCT FROM" if operator == "=" else "IS DISTINCT FROM"
        return f"({name} {word} {compiler.parameter(text)})", Reach(), Reach()

    return compiled


def _create_time(compiler: _Jobs, operator: str, text: str, at: int) -> _Term | None:
    if operator == ":":
        return None
    when = time_of(text, at)
    sql = f"(create_time {operator.replace('!=', '<>')} {compiler.parameter(when)})"
    reach, inverse = (
        replace(Reach(), created=bounds(one, when)) for one in (operator, INVERSE[operator])
    )
    return sql, reach, inverse


def _end_time(compiler: _Jobs, operator: str, text: str, at: int) -> _Term | None:
    """No comparison holds for a job that has not ended."""
    if operator == ":" and text == "*":
        return "(end_time IS NOT NULL)", Reach(_ENDED), Reach(_ALL - _ENDED)
    if operator == ":":
        return None
    when = time_of(text, at)
    sql = f"(end_time {operator.replace('!=', '<>')} {compiler.parameter(when)})"
    # A job that has not ended has no end_time. IS TRUE makes the comparison false for it, so that
    # NOT finds it.
    return f"({sql} IS TRUE)", Reach(_ENDED, ended=bounds(operator, when)), Reach()


_FIELDS: Final[dict[str, Callable[[_Jobs, str, str, int], _Term | None]]] = {
    "state": _state,
    "reason": _column("reason"),
    "pipeline": _column("pipeline"),
    "owner": _column("owner"),
    "create_time": _create_time,
    "end_time": _end_time,
}


def time_of(text: str, at: int) -> datetime:
    """A time with its zone. at: where it stands in the filter. FluoroError FILTER_INVALID."""
    try:
        when = datetime.fromisoformat(text)
        zoned = when.tzinfo is not None
        # The year 1 with an offset may lie before the first hour that Python knows: OverflowError.
        when = when.astimezone(UTC)
    except (ValueError, OverflowError):
        zoned = False
    if not zoned:
        refuse('Must be a time with its zone, in quotes: "2026-01-31T12:00:00Z"', at)
    return when


def bounds(operator: str, when: datetime) -> tuple[datetime, datetime]:
    """First and last time that can pass the comparison."""
    # "!=" has no bounds: it falls through to the ends of time below.
    if operator == "=":
        return when, when
    return (
        when if operator in {">", ">="} else EARLIEST,
        when if operator in {"<", "<="} else LATEST,
    )


def within(
    one: tuple[datetime, datetime], other: tuple[datetime, datetime]
) -> tuple[datetime, datetime]:
    """The times that lie in both."""
    return max(one[0], other[0]), min(one[1], other[1])


def around(
    one: tuple[datetime, datetime], other: tuple[datetime, datetime]
) -> tuple[datetime, datetime]:
    """Times that hold both."""
    return min(one[0], other[0]), max(one[1], other[1])


def _joined(value: "Tree[Token]") -> str:
    """A value; one with dots, a UID say, comes in pieces."""
    return ".".join(_text(piece) for piece in value.children)


def _text(piece: "Token | Tree[Token]") -> str:
    assert isinstance(piece, Token)
    return (
        # A backslash makes the next character literal, also a quote or another backslash.
        re.sub(r"\\(.)", r"\1", piece[1:-1], flags=re.DOTALL) if piece.type == "STRING" else piece
    )


def _start(tree: "Tree[Token]") -> int:
    return next((token.start_pos or 0 for token in tree.scan_values(lambda _: True)), 0)


def _position(error: UnexpectedInput, text: str) -> int:
    """Of the first character that does not fit; the filter's length if it ends too soon."""
    # Lark places the end of the text at the last token, which is a good one.
    if isinstance(error, UnexpectedToken) and error.token.type == "$END":
        return len(text)
    if isinstance(error, UnexpectedCharacters | UnexpectedToken):
        return error.pos_in_stream or 0
    return len(text)


def refuse(what: str, position: int) -> NoReturn:
    """FluoroError FILTER_INVALID. position: of the first character that does not fit, from 0."""
    description = f"{what} (at character {position + 1})."
    raise FluoroError(
        Reason.FILTER_INVALID,
        f"filter: {description}",
        [FieldViolation("filter", description)],
        metadata={"position": str(position + 1)},
    )
