"""Which fragments of encapsulated pixel data make which frame (PS3.5 A.4).

A frame may have several fragments, and offset tables err.
"""

from collections.abc import Sequence
from typing import BinaryIO, Final

from fluoro_jobs.errors import FluoroError, Reason

from dicom_worker import limits
from dicom_worker.pixels.codestream import has_end
from dicom_worker.structure import Fragment

STARTS: Final = (b"\xff\xd8\xff", b"\xff\x4f\xff")
"""SOI and SOC, each with the first byte of the marker after it."""


def group_frames(stream: BinaryIO, items: Sequence[Fragment], frames: int) -> list[list[Fragment]]:
    """The fragments of each of `frames` frames.

    items: as in the file, the Basic Offset Table first.

    FluoroError: PIXELS_UNDECODABLE if they make another number of frames, IMAGE_TOO_LARGE if a
    frame is over `limits.FRAME_LIMIT_BYTES`.
    """
    if not items:
        raise undecodable("The encapsulated pixel data has no Basic Offset Table.")
    table, *fragments = items
    # As many fragments as frames leave no choice, so a wrong offset table cannot mislead.
    if len(fragments) == frames:
        groups = [[fragment] for fragment in fragments]
    elif offsets := read_offsets(stream, table):
        groups = by_offset(fragments, offsets)
    else:
        groups = [fragments] if frames == 1 else by_end_marker(stream, fragments)
    if len(groups) != frames or not all(groups):
        raise undecodable(
            "The encapsulated pixel data holds another number of frames than the header says."
        )
    # A decoder would give the first one, and nothing would be said of the others.
    if any(starts_frame(stream, fragment) for group in groups for fragment in group[1:]):
        raise undecodable("A frame of the encapsulated pixel data has several code streams.")
    if (
        max(sum(fragment.length for fragment in group) for group in groups)
        > limits.FRAME_LIMIT_BYTES
    ):
        raise FluoroError(
            Reason.IMAGE_TOO_LARGE,
            f"A compressed frame has more than {limits.FRAME_LIMIT_BYTES} bytes.",
        )
    return groups


def read_frame(stream: BinaryIO, fragments: Sequence[Fragment]) -> bytes:
    """The code stream of one frame."""
    return b"".join(read(stream, fragment.offset, fragment.length) for fragment in fragments)


def read_offsets(stream: BinaryIO, table: Fragment) -> list[int]:
    """The Basic Offset Table: where each frame starts, counted from the first fragment's tag."""
    # No file has more fragments than the limit. Without it, a false table could fill the memory.
    data = read(stream, table.offset, min(table.length, 4 * limits.ELEMENT_LIMIT))
    return [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]


def by_offset(fragments: Sequence[Fragment], offsets: Sequence[int]) -> list[list[Fragment]]:
    """Frames as the Basic Offset Table has them. Empty if an offset points at no fragment."""
    starts = set(offsets)
    groups: list[list[Fragment]] = []
    for fragment in fragments:
        if fragment.offset - fragments[0].offset in starts:
            groups.append([])
        # The first frame starts at the first fragment, at offset 0 (PS3.5 A.4).
        if not groups:
            return []
        groups[-1].append(fragment)
    return groups


def by_end_marker(stream: BinaryIO, fragments: Sequence[Fragment]) -> list[list[Fragment]]:
    """Frames that end where a JPEG end marker does, if there is no offset table."""
    groups: list[list[Fragment]] = [[]]
    for fragment in fragments:
        groups[-1].append(fragment)
        tail = min(fragment.length, 16)
        if has_end(read(stream, fragment.offset + fragment.length - tail, tail)):
            groups.append([])
    return groups[:-1] if not groups[-1] else groups


def starts_frame(stream: BinaryIO, fragment: Fragment) -> bool:
    """Whether a code stream of JPEG, JPEG-LS or JPEG 2000 starts with this fragment."""
    return read(stream, fragment.offset, min(3, fragment.length)) in STARTS


def read(stream: BinaryIO, offset: int, length: int) -> bytes:
    """`length` bytes from `offset` on."""
    stream.seek(offset)
    return stream.read(length)


def undecodable(message: str) -> FluoroError:
    """The pixel data cannot be decoded."""
    return FluoroError(Reason.PIXELS_UNDECODABLE, message)
