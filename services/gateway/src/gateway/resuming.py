"""Uploads that go on after a broken connection, on this gateway or on any other.

The ledger says which stream of an upload is the newest, the store has what each stream wrote. An
older stream is told as soon as a newer one comes to the same gateway, or within TOUCH_SECONDS.
Until then its bytes are out of the newer one's way.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final
from uuid import UUID

from fluoro.v1.blob_service_pb2 import (
    BeginUploadRequest,
    BeginUploadResponse,
    Blob,
    CommitUploadRequest,
    CommitUploadResponse,
    SignUploadRequest,
    SignUploadResponse,
    UploadBlobHeader,
    UploadBlobResponse,
)
from fluoro_blobs import BlobStore, PartsWriter, ResumableUpload, StoredBlob
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger import blobs as records
from fluoro_jobs.ledger import uploads
from fluoro_jobs.ledger.uploads import Upload
from fluoro_jobs.worker.context import blob_errors

from gateway import names
from gateway.ledger_calls import LedgerCalls
from gateway.rpc import Call

TOUCH_SECONDS: Final = 30
"""How often a stream tells the ledger that it is there, and hears whether it is the newest."""

OPEN_TRIES: Final = 3
"""How often a stream tries to be the newest, while others do too."""

MOST_LEFT: Final = 2
"""What the streams of an upload may leave behind, in sizes of the upload.

Those that go on where the one before ended leave no byte twice.
"""

SIGNED_SECONDS: Final = 900
"""How long a signed URL is good for, unless told."""

LONGEST_SIGNED_SECONDS: Final = 3600
"""No longer than an upload is kept that nobody goes on with."""

LARGEST_PUT_BYTES: Final = 5 * 2**30
"""What S3 takes in one PUT."""

Receive = Callable[[PartsWriter, int, int], Awaitable[None]]
"""Takes a stream's chunks into a writer: from a byte on, and no more than the upload has."""


