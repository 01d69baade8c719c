"""Writes docs/api, the reference of the API, from the protos and the table of roles: `make docs`.

A test compares the committed pages with what this gives. What the pages say is in the comments of
protos/fluoro/v1; edit it there.
"""
# ruff: noqa: INP001 - a script, not a package

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from buf.validate import validate_pb2
from fluoro_jobs.errors import REASONS, Reason
from gateway.identity.principal import Role
from gateway.identity.roles import NEEDED
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)
from grpc_tools import protoc

DOCS: Final = Path(__file__).parent
PROTOS: Final = DOCS.parent / "protos"
FOLDER: Final = DOCS / "api"
MARK: Final = "<!-- Written by `make docs` from the protos; edit their comments. -->"
PACKAGE: Final = ".fluoro.v1."

INDEX_HEAD: Final = """\
# The API

Everything that a gateway answers, in the package `fluoro.v1`. These pages are the comments of
[protos/fluoro/v1](../../protos/fluoro/v1), with the roles that each call needs and the rules that
each field has.

- From Python, use [the client](../../clients/python/README.md); from
  [other languages](../other-languages.md), compile or load the protos.
- A refusal has a gRPC code and a [reason](../errors.md), which programs branch on. Every call may
  end with `INVALID_ARGUMENT`, `MESSAGE_TOO_LARGE`, a reason of [identity](../identity.md), and
  those with the code `UNAVAILABLE`, after which the same call is made again. Each call's section
  names the others.
- [Identity](../identity.md) says how callers prove who they are and get their roles. Any one of the
  roles beside a call is enough.
- Within v1, fields, calls and reasons are added, never renamed or removed."""

INDEX_TAIL: Final = """\
## In JSON

`buf curl`, `fluoro --output json` and pipelines write messages in
[proto3 JSON](https://protobuf.dev/programming-guides/json/).

| type | in JSON |
| --- | --- |
| `int64` | a string: `"1048576"` |
| `bytes` | base64 |
| an enum | the value's name: `"STATE_RUNNING"` |
| `Timestamp` | `"2026-01-31T12:00:00Z"` |
| `Duration` | seconds: `"1.5s"` |
| `FieldMask` | names with commas between: `"name,state"` |
| `Struct`, `Value` | any JSON object; any JSON value |

Fields are in lowerCamelCase, and those that are 0, empty or unset are left out. As input, the names
of the protos do too.

## Beside it

A gateway also serves `grpc.health.v1.Health` (Check, List, Watch), which needs no role, and
reflection, unless `FLUORO_REFLECTION` is `false`. Health is known of `fluoro.v1.JobService` and,
by the name `""`, of the process."""

OWN_REASONS: Final = [str(each) for each in Reason if str(each) != REASONS[each].code]
"""Reasons that are not named like a gRPC code."""

SCALARS: Final = {
    number: name.removeprefix("TYPE_").lower() for name, number in FieldDescriptorProto.Type.items()
}

RULES: Final[dict[str, str]] = {
    "const": "{}",
    "defined_only": "a value that is defined",
    "email": "an e-mail address",
    "finite": "finite",
    "gt": "> {}",
    "gte": "≥ {}",
    "in": "one of {}",
    "len": "{} characters",
    "lt": "< {}",
    "lte": "≤ {}",
    "max_bytes": "at most {} bytes",
    "max_items": "at most {} entries",
    "max_len": "at most {} characters",
    "max_pairs": "at most {} entries",
    "min_bytes": "at least {} bytes",
    "min_items": "at least {} entries",
    "min_len": "at least {} characters",
    "min_pairs": "at least {} entries",
    "not_in": "not {}",
    "pattern": "matching `{}`",
    "prefix": "beginning with `{}`",
    "required": "required",
    "suffix": "ending with `{}`",
    "unique": "no entry twice",
    "uri": "a URI",
    "uuid": "a UUID",
}
"""Rules of protovalidate in words."""

INNER: Final = {"items": "each entry", "keys": "each key", "values": "each value"}
"""Rules about what is in a list or map."""

TRIVIAL: Final = re.compile(r"(Request|Response|Answer) of \w+\.")
"""Comments that say no more than the place where they would stand."""
CODE: Final = re.compile(r"(`[^`]*`)")
WORD: Final = re.compile(r"docs/[a-z-]+\.md|[A-Z][A-Za-z0-9_]+(?:\.[A-Za-z_]+)*")
HUMPS: Final = re.compile(r"[A-Z][a-z0-9]+(?:[A-Z][a-z0-9]+)+")


