"""`result.json`: what the steps found, for programs."""

import json
from collections.abc import Sequence
from typing import Any

from fluoro.v1 import job_pb2
from fluoro_jobs.operations import OPERATIONS
from fluoro_jobs.worker.context import Upstream
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message


def record(job: str, upstream: Sequence[Upstream]) -> bytes:
    """Name, items, artifacts and result of each step, as a `fluoro.v1.Job` in proto3 JSON.

    `json_format.Parse` reads it. Zeros are written out, for readers that do not know the defaults.
    Artifacts carry their SHA-256 but no blob name, which differs from run to run. Keys are sorted.
    """
    document = {
        "name": job,
        "steps": [_step(step) for step in sorted(upstream, key=lambda step: step.step)],
    }
    return (
        json.dumps(document, ensure_ascii=False, indent=2, sort_keys=True, allow_nan=False).encode()
        + b"\n"
    )


def _step(upstream: Upstream) -> dict[str, Any]:
    artifacts = [_json(artifact) for artifact in upstream.artifacts]
    for artifact in artifacts:
        del artifact["blob"]
    field = next(
        operation.field for operation in OPERATIONS if isinstance(upstream.result, operation.result)
    )
    return {
        "name": upstream.step,
        "items": [_json(item) for item in upstream.items],
        "artifacts": artifacts,
        job_pb2.Step.DESCRIPTOR.fields_by_name[f"{field}_result"].json_name: _json(upstream.result),
    }


def _json(message: Message) -> dict[str, Any]:
    return MessageToDict(message, always_print_fields_with_no_presence=True)
