"""Makes a model that finds lines of text: PP-OCRv4's detector, out of a pinned wheel.

`make ppocr FOLDER=models` runs it. The wheel is not installed. The graph stays as it is, to the
byte: it gives a map of probabilities, and `regions` of a manifest makes boxes of that.
"""

import random
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from fluoro.v1.dicom_pb2 import RenderedImage
from ml_worker.detecting import Detected, Shown, objects_in
from ml_worker.manifest import Manifest
from ml_worker.prepare import prepare, visible
from ml_worker.repository import read_model
from ml_worker.sessions import session_options
from ml_worker.settings import ModelSettings
from ml_worker.testing import files_of_wheel, write_model
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from skimage import data

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

HERE: Final = Path(__file__).parent
MEMBER: Final = "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"
IMAGE, MAP = "x", "sigmoid_0.tmp_0"
"""The network's names."""
SIDE: Final = 960
"""Rows and columns that the model is shown; the network takes any multiples of 32."""

MANIFEST: Final = f"""
name = "text-lines"
version = "1.0.0"
summary = "Finds lines of text, and does not read them."
intended_use = "research"
license = "Apache-2.0"
source = "rapidocr-onnxruntime 1.4.4 (PyPI), its ch_PP-OCRv4_det_infer.onnx"
training_data = "PaddleOCR's collection of scenes and documents, as its authors say."
labels = [{{ value = 0, display_name = "text" }}]

[applies_to]
modalities = []
unit = "1"
photometric = ["grey", "colour"]

[[inputs]]
name = "{IMAGE}"
dtype = "float32"
layout = "NCHW"
shape = ["n", 3, {SIDE}, {SIDE}]

[inputs.image]
colour = "bgr"
values = {{ from = "full", to = [-1, 1] }}
resize = "fit"

[[outputs]]
kind = "regions"
name = "{MAP}"
dtype = "float32"
shape = ["n", 1, {SIDE}, {SIDE}]
pixel_threshold = 0.3
threshold = 0.5
least_side = 3
unclip = 1.6

# A run of one sample takes 290 MB.
[batch]
max = 1
bytes_per_voxel = 400
"""

SIZES: Final = (8, 10, 12, 16, 20, 24, 32, 48, 64)
"""Heights of the font in pixels: a word of each is on a page."""
TURNED: Final = (30, 90)
"""Degrees of words that are not upright."""
SMOOTH, ROUGH = ("dark", "light", "noise"), ("grass",)
"""What words are painted on."""
EVERY_PAGE: Final = tuple(product((*SMOOTH, *ROUGH), (0, *TURNED)))
"""Ground and angle of each page that is measured for the card."""
CELL: Final = SIDE // 3
"""Rows and columns of a page for one word."""
STEP: Final = 100
"""How much brighter or darker than the middle of the page a word is, of 255."""
COVERED: Final = 0.9
"""Share of a word's ink that must lie in boxes for the word to be found."""
WITHOUT: Final = (
    "brick",
    "camera",
    "cell",
    "chelsea",
    "coffee",
    "grass",
    "gravel",
    "horse",
    "hubble_deep_field",
    "immunohistochemistry",
    "microaneurysms",
    "moon",
    "retina",
)
"""Pictures of scikit-image that show no text."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What the model finds on painted pages and on pictures without text.

    found, painted: words by ground, angle and size. aside: boxes of the pages that touch no word.
    pictures: boxes by picture.
    """

    found: Counter[tuple[str, int, int]]
    painted: Counter[tuple[str, int, int]]
    aside: int
    boxes: int
    pictures: dict[str, int]

    def recall(self, grounds: Sequence[str], angles: Sequence[int], size: int) -> float:
        """Share of words that are found."""
        keys = [(ground, angle, size) for ground in grounds for angle in angles]
        return sum(self.found[key] for key in keys) / sum(self.painted[key] for key in keys)

    def card(self) -> str:
        """The lines of the card."""
        rows = "".join(
            f"| {size} | {self.recall(SMOOTH, [0], size):.0%} "
            f"| {self.recall(SMOOTH, TURNED, size):.0%} "
            f"| {self.recall(ROUGH, [0, *TURNED], size):.0%} |\n"
            for size in SIZES
        )
        wrong = {name: count for name, count in self.pictures.items() if count}
        named = ", ".join(f"{name} {count}" for name, count in wrong.items()) or "none"
        return f"""
## Measured

By `ppocr.py`, when it made this folder. Painted words of six letters, on pages of {SIDE} x {SIDE}
pixels, {STEP} of 255 brighter or darker than the page. A word is found if {COVERED:.0%} of its
ink lies in boxes.

| height of the font (px) | upright, {", ".join(SMOOTH)} | turned by 30 or 90 degrees | grass |
|---|---|---|---|
{rows}
- **Boxes on these pages that touch no word**: {self.aside} of {self.boxes}.
- **Pictures without text**: of {len(self.pictures)} of scikit-image, {len(wrong)} have boxes:
  {named}.
"""


CARD: Final = f"""# text-lines 1.0.0

The detector of PP-OCRv4 (PaddleOCR; DB, Liao et al. 2020, arXiv:1911.08947): a box for each line
of text. It reads nothing.

- **Weights**: wheel rapidocr-onnxruntime 1.4.4 (Apache-2.0 by its metadata), pinned by its
  SHA-256. The graph is as it was.
- **Trained on** scenes and documents, as its authors say. It has seen no medical images.
- **Sees** the whole picture in {SIDE} x {SIDE} pixels, so letters lower than 1 % of its longest
  side are missed.
- **Misses** most of what stands on a rough ground, and small letters that are turned.
- **Boxes** have upright sides: that of a turned line holds more than the line.
- **Calls text** what is none: craters, coins, a cell. Its scores do not tell it apart.
- **Not for** proving that a picture shows no name. De-identification (`DeidentifyDicom`) looks at
  tiles, reads what it found, and looks again. Nothing here has been validated for medical use.
"""