def compiled() -> list[FileDescriptorProto]:
    """Our files with their comments. RuntimeError if protoc refuses them."""
    names = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.glob("fluoro/**/*.proto"))
    with TemporaryDirectory() as folder:
        target = Path(folder) / "set"
        status = protoc.main(
            [
                *("protoc", f"-I{PROTOS}", f"-I{Path(protoc.__file__).parent / '_proto'}"),
                *("--include_source_info", f"--descriptor_set_out={target}", *names),
            ]
        )
        if status:
            raise RuntimeError("protoc refuses the protos; see above.")
        return list(FileDescriptorSet.FromString(target.read_bytes()).file)


class Reference:
    """What the files say, and where on the pages it stands."""

    def __init__(self, files: Iterable[FileDescriptorProto]) -> None:
        self.files = list(files)
        self.homes: dict[str, str] = {}
        """Page and anchor by name: `Job`, `Job.State`, `Job.labels`, `JobService.GetJob`."""
        self.messages: dict[str, DescriptorProto] = {}
        self.comments: dict[str, dict[tuple[int, ...], str]] = {}
        for file in self.files:
            self._register(file)

    def _register(self, file: FileDescriptorProto) -> None:
        page = f"{stem(file)}.md"
        self.comments[file.name] = {
            tuple(location.path): location.leading_comments.strip()
            for location in file.source_code_info.location
            if location.leading_comments.strip()
        }
        for service in file.service:
            self._at(page, service.name)
            for method in service.method:
                self._at(page, method.name)
                self.homes[f"{service.name}.{method.name}"] = self.homes[method.name]
                for part in (method.input_type, method.output_type):
                    self.homes[short(part)] = self.homes[method.name]
        for message in file.message_type:
            self.messages[message.name] = message
            self._at(page, message.name)
            for field in message.field:
                self.homes[f"{message.name}.{field.name}"] = self.homes[message.name]
            for enum in message.enum_type:
                self._at(page, f"{message.name}.{enum.name}")
        for enum in file.enum_type:
            self._at(page, enum.name)

    def _at(self, page: str, name: str) -> None:
        # Messages of a call already have its section for their home.
        self.homes.setdefault(name, f"{page}#{name.lower().replace('.', '')}")

    def comment(self, file: FileDescriptorProto, path: Iterable[int]) -> list[str]:
        """The paragraphs of a comment."""
        text = self.comments[file.name].get(tuple(path), "")
        return [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]

    def linked(self, text: str, here: str = "") -> str:
        """The text with links to what it names. here: page and anchor, not linked to again."""

        def link(match: re.Match[str]) -> str:
            word = match[0]
            target = self._target(word)
            page, _, anchor = target.partition("#")
            if not target or target == here:
                return word
            return f"[{word}]({f'#{anchor}' if page == here.partition('#')[0] else target})"

        return "".join(
            part if part.startswith("`") else WORD.sub(link, part) for part in CODE.split(text)
        )

    def _target(self, word: str) -> str:
        if word.startswith("docs/"):
            return f"../{word.removeprefix('docs/')}"
        if word in OWN_REASONS:
            return "../errors.md"
        # `Job` in a sentence is a word like others; `Job.labels` and `JobView` are names.
        return self.homes.get(word, "") if "." in word or HUMPS.fullmatch(word) else ""


def short(full_name: str) -> str:
    """The name below the package: `Job.State`."""
    return full_name.removeprefix(PACKAGE)


def stem(file: FileDescriptorProto) -> str:
    """`job_service`."""
    return Path(file.name).stem


