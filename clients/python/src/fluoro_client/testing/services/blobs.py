"""BlobService over the state in memory."""

import hashlib
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from fluoro.v1 import blob_service_pb2, blob_service_pb2_grpc

from fluoro_client.testing.calls import Context, Service
from fluoro_client.testing.faults import Fault, RefusalError, invalid
from fluoro_client.testing.state import State

CHUNK_BYTES: Final = 64 * 1024
"""Size of the chunks of a download. A gateway's are larger; here a small file has several."""
LARGEST_CHUNK_BYTES: Final = 1024 * 1024
HANG_UP_SECONDS: Final = 0.02
"""How long it takes to notice that the caller of an upload of unknown size hung up.

Counted from the last byte: gRPC ends the requests first.
"""
SHA256_BYTES: Final = 32


@dataclass(slots=True)
class Begun:
    """An upload with an id. streams: how many there were; the last of them is the newest."""

    header: blob_service_pb2.UploadBlobHeader
    data: bytearray = field(default_factory=bytearray)
    streams: int = 0
    blob: blob_service_pb2.Blob | None = None


class Blobs(Service, blob_service_pb2_grpc.BlobServiceServicer):
    """fluoro.v1.BlobService."""

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self._begun: dict[tuple[str, str], Begun] = {}

    def UploadBlob(
        self, request_iterator: Iterator[blob_service_pb2.UploadBlobRequest], context: Context
    ) -> blob_service_pb2.UploadBlobResponse:
        """Keeps what is as announced."""
        first = next(request_iterator, blob_service_pb2.UploadBlobRequest())
        try:
            owner, fault = self._enter("UploadBlob", first.header, context)
            if first.WhichOneof("part") != "header":
                raise invalid("header", "The first message of an upload must be the header.")
            answer: blob_service_pb2.UploadBlobResponse | None = None
            chunks = _received(request_iterator, None if fault is None else fault.after)
            if first.header.upload_id:
                answer = self._go_on(owner, first.header, chunks)
            else:
                data = b"".join(chunks)
                if fault is None:
                    answer = self._keep(owner, first.header, data, context)
            if fault is None and answer is not None:
                return answer
        except RefusalError as refusal:
            fault = refusal.fault
        assert fault is not None
        return fault.end(context)

    def BeginUpload(
        self, request: blob_service_pb2.BeginUploadRequest, context: Context
    ) -> blob_service_pb2.BeginUploadResponse:
        """How far an upload is."""

        def begin(owner: str) -> blob_service_pb2.BeginUploadResponse:
            header = request.header
            _check_id(request.upload_id, "upload_id")
            if header.size_bytes <= 0:
                raise invalid("header.size_bytes", "Must be known: a positive number of bytes.")
            if len(header.sha256) != SHA256_BYTES:
                raise invalid("header.sha256", f"Must be known: {SHA256_BYTES} bytes.")
            blob = self._state.blob_of(owner, header.sha256)
            if blob is not None:
                return blob_service_pb2.BeginUploadResponse(
                    committed_bytes=blob.size_bytes, blob=blob
                )
            begun = self._begun.setdefault((owner, request.upload_id), Begun(header))
            if begun.header.sha256 != header.sha256:
                raise invalid("upload_id", "Was begun for other bytes. Take a new one.")
            return blob_service_pb2.BeginUploadResponse(
                committed_bytes=len(begun.data), blob=begun.blob
            )

        return self._answer("BeginUpload", request, context, begin)

    def SignUpload(
        self, request: blob_service_pb2.SignUploadRequest, context: Context
    ) -> blob_service_pb2.SignUploadResponse:
        """Refused, as by a gateway whose blobs lie in a folder."""

        def sign(owner: str) -> blob_service_pb2.SignUploadResponse:
            raise self._no_direct_upload(owner, request.upload_id)

        return self._answer("SignUpload", request, context, sign)

    def CommitUpload(
        self, request: blob_service_pb2.CommitUploadRequest, context: Context
    ) -> blob_service_pb2.CommitUploadResponse:
        """Refused too."""

        def commit(owner: str) -> blob_service_pb2.CommitUploadResponse:
            raise self._no_direct_upload(owner, request.upload_id)

        return self._answer("CommitUpload", request, context, commit)

    def ImportBlob(
        self, request: blob_service_pb2.ImportBlobRequest, context: Context
    ) -> blob_service_pb2.ImportBlobResponse:
        """Refused, as by a gateway whose operator lists no source."""

        def fetch(_: str) -> blob_service_pb2.ImportBlobResponse:
            raise RefusalError("SOURCE_NOT_ALLOWED", "This deployment fetches nothing from there.")

        return self._answer("ImportBlob", request, context, fetch)

    def _no_direct_upload(self, owner: str, upload_id: str) -> RefusalError:
        _check_id(upload_id, "upload_id")
        if (owner, upload_id) not in self._begun:
            return RefusalError("UPLOAD_NOT_FOUND", "No such upload for this caller.")
        return RefusalError("DIRECT_UPLOAD_UNSUPPORTED", "This store cannot sign URLs.")

    def _go_on(
        self, owner: str, header: blob_service_pb2.UploadBlobHeader, chunks: Iterator[bytes]
    ) -> blob_service_pb2.UploadBlobResponse:
        """Keeps each chunk at once, whatever becomes of the stream."""
        _check_id(header.upload_id, "header.upload_id")
        with self._state.changed:
            begun = self._begun.get((owner, header.upload_id))
            if begun is None:
                raise RefusalError("UPLOAD_NOT_FOUND", "No such upload for this caller.")
            if begun.blob is not None:
                return _answer(begun)
            if not 0 <= header.offset <= len(begun.data):
                raise invalid("header.offset", "Must be what is committed, or less.")
            begun.streams += 1
            stream = begun.streams
            del begun.data[header.offset :]
        for chunk in chunks:
            with self._state.changed:
                if begun.streams != stream:
                    raise RefusalError("UPLOAD_SUPERSEDED", "Another stream goes on with it.")
                if len(begun.data) + len(chunk) > begun.header.size_bytes:
                    raise RefusalError("UPLOAD_MISMATCH", "More came than the bytes to come.")
                begun.data += chunk
        with self._state.changed:
            if len(begun.data) == begun.header.size_bytes:
                self._end(owner, header.upload_id, begun)
            return _answer(begun)

    def _end(self, owner: str, upload_id: str, begun: Begun) -> None:
        data, media_type = bytes(begun.data), begun.header.media_type
        if hashlib.sha256(data).digest() != begun.header.sha256:
            del self._begun[owner, upload_id]
            raise RefusalError(
                "UPLOAD_MISMATCH", "The SHA-256 of what came differs from the one declared."
            )
        begun.blob = self._state.add_blob(owner, data, media_type or "application/octet-stream")

    def _keep(
        self, owner: str, header: blob_service_pb2.UploadBlobHeader, data: bytes, context: Context
    ) -> blob_service_pb2.UploadBlobResponse:
        if header.size_bytes and header.size_bytes != len(data):
            raise RefusalError(
                "UPLOAD_MISMATCH",
                f"{len(data)} bytes came, the header declares {header.size_bytes}.",
            )
        if header.sha256 and header.sha256 != hashlib.sha256(data).digest():
            raise RefusalError(
                "UPLOAD_MISMATCH", "The SHA-256 of what came differs from the header's."
            )
        if not header.size_bytes and not header.sha256:
            gone = threading.Event()
            if not context.add_callback(gone.set) or gone.wait(HANG_UP_SECONDS):
                return blob_service_pb2.UploadBlobResponse()
        with self._state.changed:
            blob = self._state.add_blob(
                owner, data, header.media_type or "application/octet-stream"
            )
        return blob_service_pb2.UploadBlobResponse(blob=blob)

    def GetBlob(
        self, request: blob_service_pb2.GetBlobRequest, context: Context
    ) -> blob_service_pb2.GetBlobResponse:
        """The record."""

        def get(owner: str) -> blob_service_pb2.GetBlobResponse:
            return blob_service_pb2.GetBlobResponse(blob=self._state.blob(request.name, owner))

        return self._answer("GetBlob", request, context, get)

    def DownloadBlob(
        self, request: blob_service_pb2.DownloadBlobRequest, context: Context
    ) -> Iterator[blob_service_pb2.DownloadBlobResponse]:
        """The bytes."""

        def read(owner: str, _: Fault) -> Iterator[blob_service_pb2.DownloadBlobResponse]:
            with self._state.changed:
                blob = self._state.blob(request.name, owner)
                data = self._state.data[request.name]
            if not 0 <= request.offset <= blob.size_bytes:
                raise invalid(
                    "offset", f"Must be between 0 and the blob's size of {blob.size_bytes} bytes."
                )
            for start in range(request.offset, len(data), CHUNK_BYTES):
                yield blob_service_pb2.DownloadBlobResponse(chunk=data[start : start + CHUNK_BYTES])

        return self._stream("DownloadBlob", request, context, read)


def _answer(begun: Begun) -> blob_service_pb2.UploadBlobResponse:
    return blob_service_pb2.UploadBlobResponse(committed_bytes=len(begun.data), blob=begun.blob)


def _check_id(text: str, place: str) -> None:
    try:
        is_one = str(uuid.UUID(text)) == text
    except ValueError:
        is_one = False
    if not is_one:
        raise invalid(place, "Must be a lower-case UUID (RFC 9562), a new one for each upload.")


def _received(
    requests: Iterator[blob_service_pb2.UploadBlobRequest], until_bytes: int | None
) -> Iterator[bytes]:
    """The chunks of an upload, until so many bytes have come."""
    size_bytes = 0
    while until_bytes is None or size_bytes < until_bytes:
        request = next(requests, None)
        if request is None:
            return
        if request.WhichOneof("part") != "chunk":
            raise invalid("chunk", "Every message of an upload after the first must be a chunk.")
        if len(request.chunk) > LARGEST_CHUNK_BYTES:
            text = (
                f"A chunk of {len(request.chunk)} bytes is over the limit of {LARGEST_CHUNK_BYTES}."
            )
            raise RefusalError("MESSAGE_TOO_LARGE", text)
        yield request.chunk
        size_bytes += len(request.chunk)
