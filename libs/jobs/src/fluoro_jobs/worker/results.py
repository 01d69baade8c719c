"""Results of tasks: small ones lie in the ledger, large ones in the blob store (ADR 0021).

The ledger's rows stay small, and a large result takes the way of artifacts: bytes first, then the
record with the commit. What a fenced attempt left is collected like its artifacts (ADR 0014).
"""

from typing import Final
from uuid import UUID

from fluoro.v1 import job_pb2
from fluoro_blobs import BlobStore
from google.protobuf.message import Message

from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ledger.read import StoredResult
from fluoro_jobs.operations import Operation
from fluoro_jobs.skew import read_result
from fluoro_jobs.worker.context import StepContext, blob_errors

INLINE_BYTES: Final = 256 * 2**10
"""A result up to here lies in the ledger."""
MEDIA_TYPE: Final = "application/x-protobuf"


def kept(
    context: StepContext, operation: Operation, result: Message
) -> tuple[bytes, job_pb2.Artifact | None]:
    """The message for the ledger, or nothing and the record of the blob that holds it.

    FluoroError RESULT_TOO_LARGE if it has more than the operation's max_result_bytes.
    """
    data = result.SerializeToString()
    if len(data) > operation.max_result_bytes:
        raise FluoroError(
            Reason.RESULT_TOO_LARGE,
            f"The result has {len(data)} bytes, over the limit of {operation.max_result_bytes}. "
            "Split the inputs over more tasks: set a smaller max_inputs_per_task.",
        )
    if len(data) <= INLINE_BYTES:
        return data, None
    return b"", context.stored("", "", MEDIA_TYPE, data)


def joined(blobs: BlobStore, stored: StoredResult) -> Message:
    """The whole result, read from the blob store where it is not here.

    FluoroError if a blob cannot be had, or as from `skew.read_result`.
    """
    with blob_errors():
        parts = [
            blobs.read(f"blobs/{part}") if isinstance(part, UUID) else part for part in stored.parts
        ]
    return read_result(stored.operation, b"".join(parts))