class Page:
    """What is written about one file."""

    def __init__(self, reference: Reference, file: FileDescriptorProto) -> None:
        self.of, self.file = reference, file
        self.in_calls = {
            short(name)
            for service in file.service
            for method in service.method
            for name in (method.input_type, method.output_type)
        }
        self.places = {message.name: at for at, message in enumerate(file.message_type)}
        self.level = "###" if file.service else "##"
        """Of the headings of messages, which stand below one of their own beside services."""

    def text(self) -> Iterator[str]:
        """Its parts: services with what their calls take and give, then the other messages."""
        yield f"# {Path(self.file.name).name}"
        yield from self.prose((12,), "")
        yield "[The whole API](README.md)"
        for place, service in enumerate(self.file.service):
            yield from self.service(service, (6, place))
        if self.file.service and set(self.places) - self.in_calls:
            yield "## Messages"
        for place, message in enumerate(self.file.message_type):
            if message.name not in self.in_calls:
                yield from self.message(message, (4, place))
        for place, enum in enumerate(self.file.enum_type):
            yield from self.enum(enum, enum.name, (5, place))

    def prose(self, path: Iterable[int], here: str) -> Iterator[str]:
        """The paragraphs of a comment, with links."""
        for paragraph in self.of.comment(self.file, path):
            if not TRIVIAL.fullmatch(paragraph):
                yield self.of.linked(paragraph, here)

    def service(self, service: ServiceDescriptorProto, path: tuple[int, ...]) -> Iterator[str]:
        """A service and its calls."""
        yield f"## {service.name}"
        yield from self.prose(path, self.of.homes[service.name])
        for place, method in enumerate(service.method):
            yield from self.call(service, method, (*path, 2, place))

    def call(
        self,
        service: ServiceDescriptorProto,
        method: MethodDescriptorProto,
        path: tuple[int, ...],
    ) -> Iterator[str]:
        """A call: who may make it, what it does, takes and gives."""
        here = self.of.homes[method.name]
        yield f"### {method.name}"
        yield f"`/fluoro.v1.{service.name}/{method.name}` · for {roles_of(service, method)}"
        yield from self.prose(path, here)
        reasons = [f"[{reason}](../errors.md)" for reason in self.reasons(method, path)]
        if reasons:
            yield f"Reasons, besides those of every call: {', '.join(reasons)}."
        for kind, name, streams in (
            ("Takes", method.input_type, method.client_streaming),
            ("Gives", method.output_type, method.server_streaming),
        ):
            message = self.of.messages[short(name)]
            what = f"{kind} {'a stream of ' if streams else ''}`{message.name}`"
            yield f"**{what}**" if message.field else f"**{what}**, which is empty"
            place = (4, self.places[message.name])
            yield from self.prose(place, here)
            yield from self.fields(message, place, here)

    def reasons(self, method: MethodDescriptorProto, path: tuple[int, ...]) -> list[str]:
        """Those that the comments of a call and of its request name."""
        request = (4, self.places[short(method.input_type)])
        texts = [
            text
            for at, text in self.of.comments[self.file.name].items()
            if at == path or at[:2] == request
        ]
        named = {word for text in texts for word in re.findall(r"\b[A-Z][A-Z_]+\b", text)}
        return [reason for reason in OWN_REASONS if reason in named]

    def message(self, message: DescriptorProto, path: tuple[int, ...]) -> Iterator[str]:
        """A message with the enums in it."""
        here = self.of.homes[message.name]
        yield f"{self.level} {message.name}"
        yield from self.prose(path, here)
        yield from self.fields(message, path, here)
        for rule in message.options.Extensions[validate_pb2.message].cel:
            yield f"Rule of the whole: {rule.message}."
        for place, enum in enumerate(message.enum_type):
            yield from self.enum(enum, f"{message.name}.{enum.name}", (*path, 4, place))

    def fields(self, message: DescriptorProto, path: tuple[int, ...], here: str) -> Iterator[str]:
        """The table of a message's fields, and what its oneofs say."""
        rows = [
            (
                f"`{field.name}`",
                self.type_of(message, field, here),
                "<br><br>".join(self.prose((*path, 2, place), here)),
                "; ".join(rules_of(field)),
            )
            for place, field in enumerate(message.field)
        ]
        if rows:
            yield table(("field", "type", "meaning", "rules"), rows)
        for place, oneof in enumerate(message.oneof_decl):
            members = [
                f"`{field.name}`"
                for field in message.field
                if field.HasField("oneof_index")
                and field.oneof_index == place
                and not field.proto3_optional
            ]
            if members:
                required = oneof.options.Extensions[validate_pb2.oneof].required
                count = "Exactly one" if required else "One"
                told = " ".join(self.prose((*path, 8, place), here))
                yield f"{count} of {', '.join(members)} (oneof `{oneof.name}`). {told}"

    def type_of(self, message: DescriptorProto, field: FieldDescriptorProto, here: str) -> str:
        """`repeated Step`, with a link."""
        entry = next(
            (each for each in message.nested_type if field.type_name.endswith(f".{each.name}")),
            None,
        )
        if entry is not None and entry.options.map_entry:
            key, value = (self.type_of(entry, part, here) for part in entry.field)
            return f"map of {key} to {value}"
        name = short(field.type_name) or SCALARS[field.type]
        home = self.of.homes.get(name, "")
        if home == here:
            shown = f"`{name}`"
        elif home:
            page, _, anchor = home.partition("#")
            shown = f"[`{name}`]({f'#{anchor}' if here.startswith(f'{page}#') else home})"
        else:
            shown = f"`{name.removeprefix('.google.protobuf.')}`"
        repeated = field.label == FieldDescriptorProto.LABEL_REPEATED
        prefix = "repeated " if repeated else "optional " if field.proto3_optional else ""
        return prefix + shown

    def enum(self, enum: EnumDescriptorProto, name: str, path: tuple[int, ...]) -> Iterator[str]:
        """An enum and its values."""
        here = self.of.homes[name]
        yield f"{self.level}{'#' if '.' in name else ''} {name}"
        yield from self.prose(path, here)
        rows = [
            (
                f"`{value.name}`",
                str(value.number),
                "<br><br>".join(self.prose((*path, 2, place), here)),
            )
            for place, value in enumerate(enum.value)
        ]
        yield table(("value", "number", "meaning"), rows)


