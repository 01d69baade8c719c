"""Makes templates of files, and refuses those that not every submit could use.

A template is tried as callers will: with its defaults, and with the least, the greatest and each
listed value of every parameter. The checks are those of a submit (`ledger.submission.validate`).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from fluoro.v1 import job_pb2, job_service_pb2
from google.protobuf import json_format

from fluoro_jobs.errors import FluoroError
from fluoro_jobs.ledger.records import MAX_INPUTS
from fluoro_jobs.ledger.submission import MAX_OPERATION_BYTES, OUTPUT_ONLY_STEP, validate
from fluoro_jobs.pipelines.documents import Document, Place, parse
from fluoro_jobs.pipelines.parameters import (
    RANGES,
    TYPES,
    Parameter,
    Scalar,
    WrongValueError,
    value_of,
)
from fluoro_jobs.pipelines.template import MARKER, NAME_OF_PARAMETER, Template, snake

MAX_PARAMETERS: Final = 64
MAX_VERSION: Final = 999_999_999
MAX_TITLE: Final = 256
MAX_DESCRIPTION: Final = 4096
MAX_CHOICES: Final = 100

_ID: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")
_MEDIA_TYPE: Final = re.compile(r"[a-z]+/[a-z0-9.+-]{1,126}")
_FIXED: Final = frozenset(("name", "after", "inputs", "allow_identifiable"))
"""Fields of a step that no parameter may set: they are the graph."""
_INPUT: Final = "blobs/00000000-0000-7000-8000-000000000000"
"""Stands for a caller's blob."""


def template(text: bytes, file: str) -> Template:
    """The pipeline that a file describes. BadPipelineError says what is wrong with it, and where.

    file: how to call it.
    """
    document = parse(text, file)
    fields = _Fields(document, (), document.data)
    read = Template(
        id=fields.text("name", _ID, "lower case letters, digits and hyphens, 63 at most"),
        version=fields.number("version", 1, MAX_VERSION),
        title=fields.line("title", MAX_TITLE, required=True),
        description=fields.line("description", MAX_DESCRIPTION),
        accepts=fields.texts("accepts", _MEDIA_TYPE, "a media type, application/dicom say"),
        max_inputs=fields.number("max_inputs", 1, MAX_INPUTS) if "max_inputs" in fields.data else 0,
        parameters={one.name: one for one in _parameters(fields)},
        data=fields.mappings("steps"),
        content=document.data,
    )
    fields.done()
    # Markers are checked first, because a bad one would give a puzzling fault in a trial.
    _check_markers(read, document)
    for values, about in _trials(read):
        _try(read, document, values, about)
    return read


class _Fields:
    """The entries of a mapping, each taken once, checked for its type."""

    def __init__(self, document: Document, place: Place, data: Mapping[str, Any]) -> None:
        self.document, self.place, self.data = document, place, data
        self._taken: set[str] = set()

    def take(self, name: str, kind: type | tuple[type, ...], what: str, default: Any) -> Any:
        """The entry, or the default. BadPipelineError if it is another type, or missing."""
        self._taken.add(name)
        value = self.data.get(name, default)
        # `true` is an int to Python, and no number to YAML.
        fits = isinstance(value, kind) and not (isinstance(value, bool) and kind is int)
        if value is not default and not fits:
            raise self.bad(name, f"{name} must be {what}")
        if value is None and name not in self.data:
            raise self.bad(name, f"{name} is missing: {what}")
        return value

    def text(self, name: str, pattern: re.Pattern[str], what: str) -> str:
        """A string of a pattern."""
        value: str = self.take(name, str, what, None)
        if not pattern.fullmatch(value):
            raise self.bad(name, f"{name} must be {what}")
        return value

    def number(self, name: str, least: int, greatest: int) -> int:
        """A whole number."""
        what = f"a whole number from {least} to {greatest}"
        value: int = self.take(name, int, what, None)
        if not least <= value <= greatest:
            raise self.bad(name, f"{name} must be {what}")
        return value

    def line(self, name: str, characters: int, *, required: bool = False) -> str:
        """Text for people."""
        what = f"text of at most {characters} characters"
        value: str = self.take(name, str, what, None if required else "").strip()
        if len(value) > characters or (required and not value):
            raise self.bad(name, f"{name} must be {what}")
        return value

    def texts(self, name: str, pattern: re.Pattern[str], what: str) -> list[str]:
        """A list of such strings."""
        values: list[Any] = self.take(name, list, f"a list, each {what}", [])
        for i, value in enumerate(values):
            if not isinstance(value, str) or not pattern.fullmatch(value):
                raise self.document.bad((*self.place, name, i), f"must be {what}")
        return values

    def mappings(self, name: str) -> list[dict[str, Any]]:
        """A list of mappings, one at least."""
        what = "a list of steps, as those of fluoro.v1.Job in JSON"
        values: list[Any] = self.take(name, list, what, None)
        if not values or not all(isinstance(value, dict) for value in values):
            raise self.bad(name, f"{name} must be {what}")
        return values

    def scalar(self, name: str, parameter: Parameter) -> Scalar | None:
        """A value that the parameter allows; None if there is none."""
        if name not in self.data:
            return None
        value = self.take(name, (str, int, float, bool), parameter.allowed, None)
        try:
            return parameter.read(value_of(value))
        except WrongValueError as error:
            raise self.bad(name, f"{name}: {error}") from error

    def done(self) -> None:
        """BadPipelineError if there is more."""
        # A misspelt entry would otherwise be left out without a word.
        for name in self.data:
            if name not in self._taken:
                known = ", ".join(sorted(self._taken))
                raise self.bad(name, f"{name} is not known here; there are {known}")

    def bad(self, name: str, text: str) -> Exception:
        """The error about an entry."""
        return self.document.bad((*self.place, name), text)


