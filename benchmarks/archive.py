"""A ZIP archive of what steps left, made by us in the blob store and by `zip -0` on the same disk.

2 GiB of files that do not compress, from a folder of blobs to one archive. We hash each file,
compare it with its SHA-256, hash the archive and flush it to disk; zip does none of that. Each
round in a fresh process. `MIB=512` where the disk is slow.

Last line: `ratio` = zip's seconds / ours (aim ≥ 0.9), `memory_mib` above idle (aim ≤ 100).
"""

import multiprocessing
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

from export_worker.operations.archive import export_archive
from fluoro.v1.dicom_pb2 import RenderDicomResult
from fluoro.v1.export_pb2 import ExportArchive
from fluoro_jobs.testing import step_context
from fluoro_jobs.worker.context import Upstream
from rig.figures import quick, ratio, say

FILE_MIB: Final = 16


def status_mib(field: str) -> float:
    """A field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def ours(folder: Path, upstream: Upstream) -> tuple[float, float]:
    """Seconds, and MiB above idle. To be called in a fresh process."""
    attempt = step_context(folder, (), [upstream], step="pack")
    idle = status_mib("VmRSS")
    began = time.perf_counter()
    export_archive(ExportArchive(), attempt.context)
    seconds = time.perf_counter() - began
    for artifact in attempt.context.artifacts.values():
        attempt.context.blobs.delete(artifact.blob)
    return seconds, status_mib("VmHWM") - idle


def theirs(folder: Path) -> float:
    """Seconds of `zip -0`, of the same bytes as plain files."""
    target = folder / "peer.zip"
    began = time.perf_counter()
    subprocess.run(["zip", "-0", "-q", "-r", target, folder / "blobs"], check=True)
    seconds = time.perf_counter() - began
    target.unlink()
    return seconds


def main() -> None:
    """Measures both in turn."""
    if shutil.which("zip") is None:
        raise SystemExit("zip is not installed.")
    smoke = quick(__doc__)
    rounds, mib = (1, 64) if smoke else (3, int(os.environ.get("MIB", "2048")))
    with tempfile.TemporaryDirectory(prefix="fluoro-archive-") as name:
        folder = Path(name)
        left = step_context(folder, step="render")
        for number in range(mib // FILE_MIB):
            data = os.urandom(FILE_MIB * 2**20)
            left.context.put(f"pixels-{number:04}.npy", "pixels", "application/x-npy", data)
        upstream = left.as_upstream(RenderDicomResult())
        us, them, peaks = [], [], []
        for _ in range(rounds):
            them.append(theirs(folder))
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                seconds, peak = pool.apply(ours, (folder, upstream))
            us.append(seconds)
            peaks.append(peak)
            say("archive", ours_seconds=seconds, zip_seconds=them[-1], memory_mib=peak)
    say("archive", mib=mib, ratio=ratio(them, us), memory_mib=max(peaks))


if __name__ == "__main__":
    main()