def page(ground: str, angle: int, seed: int) -> tuple[Pixels, list[tuple[int, Mask]]]:
    """A page with a word of each size, and where the ink of each is."""
    chance = random.Random(seed)  # noqa: S311 - paints words
    noise = np.random.default_rng(seed).normal(128, 12, (SIDE, SIDE))
    grounds = {
        "dark": lambda: np.full((SIDE, SIDE), 30.0),
        "light": lambda: np.full((SIDE, SIDE), 235.0),
        "noise": lambda: noise,
        "grass": lambda: np.tile(data.grass().astype(float), (2, 2))[:SIDE, :SIDE],
    }
    picture = grounds[ground]()
    step = -STEP if picture.mean() > 128 else STEP  # noqa: PLR2004 - middle grey
    color = float(np.clip(picture.mean() + step, 0, 255))
    words = []
    for cell, size in enumerate(chance.sample(SIZES, len(SIZES))):
        word = "".join(chance.choices("ABCDEFGHKLMNPRSTUVWXYZ23456789", k=6))
        ink = Image.new("L", (CELL, CELL))
        place = (CELL // 2, CELL // 2)
        font = ImageFont.load_default(size)
        ImageDraw.Draw(ink).text(place, word, fill=255, font=font, anchor="mm")
        turned = np.asarray(ink.rotate(angle, Image.Resampling.BICUBIC), float) / 255
        cover = np.zeros((SIDE, SIDE))
        top, left = CELL * (cell // 3), CELL * (cell % 3)
        cover[top : top + CELL, left : left + CELL] = turned
        picture = picture * (1 - cover) + color * cover
        words.append((size, cover > 0.5))  # noqa: PLR2004 - half
    return np.clip(picture.round(), 0, 255).astype(np.uint8), words


def shown(manifest: Manifest, picture: Pixels) -> tuple[NDArray[Any], Shown]:
    """The tensor of a picture, and where it shows it."""
    tensor, image = manifest.inputs[0], RenderedImage()
    there = visible(picture.shape[:2], image, tensor)
    return prepare(picture[np.newaxis], image, tensor), Shown((SIDE, SIDE), *there)


def objects(manifest: Manifest, session: ort.InferenceSession, picture: Pixels) -> list[Detected]:
    """What the model finds in a picture."""
    tensor, where = shown(manifest, picture)
    (found,) = session.run([MAP], {IMAGE: tensor})
    return objects_in(manifest, {"regions": found[0]}, where, None, 1000)


def masks_of(size: Sequence[int], found: Sequence[Detected]) -> list[Mask]:
    """The pixels of each box."""
    masks = []
    for each in found:
        left, top, right, bottom = each.box.round().astype(int)
        masks.append(np.zeros(tuple(size), bool))
        masks[-1][top:bottom, left:right] = True
    return masks


def measured(
    manifest: Manifest,
    network: bytes,
    painted_on: Iterable[tuple[str, int]] = EVERY_PAGE,
    without: Iterable[str] = WITHOUT,
) -> Figures:
    """What the model finds, counted. painted_on: grounds and angles of pages."""
    session = opened(network)
    found: Counter[tuple[str, int, int]] = Counter()
    painted: Counter[tuple[str, int, int]] = Counter()
    aside = boxes = 0
    for number, (ground, angle) in enumerate(painted_on):
        picture, words = page(ground, angle, number)
        masks = masks_of(picture.shape, objects(manifest, session, picture))
        seen = np.any([np.zeros(picture.shape, bool), *masks], axis=0)
        painted.update((ground, angle, size) for size, _ in words)
        found.update((ground, angle, size) for size, ink in words if seen[ink].mean() >= COVERED)
        inks = np.any([ink for _, ink in words], axis=0)
        aside += sum(not (mask & inks).any() for mask in masks)
        boxes += len(masks)
    pictures = {}
    for name in without:
        picture = getattr(data, name)()
        # One of them is a mask.
        values = picture if picture.dtype == np.uint8 else picture.astype(np.uint8) * 255
        pictures[name] = len(objects(manifest, session, values))
    return Figures(found, painted, aside, boxes, pictures)


def download() -> bytes:
    """The network."""
    (network,) = files_of_wheel(HERE / "ppocr.txt", MEMBER)
    return network


def opened(network: bytes) -> ort.InferenceSession:
    """The network, run as a worker does."""
    return ort.InferenceSession(network, session_options(ModelSettings()))


def write(folder: Path, network: bytes) -> Path:
    """Writes `text-lines/1.0.0` and returns it. Its card has no figures yet."""
    picture, _ = page("dark", 0, 7)
    tensor = np.repeat(picture[np.newaxis, np.newaxis] / np.float32(127.5) - 1, 3, axis=1)
    (found,) = opened(network).run([MAP], {IMAGE: tensor})
    place = write_model(folder, MANIFEST, network, {IMAGE: tensor, MAP: found})
    (place / "CARD.md").write_text(CARD, encoding="utf-8")
    return place


def main() -> None:
    """Writes the model, and what it was measured to find into its card."""
    network = download()
    place = write(Path(sys.argv[1]), network)
    figures = measured(read_model(place).manifest, network)
    (place / "CARD.md").write_text(CARD + figures.card(), encoding="utf-8")
    sys.stdout.write(f"{place}\n")


if __name__ == "__main__":
    main()
