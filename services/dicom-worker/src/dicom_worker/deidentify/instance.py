"""De-identifies one DICOM file: reads, cleans, writes and proves."""

import mmap
import os
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from fluoro_jobs.errors import FluoroError, Reason
from pydicom.datadict import keyword_for_tag

from dicom_worker import limits
from dicom_worker.deidentify.actions import Cleaner, Done
from dicom_worker.deidentify.burned_in import Plan, Search, plan, prove_pixels
from dicom_worker.deidentify.codestreams import Removed
from dicom_worker.deidentify.documents import refuse_document, replace_document
from dicom_worker.deidentify.elements import Element, Reader, Span
from dicom_worker.deidentify.header import (
    BIRTH_DATE,
    BURNED_IN,
    ISSUER,
    PATIENT_ID,
    PATIENT_NAME,
    SERIES,
    SOP_CLASS,
    SOP_INSTANCE,
    STUDY,
    Header,
)
from dicom_worker.deidentify.masking import Masked, mask
from dicom_worker.deidentify.profile import Options, edition, policy
from dicom_worker.deidentify.pseudonyms import Key, patient
from dicom_worker.deidentify.text import WORD, encoded
from dicom_worker.deidentify.values import Values
from dicom_worker.deidentify.writing import Encoding, read_back, write
from dicom_worker.inflate import inflate
from dicom_worker.reading import (
    DEFLATED,
    ENCODINGS,
    EXPLICIT_LITTLE_ENDIAN,
    PIXEL_TAGS,
    UID_SYNTAX,
    find_data_set,
    open_dicom,
    too_large,
)
from dicom_worker.structure import truncated