def _parameters(fields: _Fields) -> Iterator[Parameter]:
    what = "a mapping from names to what they are"
    given: dict[str, Any] = fields.take("parameters", dict, what, {})
    if len(given) > MAX_PARAMETERS:
        raise fields.bad("parameters", f"at most {MAX_PARAMETERS} parameters")
    for name, data in given.items():
        place: Place = ("parameters", name)
        if not NAME_OF_PARAMETER.fullmatch(name):
            text = "a parameter's name is lower case letters, digits and _, 63 at most"
            raise fields.document.bad(place, text)
        if not isinstance(data, dict):
            raise fields.document.bad(place, f"{name} must be a mapping: type, default, and so on")
        yield _parameter(name, _Fields(fields.document, place, data))


def _parameter(name: str, fields: _Fields) -> Parameter:
    kind: str = fields.take("type", str, f"one of {', '.join(TYPES)}", None)
    if kind not in TYPES:
        raise fields.bad("type", f"type must be one of {', '.join(TYPES)}")
    description = fields.line("description", MAX_DESCRIPTION)
    required: bool = fields.take("required", bool, "true or false", False)
    least, greatest = _range(fields, kind) if kind in RANGES else (0, 0)
    choices = _choices(fields) if kind == "enum" else ()
    parameter = Parameter(name, kind, description, required, None, least, greatest, choices)
    if parameter.is_empty:
        raise fields.bad("max", "max must not be below min")
    default = fields.scalar("default", parameter)
    if required and default is not None:
        raise fields.bad("default", f"{name} is required, so its default is never used; drop one")
    fields.done()
    return replace(parameter, default=default)


def _range(fields: _Fields, kind: str) -> tuple[Scalar, Scalar]:
    widest = RANGES[kind]
    # Of a string the length has a range: a whole number.
    of = (
        Parameter("", "integer", least=0, greatest=MAX_OPERATION_BYTES)
        if kind == "string"
        else Parameter("", kind, least=widest[0], greatest=widest[1])
    )
    least, greatest = fields.scalar("min", of), fields.scalar("max", of)
    return widest[0] if least is None else least, widest[1] if greatest is None else greatest


def _choices(fields: _Fields) -> tuple[str, ...]:
    what = f"a list of 1 to {MAX_CHOICES} different words"
    given: list[Any] = fields.take("choices", list, what, None)
    words_alone = all(isinstance(one, str) and one for one in given)
    if not words_alone or not 1 <= len(given) <= MAX_CHOICES or len(set(given)) < len(given):
        raise fields.bad("choices", f"choices must be {what}")
    return tuple(given)


def _check_markers(read: Template, document: Document) -> None:
    """BadPipelineError for a marker that stands for nothing, or where none may stand."""
    used = set()
    for place, text in _strings(list(read.data), ("steps",)):
        marker = MARKER.fullmatch(text)
        if not marker:
            # Half a marker is a slip: left as it is, a caller would get the text itself.
            if "${" in text:
                raise document.bad(place, "a marker, ${name}, is the whole of a value")
            continue
        if snake(str(place[2])) in _FIXED:
            raise document.bad(place, f"no parameter sets {place[2]}: the graph is fixed")
        if marker[1] not in read.parameters:
            raise document.bad(place, f"{marker[1]} is not among the parameters")
        used.add(marker[1])
    for name in read.parameters:
        if name not in used:
            raise document.bad(("parameters", name), f"no step uses ${{{name}}}; drop it")


def _strings(data: Any, place: Place) -> Iterator[tuple[Place, str]]:
    if isinstance(data, str):
        yield place, data
    elif isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from _strings(value, (*place, key))


def _trials(read: Template) -> Iterator[tuple[dict[str, Scalar], str]]:
    """What callers may set, and the parameter that the trial is about."""
    every = {name: one.sample for name, one in read.parameters.items()}
    # One trial sets only what is required, because the defaults must make a whole job.
    yield {name: every[name] for name, one in read.parameters.items() if one.required}, ""
    for name, one in read.parameters.items():
        # One parameter at a time: all combinations would be too many.
        for value in one.samples():
            yield {**every, name: value}, name


def _try(read: Template, document: Document, values: dict[str, Scalar], about: str) -> None:
    """BadPipelineError if a job with these values would be refused."""
    told = f" (with {about} = {values[about]})" if about else ""
    job = job_pb2.Job(inputs=[_INPUT])
    for i in range(len(read.data)):
        try:
            step = read.step(i, {**read.defaults, **values})
        except json_format.ParseError as error:
            text = " ".join(str(error).split())
            raise document.bad(("steps", i), f"{text}{told}") from error
        for field, _ in step.ListFields():
            # A result is output only by its oneof.
            oneof = field.containing_oneof
            if field.name in OUTPUT_ONLY_STEP or (oneof and oneof.name in OUTPUT_ONLY_STEP):
                raise document.bad(("steps", i, field.name), f"{field.name} is output only")
        job.steps.append(step)
    try:
        validate(job_service_pb2.SubmitJobRequest(job=job), "")
    except FluoroError as error:
        for bad in error.violations:
            # Of a string that only stands for others, nothing but its type counts.
            by = read.parameters.get(read.markers.get(bad.field, ""))
            if by is None or by.type != "string" or values.get(by.name) in {None, by.default}:
                text = f"{bad.field.removeprefix('job.')}: {bad.description}{told}"
                raise document.bad(_place(bad.field), text) from error


_PART: Final = re.compile(r"\[(\d+)\]|([^.\[\]]+)")


def _place(field: str) -> Place:
    """Where in the file a field of a request is: `job.steps[0].name`."""
    parts = _PART.findall(field.removeprefix("job."))
    return tuple(int(number) if number else name for number, name in parts)
