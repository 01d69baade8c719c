"""For tests: files with known identifiers planted wherever people and machines leave them."""

import io
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileDataset, dcmread
from pydicom.charset import convert_encodings, encode_string
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pydicom.uid import (
    EncapsulatedPDFStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    generate_uid,
)

from dicom_worker.deidentify.documents import DOCUMENT
from dicom_worker.deidentify.painting import background, stamp
from dicom_worker.deidentify.profile import table
from dicom_worker.testing import saved, wheel_file

BASES: Final = (
    *("CT_small", "MR_small", "MR_small_implicit", "MR_small_bigendian", "MR_small_RLE"),
    *("MR_small_jpeg_ls_lossless", "MR_small_jp2klossless", "SC_rgb_jpeg_gdcm", "rtplan"),
    *("SC_rgb_small_odd_jpeg", "examples_ybr_color", "image_dfl", "test-SR", "waveform_ecg"),
    *("rtdose_1frame", "JPEGLSNearLossless_08", "693_J2KI", "SC_rgb_rle_2frame", "liver_1frame"),
)
"""Test files of pydicom, of many kinds and Transfer Syntaxes."""

NAMES: Final = (
    ("ISO_IR 100", "Müßigbrodt^Jürgen-Detlev"),
    ("ISO_IR 100", "Beauséjour^Hélène"),
    ("ISO_IR 144", "Люксембургская^Аполлинария"),
    ("ISO_IR 126", "Διονυσόπουλος^Θεμιστοκλής"),
    ("ISO_IR 127", "قباني^لنزار"),
    ("ISO_IR 138", "שרון^דבורה"),
    ("ISO_IR 192", "Wójcikiewicz^Żywisława=王^小東=Wojcik^Zyw"),
    ("GB18030", "Wang^XiaoDongmei=王^小东美"),
    ("\\ISO 2022 IR 87", "Yamadanishi^Tarohiko=山田西^太郎彦=やまだにし^たろうひこ"),
    ("\\ISO 2022 IR 149", "Hongmyung^Gildongo=洪明^吉洞吾=홍명^길동오"),
    ("", "Quackenbush^Ottoline"),
)
"""Specific Character Set and a name in it. None is a word of the standard."""
ADDRESS: Final = "17 Mulberrygate Crescent, Oldthorpe"
NATIVE: Final = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
BURNT_SIZE: Final = (192, 256)
"""Rows and columns of images with a text."""
DATE_FORMS: Final = ("{y}{m}{d}", "{y}-{m}-{d}", "{d}.{m}.{y}", "{m}/{d}/{y}")


@dataclass(slots=True)
class Planted:
    """A file, and what must not be in its clean copy.

    texts: as they were written. tags: attributes of the table that it has at the top, with values.
    burnt: (rows, columns), the strokes of a text in the pixels; None if there is none.
    """

    data: bytes
    character_set: str
    texts: set[str] = field(default_factory=set)
    tags: set[int] = field(default_factory=set)
    burnt: NDArray[np.bool_] | None = None


@dataclass(slots=True)
class Person:
    """Whose identifiers are planted."""

    character_set: str
    name: str
    number: str
    accession: str
    phone: str
    born: str
    uid: str

    @property
    def parts(self) -> set[str]:
        """Each word of the name."""
        joined = self.name.replace("=", "^").replace("-", "^")
        return {part for part in joined.split("^") if part}

    @property
    def plain(self) -> str:
        """The name in letters that every attribute can hold: its first group."""
        return self.name.split("=", maxsplit=1)[0].replace("^", " ")

    def date(self, form: str) -> str:
        """The birth date, written in a way."""
        return form.format(y=self.born[:4], m=self.born[4:6], d=self.born[6:])


