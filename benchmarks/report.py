"""A two-page study report by ExportReport, reportlab and WeasyPrint, in turn, warm.

Ours goes from results and blobs to a durable blob: tagged PDF/A-2a and PDF/UA-1. The peers get the
report's model, or its HTML, and its pictures ready. reportlab draws the same parts in the same
places, but has neither tags nor PDF/A; WeasyPrint writes PDF/UA-1. Each report has another title,
so nobody prints a page that it remembers; typst does remember the pictures. The peers live in an
environment of their own, `out/peers-report`, which the first run makes (WeasyPrint needs Pango).

Then, each in a fresh process: a batch of 50 photographs (aims: 3 s, 300 MiB of memory in all), and
one of 500.

Last line: `ratio` = theirs / ours in seconds, the faster peer (aim ≥ 2).
"""

import json
import multiprocessing
import subprocess
import tempfile
import time
import venv
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Final, cast

from export_worker.operations.report import export_report
from export_worker.testing import Study, ct_slices, photographs
from fluoro.v1.export_pb2 import ExportReport
from fluoro_jobs.worker.context import Upstream
from rig.figures import latencies, quick, ratio, say
from rig.servers import BENCHMARKS

PEERS: Final = ("reportlab==5.1.0", "rl_accel==0.9.1", "weasyprint==70.0")
TITLE: Final = "TITLE"


def ours(
    folder: Path, upstream: list[Upstream], title: str, *formats: "ExportReport.Format.ValueType"
) -> tuple[float, int]:
    """Seconds, and pages of the report."""
    attempt = Study(folder, [], []).attempt(*upstream)
    began = time.perf_counter()
    result = export_report(ExportReport(title=title, formats=formats), attempt.context)
    seconds = time.perf_counter() - began
    if ExportReport.FORMAT_HTML in formats:  # what the peers begin with
        (folder / "report.html").write_bytes(attempt.read("report.html"))
        for path in attempt.context.scratch.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
    attempt.context.folder.remove()
    return seconds, result.pages


class Peer:
    """In a process of its own Python."""

    def __init__(self, python: Path, name: str, folder: Path, stack: ExitStack) -> None:
        """Starts it; the stack ends it."""
        self._process = stack.enter_context(
            subprocess.Popen(
                [python, "-m", "peers.documents", name, folder],
                cwd=BENCHMARKS,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        )
        stack.callback(self._process.kill)

    def seconds(self, title: str) -> float:
        """Of one document."""
        asked = cast("IO[str]", self._process.stdin)
        asked.write(json.dumps(title) + "\n")
        asked.flush()
        return float(cast("IO[str]", self._process.stdout).readline())


def batch(folder: Path, count: int) -> tuple[float, float, int]:
    """Seconds, MiB of the process at its peak, pages. To be called in a fresh process."""
    upstream = photographs(folder, count)
    attempt = Study(folder, [], []).attempt(*upstream)
    began = time.perf_counter()
    request = ExportReport(template="batch", formats=[ExportReport.FORMAT_PDF])
    result = export_report(request, attempt.context)
    seconds = time.perf_counter() - began
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    return seconds, peak, result.pages


def peers_python() -> Path:
    """The Python of the environment with the peers."""
    home = BENCHMARKS.parent / "out" / "peers-report"
    python = home / "bin" / "python"
    if not (home / "ready").exists():
        venv.create(home, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEERS], check=True, timeout=600)
        (home / "ready").touch()
    return python


def main(rounds: int, counts: tuple[int, ...]) -> None:
    """Rounds in turn, then batches."""
    with tempfile.TemporaryDirectory(prefix="fluoro-report-") as name, ExitStack() as stack:
        folder = Path(name)
        study = Study.of_slices(folder, ct_slices(1, 512))
        upstream = [study.render(), study.analyze()]
        _, pages = ours(folder, upstream, TITLE, ExportReport.FORMAT_PDF, ExportReport.FORMAT_HTML)
        python = peers_python()
        peers = {each: Peer(python, each, folder, stack) for each in ("reportlab", "weasyprint")}
        found: dict[str, list[float]] = {each: [] for each in ("ours", *peers)}
        for number in range(-2, rounds):  # two rounds to warm up
            title = f"Study {number}"
            seconds = {"ours": ours(folder, upstream, title, ExportReport.FORMAT_PDF)[0]}
            seconds |= {each: peer.seconds(title) for each, peer in peers.items()}
            if number >= 0:
                for each, value in seconds.items():
                    found[each].append(value)
        for each, values in found.items():
            p50 = latencies(values)["p50_ms"]
            say(each, p50_ms=p50, pages_per_second=1000 * pages / p50, pages=pages)
        for count in counts:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                seconds_, peak, printed = pool.apply(batch, (folder, count))
            say(f"batch of {count}", seconds=seconds_, memory_mib=peak, pages=printed)
        faster = [min(pair) for pair in zip(found["reportlab"], found["weasyprint"], strict=True)]
        say("report", ratio=ratio(faster, found["ours"]))


if __name__ == "__main__":
    main(*((2, (3,)) if quick(__doc__) else (40, (50, 500))))