class Resuming:
    """What BlobService does for uploads with an id. For one event loop."""

    def __init__(self, calls: LedgerCalls, store: BlobStore) -> None:
        self._calls, self._store = calls, store
        self._newest: dict[UUID, asyncio.Timeout] = {}

    async def begin(self, owner: str, request: BeginUploadRequest) -> BeginUploadResponse:
        """How far the upload is.

        request: its header holds what it may. FluoroError of uploads.begin.
        """
        upload_id = names.upload_id(request.upload_id, "upload_id")
        found = await self._calls.run_for(owner, uploads.begin, owner, upload_id, request.header)
        # The owner has the same bytes: there is nothing to send.
        if isinstance(found, Blob):
            return BeginUploadResponse(committed_bytes=found.size_bytes, blob=found)
        if found.blob_id is not None:
            blob = await self._calls.run_for(owner, records.get, owner, found.blob_id)
            return BeginUploadResponse(committed_bytes=blob.size_bytes, blob=blob)
        return BeginUploadResponse(committed_bytes=await self._committed(found))

    async def stream(
        self, call: Call, header: UploadBlobHeader, receive: Receive
    ) -> UploadBlobResponse:
        """Takes one stream of an upload, and makes the blob if all bytes are there.

        FluoroError INVALID_ARGUMENT, UPLOAD_NOT_FOUND, UPLOAD_SUPERSEDED, UPLOAD_MISMATCH, or what
        `receive` raises; what came until then stays.
        """
        owner, upload_id = call.owner, names.upload_id(header.upload_id, "header.upload_id")
        upload = await self._calls.run_for(owner, uploads.find, owner, upload_id)
        upload = await self._opened(owner, upload, header.offset)
        if upload.blob_id is not None:
            blob = await self._calls.run_for(owner, records.get, owner, upload.blob_id)
            call.record.is_about([blob.name])
            return UploadBlobResponse(committed_bytes=blob.size_bytes, blob=blob)
        async with self._as_newest(owner, upload):
            start = upload.starts[-1]
            with blob_errors():
                segments = self._store.resumable(upload.key)
                if len(upload.starts) > 1:
                    # Bytes that this stream sends again are deleted first, or many attempts would
                    # fill the store.
                    left = await segments.drop_covered(upload.starts)
                    if left > MOST_LEFT * upload.size_bytes:
                        raise _broken_off(upload)
                async with segments.writer(upload.starts) as writer:
                    await receive(writer, start, upload.size_bytes)
            committed_bytes = start + writer.size_bytes
            # The stream ended early, which is no error: the caller goes on from here.
            if committed_bytes < upload.size_bytes:
                return UploadBlobResponse(committed_bytes=committed_bytes)
            # A stream that began at the first byte has seen all of it; the bytes need not be read
            # again.
            blob = await self._finish(call, upload, None if start else writer.stored)
        return UploadBlobResponse(committed_bytes=committed_bytes, blob=blob)

    async def sign(self, owner: str, request: SignUploadRequest) -> SignUploadResponse:
        """A URL for one PUT of all bytes."""
        upload_id = names.upload_id(request.upload_id, "upload_id")
        seconds: float = SIGNED_SECONDS
        if request.HasField("valid_for"):
            seconds = request.valid_for.seconds + request.valid_for.nanos / 1e9
        if not 1 <= seconds <= LONGEST_SIGNED_SECONDS:
            raise names.invalid("valid_for", f"Must be 1 s to {LONGEST_SIGNED_SECONDS} s.")
        upload = await self._calls.run_for(owner, uploads.find, owner, upload_id)
        url = self._store.resumable(upload.key).signed_url(seconds)
        if url is None:
            raise _no_direct_upload()
        if upload.size_bytes > LARGEST_PUT_BYTES:
            raise FluoroError(
                Reason.DIRECT_UPLOAD_UNSUPPORTED,
                f"One PUT carries {LARGEST_PUT_BYTES} bytes at most. Send them with UploadBlob.",
            )
        # Without the row nobody may have the URL: no sweep would know of what it brings.
        if not await self._calls.run_for(owner, uploads.sign, owner, upload):
            raise uploads.not_found()
        answer = SignUploadResponse(url=url, headers={"content-length": str(upload.size_bytes)})
        answer.expire_time.FromNanoseconds(time.time_ns() + round(seconds * 1e9))
        return answer

    async def commit(self, call: Call, request: CommitUploadRequest) -> CommitUploadResponse:
        """The blob of what was put to the URL."""
        owner, upload_id = call.owner, names.upload_id(request.upload_id, "upload_id")
        upload = await self._calls.run_for(owner, uploads.find, owner, upload_id)
        if upload.blob_id is not None:
            blob = await self._calls.run_for(owner, records.get, owner, upload.blob_id)
            call.record.is_about([blob.name])
            return CommitUploadResponse(blob=blob)
        # Another name each time: a commit that is repeated must not overwrite a blob.
        name, segments = f"blobs/{new_id()}", self._store.resumable(upload.key)
        if segments.signed_url(1) is None:
            raise _no_direct_upload()
        wanted = StoredBlob(upload.size_bytes, upload.sha256)
        async with self._as_newest(owner, upload):
            with blob_errors():
                whole = await segments.finish_direct(name, wanted)
            if whole is None:
                raise FluoroError(
                    Reason.UPLOAD_INCOMPLETE, "Nothing has come to the signed URL yet."
                )
            if not whole:
                raise FluoroError(
                    Reason.UPLOAD_MISMATCH,
                    "Size or SHA-256 of what came are not those declared. PUT the right bytes.",
                )
            kept = self._keep(call, upload, name, segments)
            # Shielded: the bytes are there, and without a record nobody would find them.
            return CommitUploadResponse(blob=await asyncio.shield(kept))

    async def _committed(self, upload: Upload) -> int:
        with blob_errors():
            return await self._store.resumable(upload.key).committed_bytes(upload.starts)

    async def _opened(self, owner: str, upload: Upload, offset: int) -> Upload:
        """The upload with this stream as its newest, or as it is if its blob is there."""
        for _ in range(OPEN_TRIES):
            if upload.blob_id is not None:
                return upload
            committed_bytes = await self._committed(upload)
            if not 0 <= offset <= committed_bytes:
                # Whoever made the blob meanwhile has deleted the bytes.
                found = await self._calls.run_for(owner, uploads.find, owner, upload.id)
                if found != upload:
                    upload = found
                    continue
                raise names.invalid(
                    "header.offset",
                    f"Must be between 0 and the {committed_bytes} bytes that are committed.",
                )
            if len(upload.starts) >= uploads.MOST_STREAMS:
                raise _broken_off(upload)
            # Guarded by the number of streams: of two that begin at once, one has to look
            # again.
            starts = await self._calls.run_for(owner, uploads.open_stream, owner, upload, offset)
            if starts is not None:
                return upload._replace(starts=starts)
            upload = await self._calls.run_for(owner, uploads.find, owner, upload.id)
        if upload.blob_id is None:
            raise uploads.superseded()
        return upload

    @asynccontextmanager
    async def _as_newest(self, owner: str, upload: Upload) -> AsyncIterator[None]:
        """Ends the older stream here, if there is one, and the body once a newer one begins."""
        # In this process the older stream ends at once; on other gateways its next touch ends it.
        if older := self._newest.get(upload.key):
            _end(older)
        limit = asyncio.timeout(None)
        try:
            async with limit:
                self._newest[upload.key] = limit
                touching = asyncio.create_task(self._touch(owner, upload, limit))
                try:
                    yield
                finally:
                    touching.cancel()
        except TimeoutError as error:
            # A timeout raised within the body belongs to the body.
            if not limit.expired():
                raise
            raise uploads.superseded() from error
        finally:
            # A newer stream may have put its own limit there.
            if self._newest.get(upload.key) is limit:
                del self._newest[upload.key]

    async def _touch(self, owner: str, upload: Upload, limit: asyncio.Timeout) -> None:
        while True:
            await asyncio.sleep(TOUCH_SECONDS)
            try:
                is_newest = await self._calls.run_for(owner, uploads.touch, owner, upload)
            except FluoroError:
                continue  # the ledger is away: nobody can begin a newer one there
            if not is_newest:
                _end(limit)
                return

    async def _finish(self, call: Call, upload: Upload, seen: StoredBlob | None) -> Blob:
        """The blob of all that came."""
        name, segments = f"blobs/{new_id()}", self._store.resumable(upload.key)
        wanted = StoredBlob(upload.size_bytes, upload.sha256)
        with blob_errors():
            whole = await segments.finish(name, upload.starts, wanted, seen)
        if not whole:
            # If a newer stream goes on with it, its bytes stay.
            if await self._calls.run_for(call.owner, uploads.drop, call.owner, upload):
                with blob_errors():
                    await segments.remove()
            raise FluoroError(
                Reason.UPLOAD_MISMATCH,
                "The SHA-256 of what came differs from the one that was declared. Begin anew.",
            )
        # Whoever hangs up from here on is too late: the bytes are there, and without a record
        # nobody would find them.
        return await asyncio.shield(self._keep(call, upload, name, segments))

    async def _keep(self, call: Call, upload: Upload, name: str, segments: ResumableUpload) -> Blob:
        """Adds the record, and deletes what is not needed any more."""
        close = call.record.with_change(uploads.close, _name)
        blob_id = UUID(name.removeprefix("blobs/"))
        try:
            stored = await self._calls.run_for(call.owner, close, call.owner, upload, blob_id)
        except FluoroError as error:
            # Superseded: the newer stream makes a blob of its own, and this one has no record.
            if error.reason == Reason.UPLOAD_SUPERSEDED:
                with blob_errors():
                    await self._store.delete_soon(name)
            raise
        # Only after the record: if its answer is lost, the next try still needs the segments.
        with blob_errors():
            await segments.remove()
            if stored.name != name:  # the owner has the same bytes already
                await self._store.delete_soon(name)
        return stored


def _name(blob: Blob) -> str:
    return blob.name


def _broken_off(upload: Upload) -> FluoroError:
    return names.invalid(
        "header.upload_id",
        f"This upload broke off {len(upload.starts)} times, or left too much behind. "
        "Begin another one.",
    )


def _no_direct_upload() -> FluoroError:
    return FluoroError(
        Reason.DIRECT_UPLOAD_UNSUPPORTED,
        "This deployment's blob store cannot sign URLs. Send the bytes with UploadBlob.",
    )


def _end(stream: asyncio.Timeout) -> None:
    """Has the stream end now, unless it does already."""
    if not stream.expired():
        stream.reschedule(0)
