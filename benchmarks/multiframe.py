"""120 colour JPEG frames of 480 by 640: from the file to arrays, speed and memory.

Ours renders the file as RenderDicom does: every frame is decoded, checked, certified and written to
an NPY file, and the first becomes a preview. Peer: pydicom's default `pixel_array`, which keeps all
frames in memory and writes nothing. `experts` is pydicom as its experts would use it: frame by
frame, and left in YBR, which takes no conversion. Each runs in a process of its own, which decodes
a frame of something else first. Memory is the peak over that (VmHWM), of ours with the decoders'
process; `gigabyte_mib` is that of an uncompressed image of 1 GiB with an animation, a thumbnail and
a contact sheet. Last line: `ratio` = frames per second, ours / theirs.
"""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from dicom_worker.pixels.rendering import Moving, Wanted, render
from dicom_worker.public_files import WHEEL, files
from dicom_worker.reading import open_dicom
from pydicom import dcmread
from pydicom.pixels import iter_pixels
from rig.figures import quick, ratio, say

FRAMES: Final = 120
WARM_UP: Final = WHEEL / "SC_rgb_jpeg_dcmtk.dcm"


def ours(path: Path, folder: Path) -> int:
    """Through the worker's own door."""
    rendering = render(open_dicom(path, folder), folder / "pixels.npy", Wanted(), lambda: None)
    return rendering.shape[0]


def everything(path: Path, folder: Path) -> int:
    """The same with all that a request can ask for."""
    wanted = Wanted(moving=Moving(), thumbnail_px=256, tiles=100, overlays=True)
    rendering = render(open_dicom(path, folder), folder / "pixels.npy", wanted, lambda: None)
    return rendering.shape[0]


def theirs(path: Path, _folder: Path) -> int:
    """Pydicom with nothing said."""
    return int(dcmread(path).pixel_array.shape[0])


def experts(path: Path, _folder: Path) -> int:
    """Pydicom frame by frame, without the conversion to RGB."""
    return sum(1 for _ in iter_pixels(path, raw=True))


def large(folder: Path, frames: int) -> Path:
    """An uncompressed colour image, a MiB a frame; its pixels are a hole in the file."""
    rows, columns = 1024, 342
    dataset = dcmread(WHEEL / "SC_rgb_small_odd.dcm")
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = rows, columns, frames
    dataset.PixelData = b""
    path = folder / "large.dcm"
    dataset.save_as(path)
    size = rows * columns * 3 * frames
    with path.open("r+b") as file:
        start = file.seek(0, os.SEEK_END)
        file.seek(start - 4)  # the length of the pixel data, the last element
        file.write(size.to_bytes(4, "little"))
        file.truncate(start + size)
    return path


def memory(field: str) -> float:
    """MiB of a field of /proc/PID/status, of this process and its child."""
    pids = [os.getpid(), *Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    status = "\n".join(Path(f"/proc/{pid}/status").read_text() for pid in pids)
    return sum(int(line.split()[1]) for line in status.splitlines() if field in line) / 1024


def run(
    decode: Callable[[Path, Path], int], path: Path, expected: int = FRAMES
) -> tuple[float, float]:
    """Frames per second and MiB above idle. To be called in a fresh process."""
    with tempfile.TemporaryDirectory(prefix="fluoro-multiframe-") as folder:
        decode(WARM_UP, Path(folder))
        idle = memory("VmRSS")
        started = time.perf_counter()
        frames = decode(path, Path(folder))
        seconds = time.perf_counter() - started
        if frames != expected:
            raise SystemExit(f"there are {frames} frames")
        return frames / seconds, memory("VmHWM") - idle


def measured(who: str, decode: Callable[[Path, Path], int], *inputs: Path | int) -> list[float]:
    """Frames per second and MiB above idle, in a fresh process; printed."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        rate, peak = pool.apply(run, (decode, *inputs))
    say("multiframe", who=who, frames_per_second=rate, memory_mib=peak)
    return [rate, peak]


def main() -> None:
    """Measures all in turn."""
    rounds, frames = (1, 64) if quick(__doc__) else (5, 1024)
    path = next(each for each in files() if each.stem == "color3d_jpeg_baseline")
    sides = {"ours": ours, "theirs": theirs, "experts": experts}
    found: dict[str, list[list[float]]] = {who: [] for who in sides}
    for _ in range(rounds):
        for who, decode in sides.items():
            found[who].append(measured(who, decode, path))
    rates = {who: [rate for rate, _ in rounds_] for who, rounds_ in found.items()}
    with tempfile.TemporaryDirectory(prefix="fluoro-multiframe-") as folder:
        _, gigabyte = measured("ours, 1 GiB", everything, large(Path(folder), frames), frames)
    say(
        "multiframe",
        ratio=ratio(rates["ours"], rates["theirs"]),
        ratio_experts=ratio(rates["ours"], rates["experts"]),
        memory_mib=max(peak for _, peak in found["ours"]),
        gigabyte_mib=gigabyte,
    )


if __name__ == "__main__":
    main()