def person(dice: random.Random) -> Person:
    """Somebody."""
    character_set, name = dice.choice(NAMES)
    return Person(
        character_set,
        name,
        f"MRN-{dice.randrange(10**8):08}",
        f"ACC{dice.randrange(10**9):09}",
        f"0{dice.randrange(100, 999)} {dice.randrange(10**7, 10**8)}",
        f"{dice.randrange(1911, 1999)}{dice.randrange(1, 13):02}{dice.randrange(1, 29):02}",
        generate_uid(entropy_srcs=[str(dice.random())]),
    )


def planted(seed: int, rows_per_file: int = 16, *, in_pixels: bool = False) -> Planted:
    """A file with somebody's identifiers. Consecutive seeds go through all of the table.

    in_pixels: also as a text in the pixels, where `burn` can write one.
    """
    dice = random.Random(seed)  # noqa: S311 - for tests
    who = person(dice)
    dataset = base(seed)
    planted_ = Planted(b"", who.character_set)
    dataset.SpecificCharacterSet = who.character_set.split("\\")
    plant_header(dataset, who)
    plant_rows(dataset, who, planted_, seed * rows_per_file, rows_per_file)
    plant_sequences(dataset, who, dice)
    plant_private(dataset, who)
    plant_pixels(dataset, who)
    if in_pixels:
        planted_.burnt = burn(dataset, who, dice)
    dataset.preamble = who.plain.encode()[:100].ljust(128, b"\0")
    dataset.file_meta.SourceApplicationEntityTitle = "QUACKENBUSH"
    planted_.texts |= who.parts | {who.number, who.accession, who.phone, who.uid, ADDRESS}
    planted_.texts |= {who.date(form) for form in DATE_FORMS}
    planted_.data = saved(dataset)
    return planted_


def base(seed: int) -> FileDataset:
    """A file without anybody's identifiers but its own; sometimes a document."""
    dataset = dcmread(wheel_file(BASES[seed % len(BASES)]))
    if BASES[seed % len(BASES)] == "rtplan":
        dataset.SOPClassUID = EncapsulatedPDFStorage
        dataset.EncapsulatedDocument = b"%PDF-1.4 a letter of Quackenbush "
        dataset.MIMETypeOfEncapsulatedDocument = "application/pdf"
    return dataset


def plant_header(dataset: Dataset, who: Person) -> None:
    """Where everybody looks, and where nobody does."""
    dataset.PatientName = who.name
    dataset.PatientID = who.number
    dataset.PatientBirthDate = who.born
    dataset.AccessionNumber = who.accession
    dataset.PatientAddress = ADDRESS
    dataset.PatientTelephoneNumbers = who.phone
    dataset.OtherPatientNames = who.name
    dataset.ImageComments = f"{who.plain}, born {who.date('{d}.{m}.{y}')}, ring {who.phone}"
    # Attributes that the profile leaves as they are.
    dataset.Manufacturer = f"ACME for {who.plain}"
    dataset.SoftwareVersions = [f"v {who.number}", who.date("{y}-{m}-{d}")]
    dataset.ContrastBolusRoute = f"as {who.accession}"[:64]
    dataset.add_new(0x60000022, "LO", who.plain[:60])
    dataset.add_new(0x60004000, "LT", who.plain)
    dataset.add_new(0x60003000, "OB", who.plain.encode().ljust(200, b"\0"))
    dataset.add_new(0x50003000, "OB", who.plain.encode().ljust(200, b"\0"))


def plant_rows(dataset: Dataset, who: Person, into: Planted, start: int, count: int) -> None:
    """Some rows of the table, each with a value of its VR."""
    rows = sorted(tag for tag in table() if len(tag) == 8 and "x" not in tag)  # noqa: PLR2004
    chosen = {rows[(start + i) % len(rows)] for i in range(count)}
    for tag in map(_number, chosen):
        if tag >> 16 in (0, 2) or tag == DOCUMENT:
            continue
        into.tags.add(tag)
        if tag in dataset and dataset[tag].value:
            continue
        vr = dictionary_VR(tag).split(" or ")[0]
        dataset.add_new(tag, vr, value_for(vr, who))


