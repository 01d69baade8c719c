"""A painted slide of 20,000 x 20,000 pixels in both operations, against a plain loop.

`ours`: from the file to the results of both operations: decoding in the codecs' process, tissue,
certificates, blobs, stains, scores, heat map. `loop`: tifffile and ONNX Runtime; one tile after
another is decoded, looked at for tissue, normalised as Macenko et al. wrote it (logarithm,
matrix, exponential, in float32) and shown to the same graph, two at a time. `loop_tables`: the same
loop with our tables instead. A run of the graph has one thread in all of them. That and two tiles
are what is fastest for the loop, of 1 to 8 tiles on one or two threads.
All score the same tiles, with the stains that TileSlide estimated.

`peak_mib`: most memory of this process, without the codecs' child. Last line: `ratio` =
tiles per second, ours / loop; `ratio_tables` = ours / loop_tables.
"""

import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort
import tifffile
from dicom_worker.operations.tile import tile_slide
from dicom_worker.slides.tissue import tissue_of
from fluoro.v1.slide_pb2 import AnalyzeSlide, TiledSlide, TileSlide
from fluoro_jobs.testing import step_context
from fluoro_telemetry.logs import configure_logging
from ml_worker.cpus import run_threads
from ml_worker.operations.slide import analyze
from ml_worker.registry import Registry
from ml_worker.sessions import session_options
from ml_worker.settings import SHIPPED_MODELS, ModelSettings
from ml_worker.slide_phantoms import island, laboratory, slide
from ml_worker.slides import REFERENCE, REFERENCE_MAXIMA, WHITE, colours_of, to_reference
from numpy.typing import NDArray
from rig.figures import quick, ratio, say

TILE: Final = 256
TOGETHER: Final = 2
"""Tiles that the loop shows to the graph at once."""
ONE_THREAD: Final = ModelSettings(intra_op_threads=1)
LEAST: Final = 0.25
"""Share of a tile that must be tissue, as TileSlide has it."""


def paint(path: Path, tiles: int) -> None:
    """A tiled TIFF in JPEG, with so many tiles on each side."""
    random = np.random.default_rng(5)
    tifffile.imwrite(
        path,
        slide(island(tiles, tiles), random, laboratory(random), TILE),
        shape=(tiles * TILE, tiles * TILE, 3),
        dtype=np.uint8,
        tile=(TILE, TILE),
        photometric="rgb",
        compression="jpeg",
    )


def ours(path: Path, folder: Path, models: Registry) -> tuple[float, TiledSlide]:
    """Tiles per second, and what was cut."""
    cutting = step_context(folder, [path], step="tile")
    began = time.perf_counter()
    cut = tile_slide(TileSlide(), cutting.context)
    upstream = [cutting.as_upstream(cut)]
    scoring = step_context(folder, [], upstream, step="analyze", reads=("tiles",))
    found = analyze(AnalyzeSlide(model="he-texture"), scoring.context, models)
    return found.slides[0].tiles / (time.perf_counter() - began), cut.slides[0]


Normalize = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


def as_written(cut: TiledSlide) -> Normalize:
    """Macenko's normalisation as the paper has it, for the stains of this slide."""
    stains = np.stack([cut.stain.hematoxylin, cut.stain.eosin], axis=1)
    there = np.array([cut.stain.hematoxylin_maximum, cut.stain.eosin_maximum])
    mix = REFERENCE @ np.diag(REFERENCE_MAXIMA / there) @ np.linalg.pinv(stains)
    # In rows: BLAS takes several threads for columns, and their CPU time is ten times as much.
    mix_float = np.ascontiguousarray(mix.T, np.float32)

    def normalize(tile: NDArray[np.uint8]) -> NDArray[np.uint8]:
        density = -np.log((tile.reshape(-1, 3).astype(np.float32) + 1) / WHITE)
        light = WHITE * np.exp(-(density @ mix_float))
        colours: NDArray[np.uint8] = np.minimum(light, 255).astype(np.uint8)
        return colours.reshape(tile.shape)

    return normalize


def by_tables(cut: TiledSlide) -> Normalize:
    """The same by our tables, which are there before the clock starts."""
    tables = to_reference(cut)
    assert tables is not None
    with ThreadPoolExecutor() as pool:
        colours = colours_of(tables, len(cut.tiles) * TILE**2, pool)

    def normalize(tile: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return colours(tile[np.newaxis]).reshape(tile.shape)

    return normalize


def loop(path: Path, cut: TiledSlide, normalize: Normalize) -> float:
    """Tiles per second of tifffile and ONNX Runtime."""
    graph = SHIPPED_MODELS / "he-texture" / "1.0.0" / "model.onnx"
    session = ort.InferenceSession(graph, session_options(ONE_THREAD))
    shown: list[NDArray[np.uint8]] = []
    scored = 0
    began = time.perf_counter()
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
        for index, (offset, size) in enumerate(places):
            file.filehandle.seek(offset)
            data = file.filehandle.read(size)
            tile = page.decode(data, index, jpegtables=page.jpegtables)[0]
            tile = np.ascontiguousarray(np.asarray(tile).reshape(1, TILE, TILE, 3))
            if tissue_of(tile).mean() >= LEAST:
                shown.append(normalize(tile[0]))
            if len(shown) == TOGETHER or (shown and index == len(places) - 1):
                session.run(["probabilities", "novelty"], {"image": np.stack(shown)})
                scored += len(shown)
                shown.clear()
    if scored != len(cut.tiles):
        raise SystemExit("the loop scored other tiles")
    return scored / (time.perf_counter() - began)


def main(rounds: int, tiles: int) -> None:
    """rounds: of both. tiles: on each side of the slide."""
    configure_logging("benchmark", "WARNING")
    models = Registry(ONE_THREAD)
    models.open()
    rates: dict[str, list[float]] = {"ours": [], "loop": [], "loop_tables": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.tif"
        paint(path, tiles)
        for number in range(rounds):
            place = Path(folder) / str(number)
            rate, cut = ours(path, place, models)
            rates["ours"].append(rate)
            shutil.rmtree(place)
            if number == 0:
                # Before the loop, which is not bounded.
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            rates["loop"].append(loop(path, cut, as_written(cut)))
            rates["loop_tables"].append(loop(path, cut, by_tables(cut)))
    for name, per_second in rates.items():
        say(name, tiles_per_second=statistics.median(per_second))
    say(
        "slide",
        ratio=ratio(rates["ours"], rates["loop"]),
        ratio_tables=ratio(rates["ours"], rates["loop_tables"]),
        peak_mib=peak,
        side=tiles * TILE,
        tiles=len(cut.tiles),
        processors=run_threads(),
    )


if __name__ == "__main__":
    if quick(__doc__):
        main(1, 8)
    else:
        main(3, 79)
