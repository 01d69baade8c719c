"""Finds the inputs of a step that works on what earlier steps left.

Runs in the transaction that unblocks the step, and so sees what that transaction leaves.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

from fluoro_jobs.ledger.connection import LedgerConnection
from fluoro_jobs.ledger.records import MAX_INPUTS, MAX_PARTS, Step
from fluoro_jobs.ledger.sources import Source

ALL: Final = "all"
"""Key of the one input that a group makes of keys that have no parent."""

_JOB_INPUTS: Final = """
SELECT i.number::text, i.number, i.blob_id, '', b.media_type
FROM job_inputs i JOIN blobs b ON b.id = i.blob_id WHERE i.job_id = %s ORDER BY i.number LIMIT %s
"""
_ARTIFACTS: Final = """
SELECT a.key, a.input, a.blob_id, a.name, b.media_type
FROM artifacts a JOIN blobs b ON b.id = a.blob_id
WHERE a.job_id = %s AND a.step = %s AND a.role = %s AND a.key <> '' ORDER BY a.shard, a.position
  LIMIT %s
"""


class Part(NamedTuple):
    """A blob of an input. name: the artifact's, empty for the job's inputs. step: that left it."""

    blob: UUID
    role: str
    name: str
    media_type: str
    step: int | None


class StepInput(NamedTuple):
    """One input of a step: all blobs of one key. input: number of the job's input it comes from."""

    number: int
    key: str
    input: int | None
    parts: Sequence[Part]


class Found(NamedTuple):
    """A blob that a source names. input: number of the job's input that it comes from."""

    source: Source
    key: str
    input: int | None
    part: Part


def resolve(connection: LedgerConnection, job: UUID, step: Step) -> list[StepInput] | None:
    """The inputs of a step that was unblocked; None if there are too many."""
    found: list[Found] = []
    for source in step.sources or ():
        ordinal, role, _ = source
        # One more than is allowed: that is enough to know that there are too many.
        limit = MAX_PARTS - len(found) + 1
        if ordinal is None:
            rows = connection.execute(_JOB_INPUTS, (job, limit))
        else:
            rows = connection.execute(_ARTIFACTS, (job, ordinal, role, limit))
        for key, number, blob, name, media_type in rows:
            part = Part(blob, role, name, media_type, ordinal)
            found.append(Found(source, key, number, part))
    inputs = gather(found)
    return None if len(found) > MAX_PARTS or len(inputs) > MAX_INPUTS else inputs


def gather(found: Iterable[Found]) -> list[StepInput]:
    """Makes one input of all that has the same key, or the same parent; numbered as they come."""
    together: dict[str, list[Found]] = {}
    for one in found:
        key = (one.key.rpartition("/")[0] or ALL) if one.source.group else one.key
        together.setdefault(key, []).append(one)
    inputs = []
    for number, (key, ones) in enumerate(together.items()):
        # What comes from several of the job's inputs belongs to none of them.
        origins = {one.input for one in ones}
        origin = origins.pop() if len(origins) == 1 else None
        inputs.append(StepInput(number, key, origin, [one.part for one in ones]))
    return inputs


def as_rows(step: int, inputs: Iterable[StepInput]) -> list[dict[str, Any]]:
    """As rows of `step_inputs`, for JSON."""
    return [
        {
            "step": step,
            "number": one.number,
            "key": one.key,
            "input": one.input,
            "parts": [[str(part.blob), *part[1:]] for part in one.parts],
        }
        for one in inputs
    ]
