"""BlobService over the state in memory."""

import hashlib
import threading
from collections.abc import Iterator
from typing import Final

from fluoro.v1 import blob_service_pb2, blob_service_pb2_grpc

from fluoro_client.testing.calls import Context, Service
from fluoro_client.testing.faults import Fault, RefusalError, invalid

CHUNK_BYTES: Final = 64 * 1024
"""Size of the chunks of a download. A gateway's are larger; here a small file has several."""
LARGEST_CHUNK_BYTES: Final = 1024 * 1024
HANG_UP_SECONDS: Final = 0.02
"""How long it takes to notice that the caller of an upload of unknown size hung up.

Counted from the last byte: gRPC ends the requests first.
"""


class Blobs(Service, blob_service_pb2_grpc.BlobServiceServicer):
    """fluoro.v1.BlobService."""

    def UploadBlob(
        self, request_iterator: Iterator[blob_service_pb2.UploadBlobRequest], context: Context
    ) -> blob_service_pb2.UploadBlobResponse:
        """Keeps what is as announced."""
        first = next(request_iterator, blob_service_pb2.UploadBlobRequest())
        try:
            owner, fault = self._enter("UploadBlob", first.header, context)
            if first.WhichOneof("part") != "header":
                raise invalid("header", "The first message of an upload must be the header.")
            data = _received(request_iterator, None if fault is None else fault.after)
            if data is not None:
                return self._keep(owner, first.header, data, context)
        except RefusalError as refusal:
            fault = refusal.fault
        assert fault is not None
        return fault.end(context)

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


def _received(
    requests: Iterator[blob_service_pb2.UploadBlobRequest], until_bytes: int | None
) -> bytes | None:
    """The bytes of an upload; None once so many have come."""
    chunks, size_bytes = list[bytes](), 0
    while until_bytes is None or size_bytes < until_bytes:
        request = next(requests, None)
        if request is None:
            return b"".join(chunks)
        if request.WhichOneof("part") != "chunk":
            raise invalid("chunk", "Every message of an upload after the first must be a chunk.")
        if len(request.chunk) > LARGEST_CHUNK_BYTES:
            text = (
                f"A chunk of {len(request.chunk)} bytes is over the limit of {LARGEST_CHUNK_BYTES}."
            )
            raise RefusalError("MESSAGE_TOO_LARGE", text)
        chunks.append(request.chunk)
        size_bytes += len(request.chunk)
    return None
