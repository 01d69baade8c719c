"""MB per second of decoding, per Transfer Syntax, from a file to arrays in this process.

Peers, each on the same file: pydicom's decoder with each of its plugins, GDCM's own reader, and
DCMTK's command line tools, which write a file instead. Each row names the fastest peer. `ratio` is
ours / that one's, in rounds after those that chose it: of several peers with one library inside,
those rounds choose the lucky one. Ours opens the file strictly, decodes in another process and
checks every frame, but makes no certificates; what those cost on top is `certificate_share`, of the
time to decode.
Last line: the worst `ratio`, and the worst share of a compressed syntax.
"""

import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import gdcm
import imagecodecs
import numpy as np
from dicom_worker.pixels.certificate import certified
from dicom_worker.pixels.decoders import CODECS, NATIVE, uncertified_frames
from dicom_worker.public_files import DCMTK, files
from dicom_worker.reading import open_dicom
from numpy.typing import NDArray
from pydicom import dcmread, dcmwrite
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder, iter_pixels
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import UID
from rig.figures import quick, ratio, say

PREFIX: Final = "1.2.840.10008.1.2"


@dataclass(frozen=True, slots=True)
class Case:
    """A syntax, an uncompressed public file, how a frame of it is encoded, and how often."""

    syntax: str
    source: str
    encode: Callable[[NDArray[Any]], bytes | bytearray]
    frames: int


def rle(array: NDArray[Any]) -> bytes:
    """A frame of RLE by pydicom."""
    return RLELosslessEncoder.encode(
        array,
        encoding_plugin="pydicom",
        rows=array.shape[0],
        columns=array.shape[1],
        samples_per_pixel=array.ndim - 1 if array.ndim == 2 else 3,
        bits_allocated=array.dtype.itemsize * 8,
        bits_stored=array.dtype.itemsize * 8,
        pixel_representation=0,
        photometric_interpretation="MONOCHROME2" if array.ndim == 2 else "RGB",
        number_of_frames=1,
        planar_configuration=0,
    )


def j2k(array: NDArray[Any], level: int = 0) -> bytes | bytearray:
    """A frame of JPEG 2000, reversible unless there is a level."""
    return imagecodecs.jpeg2k_encode(
        array, codecformat="j2k", level=level, reversible=not level, mct=False
    )


CASES: Final = (
    Case("", "RG3_UNCR", np.ndarray.tobytes, 6),
    Case(".1", "RG3_UNCR", np.ndarray.tobytes, 6),
    Case(".2", "RG3_UNCR", lambda frame: frame.byteswap().tobytes(), 6),
    Case(".5", "RG3_UNCR", rle, 6),
    Case(".4.50", "US1_UNCR", lambda frame: imagecodecs.jpeg8_encode(frame, level=90), 30),
    Case(
        ".4.51",
        "MR2_UNCR",
        lambda frame: imagecodecs.jpeg8_encode(frame, level=90, bitspersample=12),
        12,
    ),
    Case(".4.57", "RG3_UNCR", lambda frame: lossless(frame, 16), 4),
    Case(".4.70", "MR2_UNCR", lambda frame: lossless(frame, 12), 8),
    Case(".4.80", "RG3_UNCR", imagecodecs.jpegls_encode, 4),
    Case(".4.81", "MR2_UNCR", lambda frame: imagecodecs.jpegls_encode(frame, level=2), 8),
    Case(".4.90", "693_UNCR", j2k, 4),
    Case(".4.91", "US1_UNCR", lambda frame: j2k(frame, 40), 4),
    Case(".4.201", "RG3_UNCR", imagecodecs.htj2k_encode, 6),
    Case(".4.202", "US1_UNCR", imagecodecs.htj2k_encode, 10),
)


def lossless(frame: NDArray[Any], bits: int) -> bytes | bytearray:
    """A frame of lossless JPEG."""
    return imagecodecs.jpeg8_encode(frame, lossless=True, bitspersample=bits)


def write(case: Case, folder: Path) -> tuple[Path, NDArray[Any]]:
    """The file of a case, and the frame that it repeats."""
    source = next(path for path in files() if path.stem == case.source)
    dataset = dcmread(source)
    frame: NDArray[Any] = dataset.pixel_array
    if frame.dtype.kind == "i":
        frame = (frame.astype(np.int32) + 4096).astype(np.uint16)
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 15, 0
    data = [bytes(case.encode(frame))] * case.frames
    syntax = UID(PREFIX + case.syntax)
    dataset.NumberOfFrames = case.frames
    dataset.PixelData = encapsulate(data) if syntax.is_encapsulated else b"".join(data)
    if case.syntax == ".4.50":
        dataset.PhotometricInterpretation = "YBR_FULL_422"
    dataset.file_meta.TransferSyntaxUID = syntax
    path = folder / f"{syntax}.dcm"
    # Other elements are all short: written in another byte order they say the same.
    dcmwrite(
        path,
        dataset,
        implicit_vr=syntax.is_implicit_VR,
        little_endian=syntax.is_little_endian,
        force_encoding=True,
    )
    return path, frame


