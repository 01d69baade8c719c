"""De-identification of the same files by us, dicognito and deid, in turn: instances per second.

From a file to a file, one process each. We apply the full profile and prove it; the peers do what
they do as they come. In the same run it is counted what each leaves of the identifiers that were
planted in seeded files: in headers, sequences, private attributes and JPEG metadata. The peers live
in an environment of their own, `out/peers`, which the first run makes.

Pixel cleaning, which no peer does, is printed apart: seconds per megapixel, of frames without text
and with one.

Last line: `ratio` = ours / dicognito (aim ≥ 2), `ratio_deid` = ours / deid (aim ≥ 6).
"""

import json
import random
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, cast

from dicom_worker.deidentify.instance import deidentify
from dicom_worker.deidentify.painting import paint
from dicom_worker.deidentify.profile import Options
from dicom_worker.deidentify.pseudonyms import Key
from dicom_worker.deidentify.testing import Planted, left, planted
from dicom_worker.testing import saved, wheel_file
from pydicom import dcmread
from rig.figures import quick, ratio, say
from rig.servers import BENCHMARKS

PEERS: Final = ("dicognito==0.19.0", "deid==0.4.13", "pydicom==3.0.2")
FILES: Final = (
    *("CT_small", "MR_small", "MR_small_implicit", "MR_small_jpeg_ls_lossless", "MR_small_RLE"),
    *("SC_rgb_jpeg_gdcm", "examples_ybr_color", "rtplan", "693_J2KI", "test-SR"),
)
"""Of pydicom's wheel: many kinds and Transfer Syntaxes."""
GREY: Final = "examples_overlay"
"""300 rows and 484 columns of 16 bits."""
KEY: Final = Key(b"a secret of at least thirty-two bytes")
OPTIONS: Final = Options(frozenset(), replace_documents=True)


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds that a round took, and the files that came to nothing."""

    seconds: float
    failed: Sequence[str]


class Ours:
    """In this process."""

    def __init__(self, out: Path) -> None:
        """out: where clean files go."""
        self._out = out

    def round(self, paths: Sequence[Path]) -> Round:
        """De-identifies the files."""
        began = time.perf_counter()
        for path in paths:
            deidentify(path, self._out / path.name, KEY, OPTIONS, lambda: None)
        return Round(time.perf_counter() - began, [])


class Peer:
    """In a process of its own Python."""

    def __init__(self, python: Path, name: str, out: Path, stack: ExitStack) -> None:
        """Starts it; the stack ends it."""
        script = BENCHMARKS / "peers" / "anonymizers.py"
        self._process = stack.enter_context(
            subprocess.Popen(
                [python, script, name, out],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        )
        stack.callback(self._process.kill)

    def round(self, paths: Sequence[Path]) -> Round:
        """De-identifies the files."""
        asked = cast("IO[str]", self._process.stdin)
        asked.write(json.dumps([str(path) for path in paths]) + "\n")
        asked.flush()
        return Round(**json.loads(cast("IO[str]", self._process.stdout).readline()))


def main(rounds: int, repeats: int, seeds: int) -> None:
    """Rounds in turn, then what is left, figures at the end."""
    with tempfile.TemporaryDirectory(prefix="fluoro-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        python = peers_python()
        outs = {side: folder / side for side in ("ours", "dicognito", "deid")}
        for out in outs.values():
            out.mkdir()
        sides: dict[str, Ours | Peer] = {"ours": Ours(outs["ours"])} | {
            side: Peer(python, side, outs[side], stack) for side in ("dicognito", "deid")
        }
        paths = [wheel_file(file) for file in FILES]
        rates: dict[str, list[float]] = {side: [] for side in sides}
        for side in sides.values():
            side.round(paths)
        for _ in range(rounds):
            for each, side in sides.items():
                seconds = sum(timed(side, paths, outs[each]) for _ in range(repeats))
                rates[each].append(repeats * len(paths) / seconds)
        for each, rate in rates.items():
            say(each, instances_per_second=sorted(rate)[len(rate) // 2], files=len(FILES))
        count_left(sides, outs, folder, seeds)
        clean_pixels(folder)
        say(
            "deidentify",
            ratio=ratio(rates["ours"], rates["dicognito"]),
            ratio_deid=ratio(rates["ours"], rates["deid"]),
        )


def timed(side: Ours | Peer, paths: Sequence[Path], out: Path) -> float:
    """Seconds of a round into a folder of new files: to overwrite one is up to the disk."""
    for old in out.iterdir():
        old.unlink()
    return side.round(paths).seconds


def clean_pixels(folder: Path) -> None:
    """Prints what the search for text takes, with weights that are loaded."""
    clean = folder / "clean"
    options = Options(frozenset(("clean_pixel_data",)))
    deidentify(wheel_file(GREY), clean, KEY, options, lambda: None)
    dataset = dcmread(wheel_file(GREY))
    painted = paint(dataset.pixel_array, random.Random(7))
    dataset.PixelData = painted.values.tobytes()
    (folder / "painted").write_bytes(saved(dataset))
    for kind, path in (("without text", wheel_file(GREY)), ("with text", folder / "painted")):
        began = time.perf_counter()
        deidentify(path, clean, KEY, options, lambda: None)
        seconds = time.perf_counter() - began
        say(
            f"pixel cleaning {kind}",
            seconds_per_megapixel=seconds / dataset.Rows / dataset.Columns * 1e6,
        )


def count_left(
    sides: dict[str, Ours | Peer], outs: dict[str, Path], folder: Path, seeds: int
) -> None:
    """Prints for each side how many of the planted identifiers its files still hold."""
    files: dict[Path, Planted] = {}
    for seed in range(seeds):
        path = folder / f"planted-{seed}.dcm"
        files[path] = planted(seed)
        path.write_bytes(files[path].data)
    for each, side in sides.items():
        failed = set(side.round(list(files)).failed)
        held = {
            path: len(set(left(file, (outs[each] / path.name).read_bytes())))
            for path, file in files.items()
            if str(path) not in failed and (outs[each] / path.name).exists()
        }
        say(
            f"{each} leaves",
            identifiers=sum(held.values()),
            of=sum(len(file.texts) for path, file in files.items() if path in held),
            in_files=sum(map(bool, held.values())),
            files=len(held),
            files_without_result=len(files) - len(held),
        )


def peers_python() -> Path:
    """The Python of the peers' environment, made if it is not there."""
    folder = BENCHMARKS.parent / "out" / "peers"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True, clear=True)
        options = ("--quiet", "--disable-pip-version-check")
        subprocess.run(
            [python, "-m", "pip", "install", *options, *PEERS], check=True, stdout=sys.stderr
        )
        (folder / "ready").touch()
    return python


if __name__ == "__main__":
    main(1, 1, 3) if quick(__doc__) else main(5, 5, 38)
