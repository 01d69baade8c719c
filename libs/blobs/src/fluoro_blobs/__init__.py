"""Blob store on obstore: a folder, memory or S3."""

from fluoro_blobs.errors import (
    NO_SPACE,
    BlobNotFoundError,
    BlobStoreError,
    BlobStoreFullError,
    BlobStoreReadOnlyError,
)
from fluoro_blobs.folder_writer import FolderWriter
from fluoro_blobs.parts_writer import PartsWriter
from fluoro_blobs.resumable import ResumableUpload
from fluoro_blobs.store import FOLDERS, RANGE_BYTES, BlobStore, FoundBlob
from fluoro_blobs.writer import BlobWriter, StoredBlob

__all__ = [
    "FOLDERS",
    "NO_SPACE",
    "RANGE_BYTES",
    "BlobNotFoundError",
    "BlobStore",
    "BlobStoreError",
    "BlobStoreFullError",
    "BlobStoreReadOnlyError",
    "BlobWriter",
    "FolderWriter",
    "FoundBlob",
    "PartsWriter",
    "ResumableUpload",
    "StoredBlob",
]
