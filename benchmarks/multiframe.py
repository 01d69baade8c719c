"""120 colour JPEG frames of 480 by 640: from the file to arrays, speed and memory.

Ours renders the file as RenderDicom does: every frame is decoded, checked, certified and written to
an NPY file, and the first becomes a preview. Peer: pydicom's default `pixel_array`, which keeps all
frames in memory and writes nothing. Each runs in a process of its own, which decodes a frame of
something else first. Memory is the peak over that (VmHWM), of ours with the decoders' process.
Last line: `ratio` = frames per second, ours / theirs.
"""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from dicom_worker.pixels.rendering import Wanted, render
from dicom_worker.public_files import WHEEL, files
from dicom_worker.reading import open_dicom
from pydicom import dcmread
from rig.figures import quick, ratio, say

FRAMES: Final = 120
WARM_UP: Final = WHEEL / "SC_rgb_jpeg_dcmtk.dcm"


def ours(path: Path, folder: Path) -> int:
    """Through the worker's own door."""
    rendering = render(open_dicom(path, folder), folder / "pixels.npy", Wanted(), lambda: None)
    return rendering.shape[0]


def theirs(path: Path, _folder: Path) -> int:
    """Pydicom with nothing said."""
    return int(dcmread(path).pixel_array.shape[0])


def memory(field: str) -> float:
    """MiB of a field of /proc/PID/status, of this process and its child."""
    pids = [os.getpid(), *Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    status = "\n".join(Path(f"/proc/{pid}/status").read_text() for pid in pids)
    return sum(int(line.split()[1]) for line in status.splitlines() if field in line) / 1024


def run(decode: Callable[[Path, Path], int], path: Path) -> tuple[float, float]:
    """Frames per second and MiB above idle. To be called in a fresh process."""
    with tempfile.TemporaryDirectory(prefix="fluoro-multiframe-") as folder:
        decode(WARM_UP, Path(folder))
        idle = memory("VmRSS")
        started = time.perf_counter()
        frames = decode(path, Path(folder))
        seconds = time.perf_counter() - started
        if frames != FRAMES:
            raise SystemExit(f"there are {frames} frames")
        return frames / seconds, memory("VmHWM") - idle


def main() -> None:
    """Measures both in turn."""
    rounds = 1 if quick(__doc__) else 5
    path = next(each for each in files() if each.stem == "color3d_jpeg_baseline")
    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    peaks: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(rounds):
        for name, decode in (("ours", ours), ("theirs", theirs)):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rate, peak = pool.apply(run, (decode, path))
            rates[name].append(rate)
            peaks[name].append(peak)
            say("multiframe", who=name, frames_per_second=rate, memory_mib=peak)
    say("multiframe", ratio=ratio(rates["ours"], rates["theirs"]), memory_mib=max(peaks["ours"]))


if __name__ == "__main__":
    main()
