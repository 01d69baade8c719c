"""YAML as JSON: a safe subset, with limits, and the line of each value.

Values are those of JSON, as YAML's core schema writes them: `yes` is a string and `2026-01-01` is
no date. Anchors, aliases and tags are refused, so nothing grows while it is read.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import yaml

MAX_BYTES: Final = 64 * 2**10
"""Most bytes of a file."""
MAX_DEPTH: Final = 20
"""Most lists and mappings inside each other."""

Place: TypeAlias = tuple[str | int, ...]
"""Keys of mappings and positions in lists, from the outermost: `("steps", 0, "name")`."""


class BadPipelineError(ValueError):
    """Files of pipelines that no gateway can start with; the message has a line for each fault."""


@dataclass(frozen=True, slots=True)
class Document:
    """What a file says. lines: where each value begins, counted from 1."""

    file: str
    data: dict[str, Any]
    lines: dict[Place, int] = field(default_factory=dict)

    def bad(self, place: Place, text: str) -> BadPipelineError:
        """The error about the value at a place, or about the nearest that is there."""
        # A value that is missing has no line; its mapping has.
        while place and place not in self.lines:
            place = place[:-1]
        return BadPipelineError(f"{self.file}:{self.lines.get(place, 1)}: {text}")


class _Loader(yaml.SafeLoader):
    """Reads plain words as JSON does."""


# PyYAML's own are those of YAML 1.1, where `no` is false and 012 is ten.
_Loader.yaml_implicit_resolvers = {}
_TAG: Final = "tag:yaml.org,2002:"
for _kind, _pattern in (
    ("bool", r"true|false"),
    ("int", r"-?(0|[1-9][0-9]{0,17})"),
    ("float", r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?"),
    ("null", r"null|~|"),
):
    _Loader.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(f"(?:{_pattern})\\Z"), None)


def parse(text: bytes, file: str) -> Document:
    """The mapping in the file. BadPipelineError if it holds anything else, or too much."""
    if len(text) > MAX_BYTES:
        raise BadPipelineError(f"{file}:1: a file has at most {MAX_BYTES} bytes")
    document = Document(file, {})
    try:
        # Events come first, because they take no memory for what they stand for. The composer would
        # recurse into deep nesting.
        _check(text, document)
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = _line(error.problem_mark or error.context_mark)
        raise BadPipelineError(f"{file}:{line}: this is not YAML: {error.problem}") from error
    except BadPipelineError:
        raise
    # Python's own errors are about bytes and escapes that stand for no character.
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise BadPipelineError(f"{file}:1: this is not YAML in UTF-8") from error
    if not isinstance(node, yaml.MappingNode):
        raise BadPipelineError(f"{file}:1: write a mapping: name, version, title, steps")
    document.data.update(_plain(node, (), document))
    return document


def _check(text: bytes, document: Document) -> None:
    """Looks at the file piece by piece, before anything is built of it."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        # The place of the last event: what `bad` names if this check fails.
        document.lines[()] = _line(event.start_mark)
        if getattr(event, "anchor", None):  # an alias has one too
            raise document.bad((), "write it out: anchors and aliases are not read")
        if getattr(event, "tag", None):
            raise document.bad((), "leave the tag out: what a value is shows by itself")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise document.bad((), f"at most {MAX_DEPTH} lists and mappings inside each other")


def _line(mark: Any) -> int:
    return mark.line + 1 if mark else 1


def _plain(node: yaml.Node, place: Place, document: Document) -> Any:
    document.lines[place] = _line(node.start_mark)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(each, (*place, i), document) for i, each in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, place, document)
    text = str(node.value)
    # JSON cannot hold it, and protobuf would fail on it later, without a line.
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise document.bad(place, "half of a surrogate pair is no character")
    match node.tag.removeprefix(_TAG):
        case "null":
            raise document.bad(place, "give a value, or leave the line out")
        case "bool":
            return text == "true"
        case "int":
            return int(text)
        case "float":
            return float(text)
    return text


def _mapping(node: yaml.MappingNode, place: Place, document: Document) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in node.value:
        # The key's own line while the key is judged; the mapping's again at the end.
        document.lines[place] = _line(name.start_mark)
        if not isinstance(name, yaml.ScalarNode) or not name.value:
            raise document.bad(place, "a key is a word")
        # PyYAML lets the second one win in silence.
        if name.value in found:
            raise document.bad(place, f"{name.value} stands here twice; keep one")
        found[name.value] = _plain(value, (*place, name.value), document)
    document.lines[place] = _line(node.start_mark)
    return found