MEDIA_DIRECTORY: Final = "1.2.840.10008.1.3.10"
METHOD: Final = "Fluoro, Basic Application Level Confidentiality Profile"
BITS_ALLOCATED, PIXELS_ELSEWHERE = 0x00280100, 0x00287FE0


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What became of a file.

    sop_class, sop_instance, study, series: UIDs as they are now.
    done: what was done to how many values. removed: from compressed frames.
    searched, short: identifiers that the file was searched for; those too short for that.
    options: those that were done. pixels: what was masked; None if nobody looked.
    """

    sop_class: str
    sop_instance: str
    study: str
    series: str
    burned_in: str
    done: dict[Done, int]
    removed: Removed
    searched: int
    short: int
    options: Options
    pixels: Plan | None

    @property
    def actions(self) -> Counter[str]:
        """Values per action."""
        counted: Counter[str] = Counter()
        for (*_, action), count in self.done.items():
            counted[action] += count
        return counted

    @property
    def changed(self) -> int:
        """Values that are not what they were."""
        return self.actions.total() - self.actions["K"]


def deidentify(
    source: Path, target: Path, key: Key, options: Options, check: Callable[[], None]
) -> Cleaned:
    """Writes a clean copy of the DICOM file `source` to `target`, and proves that it is clean.

    check: called between frames; stops by raising. Other files beside `target` may stay.

    FluoroError as `dicom_worker.reading.open_dicom`, and DEIDENTIFICATION_REFUSED,
    IDENTIFIERS_LEFT; then the target is worth nothing.
    """
    options, pixels, masked, search = clean_pixels(source, target, key, options, check)
    with ExitStack() as stack:
        original = opened(stack, source, target, masked)
        cleaner, kept = clean_header(original, key, options)
        stated = statement(options)
        identifiers = cleaner.values.identifiers
        identifiers.written |= words_of(stated)
        stated += masked.changed if masked else ()
        # What somebody said before of de-identification would stand beside what is true now.
        kept = [each for each in kept if each.tag not in {new.tag for new in stated}] + stated
        sought = identifiers.search()
        # Only now is every identifier known: an early text may hold a name that a late attribute
        # told.
        cleaner.sweep(sought)
        removed = write(
            original.stream,
            target,
            kept,
            original.encoding,
            original.fetch,
            check,
            original.header.draws_overlays(),
        )
    # The file as it lies on disk, because a fault of the writer would not show in memory.
    prove(read_back(target, original.encoding, sought, check))
    prove_pixels(target, pixels, search)
    now = Header(kept, little_endian=original.encoding.little_endian)
    return Cleaned(
        now.text(SOP_CLASS),
        now.text(SOP_INSTANCE),
        now.text(STUDY),
        now.text(SERIES),
        now.text(BURNED_IN),
        cleaner.done,
        removed,
        len(identifiers),
        len(identifiers.short),
        options,
        pixels,
    )


@dataclass(frozen=True, slots=True)
class Original:
    """A file to clean: its bytes, how they are encoded, and the elements of its data set."""

    stream: BinaryIO
    data: mmap.mmap
    encoding: Encoding
    elements: list[Element]

    @property
    def header(self) -> Header:
        """Its values."""
        return Header(self.elements, little_endian=self.encoding.little_endian)

    def fetch(self, span: Span) -> bytes:
        """A value that was left where it is. IMAGE_TOO_LARGE if it is as long as pixel data."""
        if span.length > limits.HEADER_LIMIT_BYTES:
            raise too_large()
        return self.data[span.offset : span.offset + span.length]


def opened(stack: ExitStack, source: Path, target: Path, masked: Masked | None) -> Original:
    """The file, or its copy with masks; inflated beside `target`. The stack closes it."""
    stream = stack.enter_context((masked.path if masked else source).open("rb"))
    size = os.fstat(stream.fileno()).st_size
    syntax, start = find_data_set(stream, size) if not masked else (masked.syntax, masked.start)
    encoding = Encoding(syntax, *ENCODINGS.get(syntax, EXPLICIT_LITTLE_ENDIAN))
    # A copy with masks is inflated already.
    if syntax == DEFLATED and not masked:
        inflated = target.with_suffix(".inflated")
        inflate(source, start, inflated)
        stream, start = stack.enter_context(inflated.open("rb")), 0
        size = os.fstat(stream.fileno()).st_size
    if size == start:
        raise truncated()
    data = stack.enter_context(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    elements = Reader(data, encoding.explicit, encoding.little_endian).read(start, size)
    return Original(stream, data, encoding, elements)


def clean_header(original: Original, key: Key, options: Options) -> tuple[Cleaner, list[Element]]:
    """What cleaned the elements and knows their identifiers, and those that stay.

    FluoroError as `refuse`.
    """
    header = original.header
    # Before anything is cleaned, so that a refused file leaves nothing half done.
    refuse(header, options)
    values = Values(key, patient(key, who(header)), original.fetch)
    cleaner = Cleaner(policy(header.text(SOP_CLASS), options), values)
    kept = cleaner.data_set(original.elements)
    little_endian = original.encoding.little_endian
    replace_document(kept, header.text(SOP_CLASS), little_endian=little_endian)
    return cleaner, kept


def clean_pixels(
    source: Path, target: Path, key: Key, options: Options, check: Callable[[], None]
) -> tuple[Options, Plan | None, Masked | None, Search]:
    """What can be done, what is to be masked, a copy with that masked, and how it was sought.

    None where there is nothing: then the options do not have clean pixels.

    FluoroError as `plan` and `mask`.
    """
    search = Search(check)
    if not options.clean_pixels:
        return options, None, None, search
    file = open_dicom(source, target.parent)
    if file.image is None:
        return options.without_pixels, None, None, search
    with ExitStack() as stack:
        # The header is cleaned twice. This time only for its identifiers, which the recogniser may
        # misread in the pixels.
        cleaner, _ = clean_header(opened(stack, source, target, None), key, options)
    search = Search(check, cleaner.values.identifiers.search().misread())
    planned = plan(file, search)
    masked = mask(file, planned, target.parent, check) if planned.touched else None
    return options, planned, masked, search


def refuse(header: Header, options: Options) -> None:
    """DICOM_INVALID, DICOM_TRUNCATED or DEIDENTIFICATION_REFUSED if the file is not to be had."""
    for tag in (SOP_CLASS, SOP_INSTANCE):
        if not UID_SYNTAX.fullmatch(header.text(tag)):
            raise FluoroError(
                Reason.DICOM_INVALID, f"{keyword_for_tag(tag)} is missing or not a UID."
            )
    refuse_directory(header.text(SOP_CLASS))
    # Pixel Data Provider URL (JPIP) says that the pixels are kept elsewhere.
    has_pixels = any(tag in header for tag in (*PIXEL_TAGS, PIXELS_ELSEWHERE))
    if BITS_ALLOCATED in header and not has_pixels:
        raise truncated()
    if header.text(BURNED_IN).upper() == "YES" and not options.clean_pixels:
        raise FluoroError(
            Reason.DEIDENTIFICATION_REFUSED,
            "Burned In Annotation says that there is text in the pixels. Set clean_pixel_data to "
            "have it masked.",
        )
    refuse_document(header, options)


def refuse_directory(sop_class: str) -> None:
    """DEIDENTIFICATION_REFUSED for a DICOMDIR: it repeats the names and files of many patients."""
    if sop_class == MEDIA_DIRECTORY:
        raise FluoroError(
            Reason.DEIDENTIFICATION_REFUSED,
            "A DICOMDIR cannot be cleaned. Send the instances, and make a new one of the results.",
        )


def who(header: Header) -> str:
    """What tells the patient from others: the ID and its issuer, else name and birth date.

    Without those each study is a patient of its own.
    """
    # The same number of two issuers is two patients. NUL is in no value, so parts cannot run into
    # each other.
    if number := header.text(PATIENT_ID):
        return f"id\0{header.text(ISSUER)}\0{number}".casefold()
    if name := header.text(PATIENT_NAME).strip("^= "):
        return f"name\0{name}\0{header.text(BIRTH_DATE)}".casefold()
    return f"study\0{header.text(STUDY)}"


def statement(options: Options) -> list[Element]:
    """The attributes that say what was done, and nothing more (PS3.15 E.1.1, PS3.3 C.7.1.1)."""
    codes = [
        [
            Element(0x00080100, "SH", encoded(value, ())),
            Element(0x00080102, "SH", b"DCM "),
            Element(0x00080104, "LO", encoded(meaning, ())),
        ]
        for value, meaning in options.codes
    ]
    burned_in = [Element(BURNED_IN, "CS", b"NO")] if options.clean_pixels else []
    method = f"{METHOD}\\{edition()}, table E.1-1"
    return [
        Element(0x00120062, "CS", b"YES "),
        Element(0x00120063, "LO", encoded(method, ())),
        Element(0x00120064, "SQ", items=codes),
        Element(0x00280303, "CS", encoded(options.dates, ())),
        *burned_in,
    ]


def words_of(elements: Iterable[Element]) -> set[str]:
    """The words of what we write ourselves: no proof that an original is left."""
    found: set[str] = set()
    for element in elements:
        for item in element.items or ():
            found |= words_of(item)
        if isinstance(element.value, bytes):
            found.update(WORD.findall(element.value.decode("ascii").casefold()))
    return found


def prove(left: list[int]) -> None:
    """IDENTIFIERS_LEFT if anything was found. left: tags, 0 for bytes of none in particular."""
    if not left:
        return
    names = sorted({(tag and keyword_for_tag(tag)) or "bytes" for tag in left})
    raise FluoroError(
        Reason.IDENTIFIERS_LEFT,
        f"What identified the patient is still in the cleaned file, in: {', '.join(names[:10])}.",
    )
