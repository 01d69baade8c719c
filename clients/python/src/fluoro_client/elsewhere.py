"""Bytes that do not pass through the client's connection: to a bucket, or from another server."""

import asyncio
import os
import urllib.request
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from fluoro.v1 import blob_service_pb2

from fluoro_client.errors import FluoroApiError
from fluoro_client.retrying import Patience
from fluoro_client.sharing import Calling
from fluoro_client.transfers import prepare

if TYPE_CHECKING:
    from fluoro.v1.blob_service_pb2_grpc import BlobServiceAsyncStub

SILENT_SECONDS: Final = 60
"""How long a bucket may take nothing and say nothing."""


class _Calls(Calling, Protocol):
    """What this needs of a client."""

    patience_seconds: float
    _blobs: "BlobServiceAsyncStub"

    def _patience(self, what: str) -> Patience: ...


class ElsewhereCalls:
    """Methods of a client about such bytes."""

    async def upload_directly(
        self: _Calls, source: str | os.PathLike[str] | bytes, *, media_type: str = ""
    ) -> blob_service_pb2.Blob:
        """Stores a file or bytes past the gateway, where the deployment's blobs lie in a bucket.

        What the owner has already is not sent. Up to 5 GiB, in one piece: it is not resumed.
        FluoroApiError DIRECT_UPLOAD_UNSUPPORTED where there is no bucket; OSError, of urllib say,
        if the file cannot be read or the bucket cannot be reached from here.
        """
        upload, upload_id = await prepare(source, media_type), str(uuid.uuid4())
        begin = blob_service_pb2.BeginUploadRequest(upload_id=upload_id, header=upload.header)
        begun = await self._unary(self._blobs.BeginUpload, begin)
        if begun.HasField("blob"):
            return begun.blob
        sign = blob_service_pb2.SignUploadRequest(upload_id=upload_id)
        signed = await self._unary(self._blobs.SignUpload, sign)
        await asyncio.to_thread(_put, signed.url, signed.headers, source)
        commit = blob_service_pb2.CommitUploadRequest(upload_id=upload_id)
        patience = self._patience("a direct upload")
        while True:
            try:
                answer = await self._once(self._blobs.CommitUpload, commit, self.patience_seconds)
            except FluoroApiError as error:
                await patience.pause(error)
            else:
                return answer.blob

    async def import_blob(
        self: _Calls, uri: str, *, media_type: str = "", size_bytes: int = 0, sha256: bytes = b""
    ) -> blob_service_pb2.Blob:
        """Has the gateway fetch `https://…` or `s3://bucket/key` from where its operator allows.

        size_bytes, sha256: refuse anything else, if they are known. It may take
        `patience_seconds`. FluoroApiError SOURCE_NOT_ALLOWED, SOURCE_REFUSED, SOURCE_UNAVAILABLE.
        """
        header = blob_service_pb2.UploadBlobHeader(
            media_type=media_type, size_bytes=size_bytes, sha256=sha256
        )
        request = blob_service_pb2.ImportBlobRequest(uri=uri, header=header)
        return (await self._once(self._blobs.ImportBlob, request, self.patience_seconds)).blob


def _put(url: str, headers: Mapping[str, str], source: str | os.PathLike[str] | bytes) -> None:
    """OSError if the bucket takes it not."""
    # urllib would call it a form otherwise.
    known = {"Content-Type": "application/octet-stream"}
    known |= {name.title(): value for name, value in headers.items()}

    def put(data: Any) -> None:
        request = urllib.request.Request(url, data, known, method="PUT")  # noqa: S310 - the gateway signed it
        with urllib.request.urlopen(request, timeout=SILENT_SECONDS):  # noqa: S310 - as above
            pass

    if isinstance(source, bytes):
        put(source)
        return
    with Path(source).open("rb") as file:
        put(file)
