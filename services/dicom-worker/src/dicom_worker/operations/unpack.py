"""UnpackArchive: the files of a ZIP archive, each on its own, without trusting its headers."""

import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from fluoro.v1.archive_pb2 import UnpackArchive, UnpackArchiveResult, UnpackedArchive
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.worker.context import StepContext, StepItem
from fluoro_jobs.worker.handler import handles

from dicom_worker.blame import blame_file
from dicom_worker.limits import MIB

MEMBER_LIMIT: Final = 10_000
"""Files in one archive: as many as a step may have inputs."""
UNPACKED_LIMIT_BYTES: Final = 16 * 1024 * MIB
"""All files of one archive together. One at a time is on disk."""
RATIO_LIMIT: Final = 200
"""Bytes that may come of one byte of the archive.

Deflate reaches 1032. Images without a blank area stay below 20.
"""
RATIO_FREE_BYTES: Final = 64 * MIB
"""Up to here the ratio does not count: small archives of blank images are no bombs."""
DIRECTORY_LIMIT_BYTES: Final = 8 * MIB
"""The archive's list of its files. zipfile makes some 15 times as much of it in memory."""
CHUNK_BYTES: Final = MIB

END: Final = b"PK\5\6"
"""Signature of the end record (APPNOTE 4.3.16), of 22 bytes and a comment."""
END_BYTES: Final = 22
COMMENT_BYTES: Final = 2**16
LOCATOR64: Final = b"PK\6\7"
"""Signature of what stands before it in a ZIP64 archive (APPNOTE 4.3.15)."""
LOCATOR64_BYTES: Final = 20
ENCRYPTED: Final = 1 << 0 | 1 << 6 | 1 << 13
"""General purpose flags (APPNOTE 4.4.4): encrypted, strongly, or with a masked header."""
DAMAGED: Final = "The archive is damaged, or no ZIP archive. Send it again."


@handles(UnpackArchive)
def unpack_archive(_request: UnpackArchive, context: StepContext) -> UnpackArchiveResult:
    """Leaves `member-0~0000`, … and `members-0000.json` for each archive that is wholly sound."""
    result = UnpackArchiveResult()
    for item in context.each("unpack"):
        with item:
            result.archives.append(unpack(item, item.fetch(), context.check))
    return result


def unpack(item: StepItem, path: Path, check: Callable[[], None]) -> UnpackedArchive:
    """Stores the members and the list of them. check: called between chunks; stops by raising."""
    listing: list[dict[str, str | int]] = []
    # The sizes that an archive states are not believed: bytes count as they come.
    left = max(RATIO_FREE_BYTES, min(UNPACKED_LIMIT_BYTES, RATIO_LIMIT * path.stat().st_size))
    size = 0
    with open_archive(path) as archive:
        for number, member in enumerate(members(archive)):
            # Each member overwrites the one before, so the disk holds one of them at a time.
            file = item.folder / "member"
            with file.open("wb") as target:
                for chunk in chunks(archive, member):
                    check()
                    left -= len(chunk)
                    if left < 0:
                        raise too_large("It unpacks to more bytes than it may.")
                    target.write(chunk)
            key = f"{item.key}/{number:04}"
            item.put("member", "", "member", "application/octet-stream", file, key=key)
            size += file.stat().st_size
            listing.append({"key": key, "name": member.filename, "size_bytes": file.stat().st_size})
    data = json.dumps(listing).encode()
    return UnpackedArchive(
        input=item.input,
        item=item.key,
        listing=item.put("members", ".json", "members", "application/json", data),
        members=len(listing),
        size_bytes=size,
    )


def open_archive(path: Path) -> ZipFile:
    """The archive, once its directory is known to be of a size that may be read into memory."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOCATOR64_BYTES - END_BYTES - COMMENT_BYTES))
        tail = file.read()
    # As zipfile looks for it: at the end, or before a comment.
    end = len(tail) - END_BYTES if tail[-END_BYTES:].startswith(END) else tail.rfind(END)
    if end < 0 or end + END_BYTES > len(tail):
        raise FluoroError(Reason.ARCHIVE_INVALID, DAMAGED)
    if tail[max(0, end - LOCATOR64_BYTES) : end].startswith(LOCATOR64):
        raise too_large("It is a ZIP64 archive, for more than 4 GiB or 65,535 files.")
    # Size of the central directory (APPNOTE 4.3.16). ZipFile parses all of it at once.
    if int.from_bytes(tail[end + 12 : end + 16], "little") > DIRECTORY_LIMIT_BYTES:
        raise too_large("It lists too many files.")
    with blame_file(Reason.ARCHIVE_INVALID, DAMAGED):
        return ZipFile(path)


def members(archive: ZipFile) -> list[ZipInfo]:
    """The files in it, in its order. FluoroError if one of them cannot be unpacked."""
    files = [
        entry
        for entry in archive.infolist()
        # Not is_dir(), which looks at the last character of a name that may be empty.
        if not entry.filename.endswith("/")
        # A symbolic link would come out as a file that holds a path.
        and not stat.S_ISLNK(entry.external_attr >> 16)
        and not of_the_system(entry.filename)
    ]
    if len(files) > MEMBER_LIMIT:
        raise too_large(f"It has more than {MEMBER_LIMIT} files.")
    if any(file.flag_bits & ENCRYPTED for file in files):
        raise FluoroError(
            Reason.ARCHIVE_ENCRYPTED,
            "A file in the archive is encrypted. Send it without a password.",
        )
    if any(file.header_offset < 0 for file in files):
        raise FluoroError(Reason.ARCHIVE_INVALID, DAMAGED)
    # LZMA may ask for a dictionary of 4 GiB.
    if any(file.compress_type not in {ZIP_STORED, ZIP_DEFLATED} for file in files):
        raise FluoroError(
            Reason.ARCHIVE_INVALID, "The archive is compressed in another way than deflate."
        )
    return files


def of_the_system(name: str) -> bool:
    """Whether macOS or Windows packed it by itself: no file of the sender's.

    `__MACOSX` has a second file beside each one, of its attributes.
    """
    folder, _, file = name.rpartition("/")
    return folder.split("/")[0] == "__MACOSX" or file in {".DS_Store", "Thumbs.db", "desktop.ini"}


def chunks(archive: ZipFile, member: ZipInfo) -> Iterator[bytes]:
    """The content of a member. ARCHIVE_INVALID if it is cut off, or not what its checksum says."""
    with blame_file(Reason.ARCHIVE_INVALID, DAMAGED):
        stream = archive.open(member)
    with stream:
        while True:
            with blame_file(Reason.ARCHIVE_INVALID, DAMAGED):
                chunk = stream.read(CHUNK_BYTES)
            if not chunk:
                return
            yield chunk


def too_large(why: str) -> FluoroError:
    """The archive is over a limit."""
    return FluoroError(Reason.ARCHIVE_TOO_LARGE, f"The archive is too large. {why} Split it.")