def _number(tag: str) -> int:
    return int(tag, 16)


def value_for(vr: str, who: Person) -> Any:
    """A value of a VR that identifies, as far as its syntax lets it."""
    plain = who.plain
    values: dict[str, Any] = {
        "PN": who.name,
        "DA": who.born,
        "DT": f"{who.born}101500",
        "TM": "101500",
        "UI": who.uid,
        "DS": "3.25",
        "IS": "3",
        "AS": "042Y",
        "CS": "QUACKENBUSH",
        "AE": "QUACKENBUSH",
        "US": 3,
        "UR": "http://example.org/quackenbush",
        "OB": plain.encode() + b"\0" * (len(plain.encode()) % 2),
        "UN": plain.encode() + b"\0" * (len(plain.encode()) % 2),
        "SQ": Sequence([inner(who)]),
        "SH": who.number,
    }
    return values.get(vr, plain[:60])


def inner(who: Person) -> Dataset:
    """An item of a sequence."""
    item = Dataset()
    item.CodeValue = "1"
    item.CodingSchemeDesignator = "99QUACK"
    item.CodeMeaning = who.plain[:60]
    item.PersonName = who.name
    item.ReferencedSOPInstanceUID = who.uid
    item.TextValue = f"{who.plain} {who.date('{y}-{m}-{d}')}"
    return item


def plant_sequences(dataset: Dataset, who: Person, dice: random.Random) -> None:
    """Deeper and deeper, in sequences that the profile keeps."""
    item = inner(who)
    for _ in range(dice.randrange(1, 6)):
        outer = Dataset()
        outer.DerivationCodeSequence = [item]
        outer.RequestAttributesSequence = [inner(who)]
        outer.PatientID = who.number
        item = outer
    dataset.AnatomicRegionSequence = [item]


def plant_private(dataset: Dataset, who: Person) -> None:
    """Blocks of a creator that is named like the patient, one of them in a sequence."""
    for data in (dataset, dataset.AnatomicRegionSequence[0]):
        block = data.private_block(0x0033, "QUACKENBUSH 1.0", create=True)
        block.add_new(0x01, "PN", who.name)
        block.add_new(0x02, "LO", who.plain[:60])
        block.add_new(0x03, "UN", who.plain.encode() + b"\0" * (len(who.plain.encode()) % 2))
        block.add_new(0x04, "SQ", Sequence([inner(who)]))


def plant_pixels(dataset: FileDataset, who: Person) -> None:
    """EXIF, XMP, Photoshop's block and a comment inside every frame of a JPEG."""
    if dataset.file_meta.TransferSyntaxUID != JPEGBaseline8Bit:
        return
    count = int(dataset.get("NumberOfFrames", 1))
    frames = generate_frames(dataset.PixelData, number_of_frames=count)
    dataset.PixelData = encapsulate([with_metadata(frame, who) for frame in frames])


def burn(dataset: FileDataset, who: Person, dice: random.Random) -> NDArray[np.bool_] | None:
    """The number and birth date in native grey pixels of 8 or 16 bits, as a device writes them.

    The image becomes a phantom on which there is room. Returns the strokes; None for others.
    """
    if dataset.file_meta.TransferSyntaxUID not in NATIVE or dataset.get("SamplesPerPixel") != 1:
        return None
    if int(dataset.get("NumberOfFrames", 1)) != 1 or dataset.BitsAllocated not in (8, 16):
        return None
    values = background(dice, *BURNT_SIZE)
    strokes = np.zeros(BURNT_SIZE, bool)
    for row, word in enumerate((who.number, who.date("{d}.{m}.{y}"))):
        ink = stamp(word, 16, 0)
        top, left_ = 8 + 24 * row, 8
        strokes[top : top + ink.shape[0], left_ : left_ + ink.shape[1]] = ink > 0.5  # noqa: PLR2004 - half
    values[strokes] = 255
    order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
    dataset.Rows, dataset.Columns = BURNT_SIZE
    dataset.PixelData = values.astype(f"{order}u{dataset.BitsAllocated // 8}").tobytes()
    return strokes


