"""BlobService: bytes go from the stream to the store and back; the ledger has the record."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from typing import Final

from fluoro.v1.blob_service_pb2 import (
    BeginUploadRequest,
    BeginUploadResponse,
    Blob,
    CommitUploadRequest,
    CommitUploadResponse,
    DownloadBlobRequest,
    GetBlobRequest,
    GetBlobResponse,
    ImportBlobRequest,
    ImportBlobResponse,
    SignUploadRequest,
    SignUploadResponse,
    UploadBlobHeader,
    UploadBlobRequest,
    UploadBlobResponse,
)
from fluoro_blobs import BlobStore, BlobWriter, PartsWriter, StoredBlob
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger import blobs as records
from fluoro_jobs.worker.context import blob_errors
from fluoro_telemetry import metrics

from gateway import frames, names
from gateway.importing import Importing
from gateway.ledger_calls import LedgerCalls
from gateway.limits.stored import Upload
from gateway.resuming import Resuming
from gateway.rpc import Call
from gateway.settings import Settings
from gateway.uploads import SMALL_BYTES, WIDE_AFTER_BYTES, Gathered, Pace, Places

CHUNK_BYTES: Final = 2**20
"""Largest chunk of an upload."""

SENT_CHUNK_BYTES: Final = 256 * 1024
"""Bytes of a chunk sent. Small: each has to reach its caller before the download seems stalled."""

DOWNLOAD_WAIT_SECONDS: Final = 30
"""How long a download waits for those before it."""

DEFAULT_MEDIA_TYPE: Final = "application/octet-stream"
LONGEST_MEDIA_TYPE: Final = 255
"""Characters: type and subtype of up to 127 each (RFC 6838 section 4.2) and the slash."""

SHA256_BYTES: Final = 32


class Blobs:
    """The methods of fluoro.v1.BlobService."""

    def __init__(self, calls: LedgerCalls, store: BlobStore, settings: Settings) -> None:
        self._calls = calls
        self._store = store
        self._settings = settings
        self._uploads = Places("uploads", settings.max_uploads, settings.upload_owner_share)
        # Counted in memory, because a bucket's writer takes five times as much as a folder's.
        writers = max(1, settings.upload_memory_bytes // store.writer_bytes)
        self._downloads = Places(
            "downloads", settings.max_downloads, settings.upload_owner_share, Reason.GATEWAY_BUSY
        )
        self._resuming = Resuming(calls, store)
        self._importing = Importing(settings)
        self._large = Places(
            f"uploads of more than {SMALL_BYTES} bytes", writers, settings.upload_owner_share
        )

    async def upload_blob(
        self, requests: AsyncIterator[UploadBlobRequest | memoryview], call: Call
    ) -> UploadBlobResponse:
        """Writes while it reads.

        The record comes after the bytes, so a blob that can be seen can be read.

        grpc.aio ends the requests of a caller who hung up like those of one who is done, and
        cancels the call a moment later, while the writer closes. A header that says what is to come
        makes sure.
        """
        settings = self._settings
        pace = Pace(requests, settings.upload_idle_seconds, settings.upload_min_bytes_per_second)
        # The owner's room is taken until the record is there, which the ledger counts.
        async with AsyncExitStack() as room:
            async with AsyncExitStack() as places:
                await places.enter_async_context(self._uploads.taken(call.owner))
                header = await _header(pace, settings.max_blob_bytes)
                if header.upload_id:

                    async def receive(writer: PartsWriter, start: int, size_bytes: int) -> None:
                        most_bytes = size_bytes - start
                        await self._receive(pace, most_bytes, writer, call.owner, places)
                        if writer.size_bytes == most_bytes <= SMALL_BYTES < size_bytes:
                            # Little came, but putting it together takes the memory of a large one.
                            await places.enter_async_context(self._large_place(call.owner))

                    # Room was there when it began.
                    return await self._resuming.stream(call, header, receive)
                pace.upload = await room.enter_async_context(
                    call.limits.stores(call.owner, header.size_bytes, header.sha256)
                )
                name = f"blobs/{new_id()}"
                with blob_errors():
                    async with self._store.writer(name) as writer:
                        most_bytes = header.size_bytes or None
                        await self._receive(pace, most_bytes, writer, call.owner, places)
                        # Inside the writer's block, so that a mismatch also removes the bytes.
                        await _check_announced(header, writer)
            blob = _blob(name, writer.stored, header)
            return UploadBlobResponse(blob=await self._kept(call, blob, pace.upload, room))

    async def _kept(self, call: Call, blob: Blob, upload: Upload, room: AsyncExitStack) -> Blob:
        """`_keep`, whoever waits for it.

        Whoever hangs up from here on is too late: the bytes are there, and without a record nobody
        would find them. room: what is taken of the owner's quota, until the ledger counts it.
        """
        upload.keeping()
        return await asyncio.shield(self._keep(call, blob, room.pop_all()))

    async def _keep(self, call: Call, blob: Blob, room: AsyncExitStack) -> Blob:
        """Adds the record, and gives the room back.

        The bytes go if the owner has the same already; the record is then the earlier one.
        """
        add = call.record.with_change(records.add, lambda stored: stored.name)
        async with room:
            stored = await self._calls.run_for(call.owner, add, call.owner, blob)
        if stored.name != blob.name:
            with blob_errors():
                await self._store.delete_soon(blob.name)
        return stored

    async def _receive(
        self,
        pace: Pace,
        announced_bytes: int | None,
        writer: BlobWriter | PartsWriter,
        owner: str,
        places: AsyncExitStack,
    ) -> None:
        """Chunks into the writer. announced_bytes: how many are to come, if that is known.

        UPLOAD_MISMATCH as soon as it is certain, MESSAGE_TOO_LARGE, INVALID_ARGUMENT for a second
        header.
        """
        most_bytes, large = self._settings.max_blob_bytes, False
        gathered = Gathered(writer)
        while (part := await pace.next()) is not None:
            if (chunk := part.chunk) is None:
                raise names.invalid(
                    "chunk", "Every message of an upload after the first must be a chunk."
                )
            if len(chunk) > CHUNK_BYTES:
                raise FluoroError(
                    Reason.MESSAGE_TOO_LARGE,
                    f"A chunk of {len(chunk)} bytes is over the limit of {CHUNK_BYTES}.",
                )
            size_bytes = gathered.size_bytes + len(chunk)
            # Refused at once, so that a wrong announcement does not cost the store a whole upload.
            if announced_bytes is not None and size_bytes > announced_bytes:
                raise FluoroError(
                    Reason.UPLOAD_MISMATCH,
                    f"More came than the {announced_bytes} bytes that are to come.",
                )
            if size_bytes > most_bytes:
                raise _too_large(most_bytes)
            # An upload of unknown size takes quota as it grows.
            await pace.upload.grown(size_bytes)
            if size_bytes > SMALL_BYTES and not large:
                # Waits, while gRPC makes the caller wait: those before it give their places back as
                # fast as they send.
                await places.enter_async_context(self._large_place(owner))
                large = True
            if size_bytes > WIDE_AFTER_BYTES and writer.can_widen and self._large.plenty(owner):
                # Nothing waits: `plenty` has seen a place.
                await places.enter_async_context(self._large.taken(owner))
                writer.widen()
            await gathered.write(chunk)
            metrics.BLOB_BYTES_RECEIVED.inc(len(chunk))
            # Or it would be held for as long as the caller takes for the next.
            del part, chunk
        await gathered.flush()

    async def begin_upload(self, request: BeginUploadRequest, call: Call) -> BeginUploadResponse:
        """How far an upload with an id is; begins it if there is none."""
        header = request.header
        _check_header(header, self._settings.max_blob_bytes)
        # Without size and digest nobody could tell when it is whole, or whether it is right.
        if not header.size_bytes:
            raise names.invalid("header.size_bytes", "Must be known: a positive number of bytes.")
        if not header.sha256:
            raise names.invalid("header.sha256", f"Must be known: {SHA256_BYTES} bytes.")
        header.media_type = header.media_type or DEFAULT_MEDIA_TYPE
        upload_id = names.upload_id(request.upload_id, "upload_id")
        stores = call.limits.stores(call.owner, header.size_bytes, header.sha256, upload_id)
        async with AsyncExitStack() as room:
            (await room.enter_async_context(stores)).keeping()
            return await asyncio.shield(self._begin(call.owner, request, room.pop_all()))

    async def _begin(
        self, owner: str, request: BeginUploadRequest, room: AsyncExitStack
    ) -> BeginUploadResponse:
        async with room:
            return await self._resuming.begin(owner, request)

    async def sign_upload(self, request: SignUploadRequest, call: Call) -> SignUploadResponse:
        """A URL to which the bytes can go past the gateway."""
        return await self._resuming.sign(call.owner, request)

    async def commit_upload(self, request: CommitUploadRequest, call: Call) -> CommitUploadResponse:
        """The blob of what was sent there. Takes the places of a large upload meanwhile."""
        async with (
            self._uploads.taken(call.owner),
            self._large_place(call.owner),
        ):
            return await self._resuming.commit(call, request)

    async def import_blob(self, request: ImportBlobRequest, call: Call) -> ImportBlobResponse:
        """Fetches a blob from a source that the operator lists."""
        header = request.header
        _check_header(header, self._settings.max_blob_bytes)
        name = f"blobs/{new_id()}"
        stores = call.limits.stores(call.owner, header.size_bytes, header.sha256)
        async with AsyncExitStack() as room:
            upload = await room.enter_async_context(stores)
            async with (
                self._uploads.taken(call.owner),
                self._importing.opened(call.owner, request.uri) as source,
                # Not before: a source that hangs takes no memory from uploads.
                self._large_place(call.owner),
            ):
                with blob_errors():
                    async with self._store.writer(name) as writer:
                        # A source that says its size is refused before its first byte.
                        if source.size_bytes is not None:
                            self._check_size(source.size_bytes, header)
                            await upload.grown(source.size_bytes)
                        async with aclosing(source.chunks()) as chunks:
                            async for chunk in chunks:
                                # It may send more than it said.
                                self._check_size(writer.size_bytes + len(chunk), header)
                                await upload.grown(writer.size_bytes + len(chunk))
                                await writer.write(chunk)
                        await _check_announced(header, writer)
            blob = _blob(name, writer.stored, header)
            return ImportBlobResponse(blob=await self._kept(call, blob, upload, room))

    def _large_place(self, owner: str) -> AbstractAsyncContextManager[None]:
        """Memory for the parts of one upload."""
        return self._large.taken(owner, self._settings.upload_idle_seconds)

    def _check_size(self, size_bytes: int, header: UploadBlobHeader) -> None:
        if header.size_bytes and size_bytes > header.size_bytes:
            raise FluoroError(
                Reason.UPLOAD_MISMATCH,
                f"The source has more than the {header.size_bytes} bytes that are to come.",
            )
        if size_bytes > self._settings.max_blob_bytes:
            raise _too_large(self._settings.max_blob_bytes)

    async def download_blob(self, request: DownloadBlobRequest, call: Call) -> AsyncIterator[bytes]:
        """Reads no faster than the caller takes it.

        Ends with DOWNLOAD_TOO_SLOW if the caller takes nothing for long.
        """
        blob = await self._calls.run_for(
            call.owner, records.get, call.owner, names.blob_id(request.name)
        )
        if not 0 <= request.offset <= blob.size_bytes:
            raise names.invalid(
                "offset", f"Must be between 0 and the blob's size of {blob.size_bytes} bytes."
            )
        # A caller that reads nothing would hold a place that others wait for.
        call.write_seconds = self._settings.download_stall_seconds
        async with (
            self._downloads.taken(call.owner, DOWNLOAD_WAIT_SECONDS),
            # `aclosing` ends the range under way when the caller hangs up.
            aclosing(self._store.stream(blob.name, request.offset, SENT_CHUNK_BYTES)) as chunks,
        ):
            with blob_errors():
                async for chunk in chunks:
                    yield frames.chunk(chunk)
                    metrics.BLOB_BYTES_SENT.inc(len(chunk))

    async def get_blob(self, request: GetBlobRequest, call: Call) -> GetBlobResponse:
        """The record."""
        return GetBlobResponse(
            blob=await self._calls.run_for(
                call.owner, records.get, call.owner, names.blob_id(request.name)
            )
        )


async def _header(pace: Pace, most_bytes: int) -> UploadBlobHeader:
    first = await pace.next()
    if first is None or first.header is None:
        raise names.invalid("header", "The first message of an upload must be the header.")
    _check_header(first.header, most_bytes)
    return first.header


def _check_header(header: UploadBlobHeader, most_bytes: int) -> None:
    """FluoroError about what no upload may have."""
    if header.size_bytes < 0:
        raise names.invalid("header.size_bytes", "Must not be negative; 0 means unknown.")
    if header.size_bytes > most_bytes:
        raise _too_large(most_bytes)
    if header.sha256 and len(header.sha256) != SHA256_BYTES:
        raise names.invalid("header.sha256", f"Must be {SHA256_BYTES} bytes, or empty if unknown.")
    # It goes back out in answers and headers, so control characters are refused.
    if len(header.media_type) > LONGEST_MEDIA_TYPE or not header.media_type.isprintable():
        raise names.invalid(
            "header.media_type",
            f"Must be a media type (RFC 6838) of at most {LONGEST_MEDIA_TYPE} characters.",
        )


def _blob(name: str, stored: StoredBlob, header: UploadBlobHeader) -> Blob:
    """What was written."""
    return Blob(
        name=name,
        size_bytes=stored.size_bytes,
        sha256=stored.sha256,
        media_type=header.media_type or DEFAULT_MEDIA_TYPE,
    )


async def _check_announced(header: UploadBlobHeader, writer: BlobWriter | PartsWriter) -> None:
    """UPLOAD_MISMATCH if what came is not what the header says."""
    if header.size_bytes and writer.size_bytes != header.size_bytes:
        raise FluoroError(
            Reason.UPLOAD_MISMATCH,
            f"{writer.size_bytes} bytes came, the header declares {header.size_bytes}.",
        )
    if header.sha256:
        # The digest is of what was written, and parts may still be on their way.
        await writer.flush()
        if writer.sha256 != header.sha256:
            raise FluoroError(
                Reason.UPLOAD_MISMATCH, "The SHA-256 of what came differs from the header's."
            )


def _too_large(most_bytes: int) -> FluoroError:
    return FluoroError(Reason.BLOB_TOO_LARGE, f"A blob may have {most_bytes} bytes at most.")
