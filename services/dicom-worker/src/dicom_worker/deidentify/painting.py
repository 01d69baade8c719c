"""Paints text into frames, as devices and people do, for tests of what finds it."""

import random
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SIZES: Final = (10, 12, 16, 20, 28, 40, 64)
"""Heights of fonts, in pixels: capitals have seven tenths of them."""
CONTRASTS: Final = (1.0, 0.6, 0.35, 0.2)
"""Shares of the frame's range between the text and what is behind it."""
ANGLES: Final = (0, 0, 0, 5, -10, 30, 45, 90, 180, 270)
"""Degrees. Most text is level."""
FACES: Final = ("sans", "sans", "plotter", "bold plotter")
"""Outlines as on a computer, and strokes as on older devices."""
LEAST_SEEN: Final = 0.04
"""Share of the frame's range by which a stroke has to differ from what is behind it to be seen."""
WORDS: Final = (
    *("QUACKENBUSH", "O'BRIEN", "Mueller-Luedenscheid", "DOE^JANE", "Garcia Lopez", "NGUYEN"),
    *("ID: 4711-0815", "1957-03-12", "DOB 12.03.1957", "MRN 99812345", "Acc 20261127"),
)


@dataclass(frozen=True, slots=True)
class Painted:
    """A frame with a text.

    inked: (rows, columns), where its strokes can be seen. face: what they are drawn with.
    """

    values: NDArray[Any]
    inked: NDArray[np.bool_]
    size: int
    contrast: float
    angle: int
    face: str


def paint(frame: NDArray[Any], generator: random.Random) -> Painted:
    """A copy of grey or RGB values with one text, at a place where it fits.

    It is brighter than what is behind it, or darker where that is bright.
    """
    size, contrast = generator.choice(SIZES), generator.choice(CONTRASTS)
    angle, word = generator.choice(ANGLES), generator.choice(WORDS)
    face = generator.choice(FACES)
    rows, columns = frame.shape[:2]
    ink = stamp(word, size, angle, face)
    # What does not fit is written smaller.
    while ink.shape[0] > rows or ink.shape[1] > columns:
        size = size * 3 // 4
        ink = stamp(word, size, angle, face)
    top = generator.randint(0, rows - ink.shape[0])
    left = generator.randint(0, columns - ink.shape[1])
    cover = np.zeros((rows, columns), np.float32)
    cover[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    low, high = float(frame.min()), float(frame.max())
    behind = float(np.median(frame[cover > 0]))
    step = contrast * (high - low)
    colour = behind + step if behind + step <= high else behind - step
    mix = cover if frame.ndim == 2 else cover[..., None]  # noqa: PLR2004 - rows, columns
    values = np.rint(frame * (1 - mix) + np.clip(colour, low, high) * mix).astype(frame.dtype)
    change = np.abs(values.astype(np.float32) - frame)
    seen = (change if frame.ndim == 2 else change.max(axis=-1)) >= LEAST_SEEN * (high - low)  # noqa: PLR2004 - rows, columns
    return Painted(values, (cover > 0.5) & seen, size, contrast, angle, face)  # noqa: PLR2004 - half


def stamp(word: str, size: int, angle: int, face: str = "sans") -> NDArray[np.float32]:
    """A word, 0 to 1, cut out close. face: one of `FACES`."""
    picture = set_word(word, size) if face == "sans" else plot_word(word, size, face)
    turned = picture.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    return np.asarray(np.asarray(turned, np.float32) / 255, np.float32)


def set_word(word: str, size: int) -> Image.Image:
    """A word in Pillow's own font."""
    font = ImageFont.load_default(size)
    left, top, right, bottom = (int(edge) for edge in font.getbbox(word))
    picture = Image.new("L", (right - left + 4, bottom - top + 4))
    ImageDraw.Draw(picture).text((2 - left, 2 - top), word, fill=255, font=font)
    return picture


def plot_word(word: str, size: int, face: str) -> Image.Image:
    """A word in Hershey's strokes, with capitals as high as those of the other font."""
    font, thick = cv2.FONT_HERSHEY_SIMPLEX, max(1, size // (8 if face.startswith("bold") else 16))
    scale = cv2.getFontScaleFromHeight(font, round(0.7 * size), thick)
    (width, height), below = cv2.getTextSize(word, font, scale, thick)
    picture = np.zeros((height + below + 4, width + 4), np.uint8)
    cv2.putText(picture, word, (2, height + 2), font, scale, 255, thick, cv2.LINE_AA)
    return Image.fromarray(picture)


def background(generator: random.Random, rows: int, columns: int) -> NDArray[np.uint8]:
    """A phantom without text: soft shapes, an edge and noise, like an X-ray or ultrasound."""
    random_state = np.random.default_rng(generator.getrandbits(32))
    coarse = random_state.normal(90, 50, (7, 7)).astype(np.float32)
    soft = cv2.resize(coarse, (columns, rows), interpolation=cv2.INTER_CUBIC)
    noisy = soft + random_state.normal(0, generator.choice((1, 6, 15)), (rows, columns))
    centre = (columns // 2, rows // 2)
    sector = np.zeros((rows, columns), np.uint8)
    cv2.ellipse(sector, centre, (columns * 2 // 5, rows * 2 // 5), 0, 0, 360, 1, -1)
    return np.asarray(np.where(sector, np.clip(noisy, 0, 255), 0).astype(np.uint8))
