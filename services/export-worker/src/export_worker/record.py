"""`result.json`: what the steps found, for programs."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fluoro.v1 import job_pb2
from fluoro_jobs.ledger.origins import Origins
from fluoro_jobs.operations import OPERATIONS
from fluoro_jobs.worker.context import Upstream
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from export_worker.provenance import provenance


def record(job: str, upstream: Sequence[Upstream], origins: Origins, path: Path) -> None:
    """Writes items, artifacts, result of each step, and provenance: a `fluoro.v1.Job` as JSON.

    `json_format.Parse` reads it. Zeros are written out, for readers that do not know the defaults.
    Artifacts carry their SHA-256 but no blob name, which differs from run to run. Keys are sorted.
    An entry takes a line, and memory no more than that.
    """
    steps = (_step(step) for step in sorted(upstream, key=lambda step: step.step))
    with path.open("w", encoding="utf-8") as file:
        made = _result(provenance(job, upstream, origins))
        fields = {"name": [_json(job)], "provenance": made, "steps": _list(steps)}
        file.writelines(_object(fields))
        file.write("\n")


def _step(upstream: Upstream) -> Iterator[str]:
    field = next(
        operation.field for operation in OPERATIONS if isinstance(upstream.result, operation.result)
    )
    # The name that the API gives it, so that the file reads back as a Job.
    result = job_pb2.Step.DESCRIPTOR.fields_by_name[f"{field}_result"].json_name
    return _object(
        {
            "name": [_json(upstream.step)],
            "items": _list([_json(_dict(item))] for item in upstream.items),
            "artifacts": _list([_json(_artifact(artifact))] for artifact in upstream.artifacts),
            result: _result(upstream.result),
        }
    )


def _result(result: Message) -> Iterator[str]:
    """Its entries one by one, and the rest of it at once."""
    lists = [
        field for field in result.DESCRIPTOR.fields if field.is_repeated and field.message_type
    ]
    rest = type(result)()
    rest.CopyFrom(result)
    for field in lists:
        # Entry by entry below: as one message, the JSON would be in memory as a whole.
        rest.ClearField(field.name)
    fields: dict[str, Iterable[str]] = {name: [_json(value)] for name, value in _dict(rest).items()}
    for field in lists:
        entries = getattr(result, field.name)
        fields[field.json_name] = _list([_json(_dict(entry))] for entry in entries)
    return _object(fields)


def _artifact(artifact: job_pb2.Artifact) -> dict[str, Any]:
    fields = _dict(artifact)
    del fields["blob"]
    return fields


def _object(fields: Mapping[str, Iterable[str]]) -> Iterator[str]:
    for number, name in enumerate(sorted(fields)):
        yield f"{',' if number else '{'}\n{_json(name)}: "
        yield from fields[name]
    yield "}"


def _list(entries: Iterable[Iterable[str]]) -> Iterator[str]:
    yield "["
    for number, entry in enumerate(entries):
        yield ",\n" if number else "\n"
        yield from entry
    yield "]"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, allow_nan=False)


def _dict(message: Message) -> dict[str, Any]:
    return MessageToDict(message, always_print_fields_with_no_presence=True)
