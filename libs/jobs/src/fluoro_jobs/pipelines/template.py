"""One version of a pipeline: steps in which a caller's parameters take their place.

The steps are a job's, in proto3 JSON, so a template knows every operation there is. `${name}`
stands for the whole of a value. What a parameter without a value would set is left out, and so is a
message that holds nothing else. Names of steps and the edges between them are fixed: parameters
set what operations do, and cannot lead around a step that de-identifies.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from fluoro.v1 import job_pb2, pipeline_service_pb2
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from fluoro_jobs.errors import FieldViolation, FluoroError, Reason
from fluoro_jobs.ledger.submission import MAX_TOLD
from fluoro_jobs.pipelines.parameters import Parameter, Scalar, WrongValueError

MARKER: Final = re.compile(r"\$\{([a-z][a-z0-9_]{0,62})\}")
NAME_OF_PARAMETER: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")
_ABSENT: Final = object()
"""Stands for a value that is left out."""


@dataclass(frozen=True)
class Template:
    """A pipeline as its file says; `reading.template` has made sure that it can be submitted.

    max_inputs: 0 if it sets no limit of its own. data: its steps in proto3 JSON, with markers.
    content: all of the file, to tell two apart.
    """

    id: str
    version: int
    title: str
    description: str
    accepts: Sequence[str]
    max_inputs: int
    parameters: Mapping[str, Parameter]
    data: Sequence[dict[str, Any]]
    content: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Its resource name."""
        return f"pipelines/{self.id}/versions/{self.version}"

    @cached_property
    def markers(self) -> Mapping[str, str]:
        """Parameters by the fields that they set, `job.steps[1].render_dicom.window.width` say."""
        return {
            path: marker[1]
            for i, step in enumerate(self.data)
            for path, text in _words(step, f"job.steps[{i}]")
            if (marker := MARKER.fullmatch(text))
        }

    @cached_property
    def defaults(self) -> Mapping[str, Scalar]:
        """Values of the parameters that have a default."""
        return {
            name: one.default for name, one in self.parameters.items() if one.default is not None
        }

    @cached_property
    def plain(self) -> Sequence[job_pb2.Step]:
        """The steps of a submit that sets no parameter."""
        return [self.step(i, self.defaults) for i in range(len(self.data))]

    def read(self, given: Struct) -> dict[str, Scalar]:
        """The values that a submit sets.

        FluoroError INVALID_ARGUMENT, with the parameters named, for one that is unknown, missing or
        not allowed. It repeats no value.
        """
        values: dict[str, Scalar] = {}
        bad: list[FieldViolation] = []
        for name, value in given.fields.items():
            parameter = self.parameters.get(name)
            if parameter is None:
                # Whatever is no name may be a value in the wrong place.
                field = field_of(name) if NAME_OF_PARAMETER.fullmatch(name) else "parameters"
                bad.append(FieldViolation(field, self._unknown))
                continue
            try:
                values[name] = parameter.read(value)
            except WrongValueError as error:
                bad.append(FieldViolation(field_of(name), str(error)))
        for name, parameter in self.parameters.items():
            if parameter.required and name not in given.fields:
                bad.append(FieldViolation(field_of(name), f"Required. {parameter.allowed}"))
        if bad:
            text = f"{len(bad)} bad parameter(s): {bad[0].field}: {bad[0].description}"
            more = max(0, len(bad) - MAX_TOLD)
            raise FluoroError(Reason.INVALID_ARGUMENT, text, bad[:MAX_TOLD], more_violations=more)
        return values

    def steps(self, values: Mapping[str, Scalar]) -> list[job_pb2.Step]:
        """The steps with these values, and the defaults of the other parameters.

        json_format.ParseError, for a template that was not looked at yet.
        """
        # Most submits set nothing, so their steps are made once.
        if not values:
            return list(self.plain)
        whole = {**self.defaults, **values}
        return [
            self.step(i, whole) if self._sets(i, values) else self.plain[i]
            for i in range(len(self.data))
        ]

    def as_proto(self, *, with_steps: bool = True) -> pipeline_service_pb2.Pipeline:
        """As the API describes it."""
        return pipeline_service_pb2.Pipeline(
            name=self.name,
            version=self.version,
            title=self.title,
            description=self.description,
            accepts=self.accepts,
            max_inputs=self.max_inputs,
            parameters=[one.as_proto() for one in self.parameters.values()],
            steps=self.plain if with_steps else (),
        )

    @property
    def _unknown(self) -> str:
        names = ", ".join(self.parameters) or "none"
        return f"{self.name} has no such parameter. It has: {names}."

    def _sets(self, step: int, values: Mapping[str, Scalar]) -> bool:
        prefix = f"job.steps[{step}]."
        return any(
            path.startswith(prefix) and parameter in values
            for path, parameter in self.markers.items()
        )

    def step(self, step: int, values: Mapping[str, Scalar]) -> job_pb2.Step:
        """One of the steps with exactly these values. json_format.ParseError as above."""
        data = self.data[step]
        filled = _filled(data, values)
        # An operation stays where nothing in it is set.
        kept: dict[str, Any] = {name: {} for name, value in data.items() if isinstance(value, dict)}
        return json_format.ParseDict({**kept, **filled}, job_pb2.Step())


def field_of(parameter: str) -> str:
    """How a refusal names a parameter."""
    return f'parameters["{parameter}"]'


def _words(data: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every string in it, with its field as a refusal names it."""
    if isinstance(data, str):
        yield path, data
    elif isinstance(data, dict):
        for name, value in data.items():
            yield from _words(value, f"{path}.{snake(name)}")
    elif isinstance(data, list):
        for i, value in enumerate(data):
            yield from _words(value, f"{path}[{i}]")


def _filled(data: Any, values: Mapping[str, Scalar]) -> Any:
    """Data with values in place of markers."""
    if isinstance(data, str):
        marker = MARKER.fullmatch(data)
        return values.get(marker[1], _ABSENT) if marker else data
    if isinstance(data, dict):
        made = {name: _filled(value, values) for name, value in data.items()}
        left = {name: value for name, value in made.items() if value is not _ABSENT}
        # A message that holds nothing but absent values goes with them. One that was empty in the
        # file stays: it means something.
        return left if left or not data else _ABSENT
    if isinstance(data, list):
        items = [_filled(value, values) for value in data]
        return [value for value in items if value is not _ABSENT]
    return data


_CAPITAL: Final = re.compile(r"(?<!^)(?=[A-Z])")


def snake(name: str) -> str:
    """A field's name as in the protos; JSON may write it with capitals."""
    return _CAPITAL.sub("_", name).lower()