def ours(path: Path, scratch: Path) -> None:
    """Through the worker's own door."""
    for _ in uncertified_frames(open_dicom(path, scratch)):
        pass


def by_plugin(path: Path, _scratch: Path, plugin: str) -> None:
    """Through pydicom, frame by frame."""
    for _ in iter_pixels(path, decoding_plugin=plugin):
        pass


def by_gdcm(path: Path, _scratch: Path) -> None:
    """Through GDCM, all frames at once."""
    reader: Any = gdcm.ImageReader()  # type: ignore[attr-defined]  # it is made by SWIG
    reader.SetFileName(str(path))
    if not reader.Read() or not reader.GetImage().GetBuffer():
        raise RuntimeError("GDCM cannot read it")


def by_tool(path: Path, scratch: Path, tool: str) -> None:
    """By a command of DCMTK, from file to file."""
    subprocess.run(
        [tool, "+te", path, scratch / "out.dcm"], check=True, capture_output=True, timeout=60
    )


def peers(syntax: str) -> dict[str, Callable[[Path, Path], None]]:
    """Who else may decode this syntax."""
    found: dict[str, Callable[[Path, Path], None]] = {"gdcm": by_gdcm}
    for plugin in get_decoder(UID(syntax)).available_plugins or ("",):
        found[f"pydicom {plugin}".strip()] = partial(by_plugin, plugin=plugin)
    tool = DCMTK.get(syntax, "" if UID(syntax).is_encapsulated else "dcmconv")
    if tool and shutil.which(tool):
        found[tool] = partial(by_tool, tool=tool)
    return found


def rate(decode: Callable[[Path, Path], None], path: Path, scratch: Path, size: int) -> float:
    """MB per second of pixels."""
    started = time.perf_counter()
    decode(path, scratch)
    return size / 1e6 / (time.perf_counter() - started)


def share_of_certificates(path: Path, scratch: Path) -> float:
    """Time to certify the frames, of the time to decode them."""
    started = time.perf_counter()
    frames = list(uncertified_frames(open_dicom(path, scratch)))
    decoded = time.perf_counter()
    for frame in frames:
        certified(frame)
    return (time.perf_counter() - decoded) / (decoded - started)


def measure(case: Case, folder: Path, rounds: int) -> tuple[float, float]:
    """Prints a row; its ratio, and its share of certificates."""
    path, frame = write(case, folder)
    size = frame.nbytes * case.frames
    syntax = PREFIX + case.syntax
    if CODECS[syntax].lossless and case.syntax != ".4.81":  # near-lossless: exact, not the original
        decoded = list(uncertified_frames(open_dicom(path, folder)))
        if not all(np.array_equal(each.values, frame) for each in decoded):
            raise SystemExit(f"{syntax} decodes to other pixels than were encoded")
    able = {}
    for name, decode in peers(syntax).items():
        try:
            rate(decode, path, folder, size)  # the first time loads libraries, and weeds out
        except Exception:  # noqa: BLE001 - a peer that cannot is none
            continue
        able[name] = decode
    ours(path, folder)
    rates: dict[str, list[float]] = {"ours": [], **{name: [] for name in able}}
    for _ in range(rounds):
        for name, decode in (("ours", ours), *able.items()):
            rates[name].append(rate(decode, path, folder, size))
    share = statistics.median(share_of_certificates(path, folder) for _ in range(rounds))
    fastest = max(able, key=lambda name: statistics.median(rates[name]))
    duel: tuple[list[float], list[float]] = ([], [])
    for _ in range(4 * rounds):
        for rated, decode in zip(duel, (ours, able[fastest]), strict=True):
            rated.append(rate(decode, path, folder, size))
    row = ratio(*duel)
    say(
        "decode",
        transfer_syntax=UID(syntax).name,
        mb_per_second=statistics.median(rates["ours"]),
        fastest_peer=fastest,
        peers={name: round(statistics.median(rates[name]), 1) for name in able},
        ratio=row,
        certificate_share=share,
    )
    path.unlink()
    return row, share


def main() -> None:
    """Measures every case."""
    smoke = quick(__doc__)
    rows, shares = [], []
    for case in CASES:
        measured = replace(case, frames=1) if smoke else case
        with tempfile.TemporaryDirectory(prefix="fluoro-decode-") as folder:
            row, share = measure(measured, Path(folder), 1 if smoke else 5)
        rows.append(row)
        if CODECS[PREFIX + case.syntax] is not NATIVE:
            shares.append(share)
    say("decode", ratio=min(rows), certificate_share=max(shares))


if __name__ == "__main__":
    main()