def roles_of(service: ServiceDescriptorProto, method: MethodDescriptorProto) -> str:
    """The roles any one of which is enough."""
    needed = NEEDED[f"fluoro.v1.{service.name}.{method.name}"]
    return ", ".join(f"`{role}`" for role in Role if role in needed)


def rules_of(field: FieldDescriptorProto) -> Iterator[str]:
    """The field's rules in words. LookupError if RULES has no words for one."""
    yield from _words(field.options.Extensions[validate_pb2.field])


def _words(rules: Any) -> Iterator[str]:
    set_ = {part.name: value for part, value in rules.ListFields()}
    if {"gte", "lte"} <= set(set_):
        yield f"{_shown(set_['gte'])} to {_shown(set_['lte'])}"
    for part, value in rules.ListFields():
        if part.name in {"gte", "lte"} and {"gte", "lte"} <= set(set_):
            continue
        if part.name == "cel":
            yield from (rule.message for rule in value)
        elif part.name in INNER:
            yield f"{INNER[part.name]}: {' and '.join(_words(value))}"
        elif part.name in RULES:
            if value is not False:
                yield RULES[part.name].format(_shown(value))
        elif part.message_type is not None and part.containing_type.name == "FieldRules":
            yield from _words(value)  # those of the field's type
        else:
            raise LookupError(f"docs/api.py has no words for the rule {part.full_name}: add some.")


def _shown(value: Any) -> str:
    if hasattr(value, "ToTimedelta"):
        return f"{value.ToTimedelta().total_seconds():,g} s"
    if isinstance(value, int | float):
        return f"{value:,g}"
    return value if isinstance(value, str) else ", ".join(map(str, value))


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table, without the columns that are empty in every row."""
    lines = [list(row) for row in rows]
    columns = [at for at, _ in enumerate(list(head)) if any(line[at] for line in lines)]
    names = list(head)
    cells = [
        [names[at] for at in columns],
        ["---" for _ in columns],
        *([line[at].replace("|", "\\|") for at in columns] for line in lines),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def index(reference: Reference) -> Iterator[str]:
    """The first page: every call, and what else there is."""
    yield INDEX_HEAD
    # The service with the most calls is what people come for.
    for file in sorted(reference.files, key=lambda file: -calls_in(file)):
        for place, service in enumerate(file.service):
            yield f"## [{service.name}]({reference.homes[service.name]})"
            yield reference.linked(reference.comment(file, (6, place))[0])
            rows = []
            for at, method in enumerate(service.method):
                first = reference.comment(file, (6, place, 2, at))[0]
                told = re.split(r"(?<=[.])\s", first)[0]
                home = reference.homes[method.name]
                rows.append((f"[{method.name}]({home})", told, roles_of(service, method)))
            yield table(("call", "what it does", "roles"), rows)
    yield "## Files"
    yield table(
        ("file", "what is in it"),
        (
            (
                f"[{Path(file.name).name}]({stem(file)}.md)",
                " ".join(reference.comment(file, (12,)))
                or ", ".join(f"`{message.name}`" for message in file.message_type),
            )
            for file in sorted(reference.files, key=stem)
        ),
    )
    yield INDEX_TAIL


def calls_in(file: FileDescriptorProto) -> int:
    """How many calls a file has."""
    return sum(len(service.method) for service in file.service)


def documents() -> dict[Path, str]:
    """Every page and its text."""
    reference = Reference(compiled())
    parts = {"README.md": index(reference)} | {
        f"{stem(file)}.md": Page(reference, file).text() for file in reference.files
    }
    return {FOLDER / name: "\n\n".join([MARK, *text]) + "\n" for name, text in parts.items()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for left in FOLDER.glob("*.md"):
        left.unlink()
    for path, text in documents().items():
        path.write_text(text)
