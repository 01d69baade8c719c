"""Results of tasks: small ones lie in the ledger, large ones in the blob store (ADR 0021).

The ledger's rows stay small, and a large result takes the way of artifacts: bytes first, then the
record with the commit. What a fenced attempt left is collected like its artifacts (ADR 0014).
"""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from threading import Lock
from typing import Final
from uuid import UUID

from fluoro.v1 import job_pb2
from fluoro_blobs import BlobStore
from google.protobuf.message import Message

from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ledger.planning import ALL
from fluoro_jobs.ledger.read import StoredResult
from fluoro_jobs.operations import Operation
from fluoro_jobs.skew import read_result
from fluoro_jobs.worker.context import StepContext, blob_errors

INLINE_BYTES: Final = 256 * 2**10
"""A result up to here lies in the ledger."""
KEPT_BYTES: Final = 32 * 2**20
"""Large results of earlier steps that a process keeps for its next tasks, serialized."""
MEDIA_TYPE: Final = "application/x-protobuf"
ITEM: Final = "item"
"""Field of an entry of a result: the key of the input that it is about."""


def kept(
    context: StepContext, operation: Operation, result: Message
) -> tuple[bytes, job_pb2.Artifact | None]:
    """The message for the ledger, or nothing and the record of the blob that holds it.

    FluoroError RESULT_TOO_LARGE if it has more than the operation's max_result_bytes.
    """
    data = result.SerializeToString()
    # Before anything is stored: a result of gigabytes must not go to the store only to be refused.
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
    """The whole result, read from the blob store where it is not here; a part at a time.

    FluoroError if a blob cannot be read, or as from `skew.read_result`.
    """
    whole = read_result(stored.operation, b"")
    for part in stored.parts:
        data = _read(blobs, part) if isinstance(part, UUID) else part
        whole.MergeFrom(read_result(stored.operation, data))
    return whole


def _read(blobs: BlobStore, blob: UUID) -> bytes:
    with blob_errors():
        return blobs.read(f"blobs/{blob}")


class LargeResults:
    """Large results that tasks of this process read, each read and parsed once.

    Where a thousand tasks work on what one task left, each of them needs a thousandth of what that
    one returned. Blobs never change, so what is kept here stays true.
    """

    def __init__(self, most_bytes: int = KEPT_BYTES) -> None:
        """most_bytes: of those that are kept, serialized. The newest is, whatever its size."""
        self._most_bytes = most_bytes
        self._lock = Lock()
        self._kept: OrderedDict[UUID, _Entries] = OrderedDict()

    def about(self, blobs: BlobStore, stored: StoredResult, keys: Iterable[str]) -> Message:
        """The result as far as it is about inputs of these keys; see `joined`."""
        wanted = set(keys)
        found = read_result(stored.operation, b"")
        for part in stored.parts:
            if isinstance(part, UUID):
                found.MergeFrom(self._entries(blobs, stored.operation, part).about(wanted))
            else:
                found.MergeFrom(read_result(stored.operation, part))
        return found

    def _entries(self, blobs: BlobStore, operation: str, blob: UUID) -> "_Entries":
        with self._lock:  # tasks that begin together wait for the first of them
            if (entries := self._kept.get(blob)) is None:
                data = _read(blobs, blob)
                entries = self._kept[blob] = _Entries(read_result(operation, data), len(data))
            self._kept.move_to_end(blob)
            while len(self._kept) > 1 and self._weight() > self._most_bytes:
                self._kept.popitem(last=False)
            return entries

    def _weight(self) -> int:
        return sum(entries.weight for entries in self._kept.values())


class _Entries:
    """A result whose entries are found by the items that they are about."""

    def __init__(self, result: Message, weight: int) -> None:
        """weight: of the result, serialized."""
        self.weight = weight
        self._result = result
        # A copy without the entries: what is about the result as a whole belongs to every task's
        # share.
        self._head = type(result)()
        self._head.CopyFrom(result)
        self._by_item: dict[str, list[tuple[str, Message]]] = {}
        for field, entries in result.ListFields():
            if (
                field.is_repeated
                and field.message_type
                and ITEM in field.message_type.fields_by_name
            ):
                self._head.ClearField(field.name)
                for entry in entries:
                    self._by_item.setdefault(getattr(entry, ITEM), []).append((field.name, entry))
        self._items = sorted(self._by_item)

    def about(self, keys: Collection[str]) -> Message:
        """The result without entries that are about other inputs."""
        if ALL in keys:
            return self._result
        found = type(self._result)()
        found.CopyFrom(self._head)
        # Sorted, so that every attempt reads the same order.
        for item in sorted({item for key in keys for item in self._of(key)}):
            for field, entry in self._by_item[item]:
                getattr(found, field).append(entry)
        return found

    def _of(self, key: str) -> Iterator[str]:
        """The items that it may come from or be made of: what it stands below, and what below it.

        Entries of an earlier release have no key.
        """
        parts = key.split("/")
        above = ("/".join(parts[:n]) for n in range(1, len(parts) + 1))
        yield from (item for item in ("", *above) if item in self._by_item)
        # Sorted names that begin alike stand together, so two look-ups find them among ten
        # thousand.
        for place in range(bisect_left(self._items, f"{key}/"), len(self._items)):
            if not self._items[place].startswith(f"{key}/"):
                return
            yield self._items[place]
