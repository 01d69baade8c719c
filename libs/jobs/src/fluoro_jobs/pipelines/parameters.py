"""Parameters of a pipeline: what a caller may set, and whether a value is allowed. Pure."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from fluoro.v1 import pipeline_service_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Value

Scalar: TypeAlias = str | float | bool
"""A value, as JSON has it; int is a float here."""
Type = pipeline_service_pb2.PipelineParameter.Type

TYPES: Final = {
    Type.Name(number).removeprefix("TYPE_").lower(): number for number in Type.values() if number
}
"""Types by their names in files: `string`, `number`, and so on."""
LARGEST_INTEGER: Final = 2**31 - 1
LARGEST_NUMBER: Final = 1.7976931348623157e308
LONGEST_SECONDS: Final = 315_576_000_000
MAX_CHARACTERS: Final = 256
"""Of a string, unless its parameter says otherwise."""

RANGES: Final[dict[str, tuple[Scalar, Scalar]]] = {
    "string": (0, MAX_CHARACTERS),
    "number": (-LARGEST_NUMBER, LARGEST_NUMBER),
    "integer": (-LARGEST_INTEGER - 1, LARGEST_INTEGER),
    "duration": ("0s", f"{LONGEST_SECONDS}s"),
}
"""Least and greatest value of each type that has them, unless a parameter says otherwise."""


class WrongValueError(ValueError):
    """A value that is not allowed. The message says what is, and does not repeat the value."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One thing that a caller may set.

    type: a key of `TYPES`. default: None if there is none. least, greatest: bounds of the value, of
    a string those of its length. choices: all values of an enum.
    """

    name: str
    type: str
    description: str = ""
    required: bool = False
    default: Scalar | None = None
    least: Scalar = 0
    greatest: Scalar = 0
    choices: tuple[str, ...] = ()

    def read(self, value: Value) -> Scalar:
        """The value, once it is allowed. WrongValueError."""
        match self.type, value.WhichOneof("kind"):
            case "boolean", "bool_value":
                return value.bool_value
            case "enum", "string_value" if value.string_value in self.choices:
                return value.string_value
            case "string", "string_value" if self._holds(len(value.string_value)):
                return value.string_value
            case "number", "number_value" if self._holds(value.number_value):
                return value.number_value
            # JSON has no integers: 3.0 is one.
            case "integer", "number_value" if value.number_value.is_integer() and self._holds(
                value.number_value
            ):
                return int(value.number_value)
            case "duration", "string_value" if self._holds(nanoseconds(value.string_value)):
                return value.string_value
        raise WrongValueError(self.allowed)

    @property
    def allowed(self) -> str:
        """What values are allowed, as a sentence."""
        match self.type:
            case "boolean":
                return "Must be true or false."
            case "enum":
                return f"Must be one of {', '.join(self.choices)}."
            case "string":
                return f"Must be a string of {self.least} to {self.greatest} characters."
            case "duration":
                return f"Must be a duration such as 90s, from {self.least} to {self.greatest}."
        kind = "a number" if self.type == "number" else "a whole number"
        return f"Must be {kind} from {self.least:.12g} to {self.greatest:.12g}."

    @property
    def is_empty(self) -> bool:
        """Whether no value is allowed: its least is above its greatest."""
        if self.type not in RANGES:
            return False
        return not self._holds(
            nanoseconds(self.least) if self.type == "duration" else float(self.least)
        )

    @property
    def sample(self) -> Scalar:
        """A value that is allowed."""
        return self.default if self.default is not None else next(self.samples())

    def samples(self) -> Iterator[Scalar]:
        """Values that stand for all that are allowed."""
        match self.type:
            case "boolean":
                yield from (False, True)
            case "enum":
                yield from self.choices
            case "string":
                yield "x" * max(1, int(self.least))
            case "number":
                least, greatest = float(self.least), float(self.greatest)
                yield from (least, greatest, math.nextafter(greatest, least))
            case _:
                yield from (self.least, self.greatest)

    def as_proto(self) -> pipeline_service_pb2.PipelineParameter:
        """As the API describes it."""
        ranged = self.type in RANGES
        return pipeline_service_pb2.PipelineParameter(
            name=self.name,
            type=TYPES[self.type],
            description=self.description,
            required=self.required,
            default_value=None if self.default is None else value_of(self.default),
            minimum=value_of(self.least) if ranged else None,
            maximum=value_of(self.greatest) if ranged else None,
            choices=self.choices,
        )

    def _holds(self, value: float) -> bool:
        """Whether it is in range; NaN is in none."""
        if self.type == "duration":
            return nanoseconds(self.least) <= value <= nanoseconds(self.greatest)
        return float(self.least) <= value <= float(self.greatest)


def value_of(scalar: Scalar) -> Value:
    """As google.protobuf.Value."""
    # Before numbers: a bool is an int to Python.
    if isinstance(scalar, bool):
        return Value(bool_value=scalar)
    if isinstance(scalar, str):
        return Value(string_value=scalar)
    return Value(number_value=scalar)


def nanoseconds(text: Any) -> float:
    """Of a duration in proto3 JSON; NaN if it is none."""
    duration = Duration()
    try:
        duration.FromJsonString(text)
    except (ValueError, AttributeError, TypeError):
        return math.nan
    return duration.ToNanoseconds()
