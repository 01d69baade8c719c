"""WADO-RS (PS3.18 10.4): one instance, as the server keeps it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.outbound import Answer

from dicom_worker.dicomweb.multipart import PIECE_BYTES, invalid, media_type, only_part
from dicom_worker.dicomweb.search import MAX_UID, Place, not_found
from dicom_worker.dicomweb.server import NOT_THERE, Server
from dicom_worker.reading import (
    DEFLATED,
    ENCODINGS,
    EXPLICIT_LITTLE_ENDIAN,
    PREFIX,
    PREFIX_OFFSET,
    read_meta,
    uid,
)
from dicom_worker.structure import Walk

FIRST_GROUP, SOP_INSTANCE = 0x0008, 0x00080018

FILE: Final = 'multipart/related; type="application/dicom"'
AS_KEPT: Final = f"{FILE}; transfer-syntax=*"
"""In the Transfer Syntax that it is kept in (PS3.18 8.7.3.5.2). Without it, servers transcode."""


def retrieve(server: Server, place: Place, target: Path, most_bytes: int) -> int:
    """Writes the instance to `target`, and returns how many bytes it has.

    FluoroError PACS_NOT_FOUND, PACS_ANSWER_INVALID, BLOB_TOO_LARGE; PACS_UNAVAILABLE also if the
    answer breaks off.
    """
    answer = server.get(place.path, AS_KEPT, FILE)
    size = 0
    with target.open("wb") as file:
        for piece in content(server, answer):
            size += len(piece)
            if size > most_bytes:
                # What is left of the answer would be read as the answer to the next request.
                server.close()
                raise too_large(most_bytes)
            file.write(piece)
    return size


def identity(file: Path) -> tuple[str, set[str]]:
    """Transfer Syntax UID and SOP Instance UIDs of a file: in its meta information and data set.

    A server may write the one anew and give the data set of another instance. A deflated data set
    is not looked into. FluoroError NOT_DICOM, DICOM_TRUNCATED or DICOM_INVALID if it has none.
    """
    start = PREFIX_OFFSET + len(PREFIX)
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(start)
        if head[PREFIX_OFFSET:] != PREFIX:
            raise FluoroError(Reason.NOT_DICOM, "What the server sent is not DICOM Part 10.")
        meta, start = read_meta(stream, size, start)
        syntax, found = uid(meta, "TransferSyntaxUID"), {uid(meta, "MediaStorageSOPInstanceUID")}
        if syntax != DEFLATED:
            walk = Walk(stream, size, *ENCODINGS.get(syntax, EXPLICIT_LITTLE_ENDIAN))
            for element in walk.elements(start, FIRST_GROUP):
                if element.tag == SOP_INSTANCE:
                    stream.seek(element.offset)
                    # The length is the server's word, and may be gigabytes.
                    value = stream.read(min(element.length or 0, 2 * MAX_UID))
                    found.add(value.decode("latin-1").strip(" \0"))
    return syntax, found


def content(server: Server, answer: Answer) -> Iterator[bytes]:
    """The bytes of the file in an answer: its one part, or all of it if it has no parts."""
    if answer.status in NOT_THERE:
        raise not_found()

    def read(most_bytes: int) -> bytes:
        return server.read(answer, most_bytes)

    kind, boundary = media_type(answer.header("Content-Type"))
    if kind == "multipart/related":
        yield from only_part(read, boundary)
    # Without a length or chunks, a file that breaks off looks like one that ends.
    elif kind == "application/dicom" and answer.is_delimited:
        while piece := read(PIECE_BYTES):
            yield piece
    else:
        raise invalid("it is no DICOM file")


def too_large(most_bytes: int) -> FluoroError:
    """The instance is over the limit."""
    return FluoroError(
        Reason.BLOB_TOO_LARGE,
        f"The instance has more than {most_bytes} bytes (FLUORO_DICOMWEB_MAX_INSTANCE_BYTES).",
    )