def with_metadata(frame: bytes, who: Person) -> bytes:
    """A JPEG with the name in four more segments."""
    text = f"{who.plain} {who.number} {who.date('{y}:{m}:{d}')}".encode()
    segments = (
        (0xE1, b"Exif\0\0MM\0*" + text),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + text),
        (0xED, b"Photoshop 3.0\0" + text),
        (0xFE, text),
    )
    return b"".join((frame[:2], *(segment(*each) for each in segments), frame[2:]))


def segment(marker: int, body: bytes) -> bytes:
    """A segment of a JPEG."""
    return bytes((0xFF, marker)) + (len(body) + 2).to_bytes(2, "big") + body


def left(planted_: Planted, data: bytes) -> Iterator[str]:
    """What of the planted texts is in a file, by reading it with pydicom, and in its bytes.

    Nothing is shared with the proof that is under test.
    """
    dataset = dcmread(io.BytesIO(data))
    dataset.decode()
    words = " ".join(map(str, values_of(dataset))).casefold()
    low = data.lower()
    own = convert_encodings(planted_.character_set.split("\\"))
    for text in planted_.texts:
        forms = {text.casefold().encode(code) for code in ("utf-8", "utf-16-le", "utf-16-be")}
        forms |= {text.encode("utf-8"), encode_string(text, own)}
        # Fewer bytes turn up in pixels by chance. Small numbers of 16 bits look like UTF-16.
        sought = {form for form in forms if len(form.replace(b"\0", b"")) > 4}  # noqa: PLR2004
        if text.casefold() in words or any(form in low or form in data for form in sought):
            yield text


def values_of(dataset: Dataset) -> Iterator[Any]:
    """Every value at any depth."""
    for element in dataset.iterall():
        if element.VR != "SQ":
            value = element.value
            yield value.decode("latin-1") if isinstance(value, bytes) else value


def unfollowed(planted_: Planted, data: bytes) -> tuple[set[str], list[str]]:
    """The rows of the table that the file has, and those that its clean copy `data` breaks."""
    before, after = dcmread(io.BytesIO(planted_.data)), dcmread(io.BytesIO(data))
    rows: dict[str, bool] = {}
    for tag in planted_.tags:
        row = table()[f"{tag:08X}"]
        rows[row.name] = outcome_fits(row.basic, tag, before, after)
    tags = [element.tag for element in after.iterall()]
    rows["PrivateAttributes"] = not any(tag.is_private for tag in tags)
    rows["CurveData"] = not any(tag.group == 0x5000 for tag in tags)  # noqa: PLR2004
    rows["OverlayData"] = rows["OverlayComments"] = not any(
        tag.group == 0x6000  # noqa: PLR2004
        for tag in tags
    )
    rows["MediaStorageSOPInstanceUID"] = (
        after.file_meta.MediaStorageSOPInstanceUID == after.SOPInstanceUID != before.SOPInstanceUID
    )
    if "EncapsulatedDocument" in before:
        rows["EncapsulatedDocument"] = b"Quackenbush" not in after.EncapsulatedDocument
    return set(rows), [name for name, fits in rows.items() if not fits]


def outcome_fits(rule: str, tag: int, before: Dataset, after: Dataset) -> bool:
    """Whether an attribute of the clean file is what the table's action allows it to be."""
    keyword = keyword_for_tag(tag)
    gone, empty = tag not in after, tag in after and not after[tag].value
    changed = tag in after and bool(after[tag].value) and after[tag].value != before[tag].value
    allowed = {
        "X": gone,
        "Z": empty or keyword in ("PatientName", "PatientID"),
        "D": changed or (tag in after and dictionary_VR(tag) in ("TM", "SQ")),
        "U": changed or (tag in after and dictionary_VR(tag) == "SQ"),
    }
    return any(allowed[code] for code in rule.replace("*", "").split("/"))
