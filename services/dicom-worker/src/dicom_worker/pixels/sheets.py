"""Contact sheets: what was rendered of each series, in one picture."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil, sqrt
from pathlib import Path
from typing import ClassVar

import numpy as np
from fluoro.v1.dicom_pb2 import ContactSheet, ContactSheetLayout, ContactSheetTile
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.keys import file_name
from fluoro_jobs.worker.context import StepContext
from pydicom.dataset import Dataset

from dicom_worker import limits
from dicom_worker.attributes import decimals, text
from dicom_worker.pixels.pictures import Pixels, encoded, sheet
from dicom_worker.pixels.rendering import PNG
from dicom_worker.studies.slices import Place, place
from dicom_worker.studies.volumes import order_in_space


@dataclass(frozen=True, slots=True)
class Tile:
    """One frame of a series, its picture on disk.

    frame: 0-based. place: as `studies.slices.place` has it; None if unknown. number: Instance
    Number; 0 if there is none.
    """

    item: str
    frame: int
    path: Path
    place: Place | None
    number: float


@dataclass(slots=True)
class Sheets:
    """Collects tiles, on disk, and makes a sheet for each series."""

    TILES: ClassVar = 100
    TILE_PX: ClassVar = 128

    layout: ContactSheetLayout
    folder: Path
    series: dict[str, list[Tile]] = field(default_factory=dict)
    size_bytes: int = 0

    def add(self, item: str, header: Dataset, tiles: Sequence[tuple[int, Pixels]]) -> None:
        """The tiles of one item, by frame. IMAGE_TOO_LARGE over `limits.TILES_LIMIT_BYTES`."""
        self.size_bytes += sum(picture.nbytes for _, picture in tiles)
        if self.size_bytes > limits.TILES_LIMIT_BYTES:
            raise FluoroError(
                Reason.IMAGE_TOO_LARGE,
                "The contact sheets of this task have too many tiles. "
                "Set a smaller max_inputs_per_task.",
            )
        series = self.series.setdefault(text(header, "SeriesInstanceUID"), [])
        number = decimals(header, "InstanceNumber")
        for frame, picture in tiles:
            # On disk, because a task may have thousands of images and sheets come last.
            path = self.folder / f"tile-{sum(map(len, self.series.values()))}.npy"
            np.save(path, picture)
            where = place(header, frame)
            series.append(Tile(item, frame, path, where, number[0] if number else 0))

    def put(self, context: StepContext) -> Iterator[ContactSheet]:
        """Stores the sheets, in the order in which their series came."""
        for uid, tiles in self.series.items():
            context.check()
            shown = thinned(in_order(tiles), self.layout.max_tiles or self.TILES)
            columns = min(self.layout.columns or ceil(sqrt(len(shown))), len(shown))
            pixels = sheet(
                [np.load(tile.path) for tile in shown],
                columns,
                self.layout.tile_px or self.TILE_PX,
            )
            # An item belongs to one task and one series, so its key makes the name unique.
            key = tiles[0].item
            name = file_name("contact-sheet", key, PNG.suffix)
            context.put(name, "contact-sheet", PNG.media_type, encoded(pixels, PNG, 0), key=key)
            yield ContactSheet(
                name=name,
                series_instance_uid=uid,
                columns=columns,
                tiles=[ContactSheetTile(item=tile.item, frame=tile.frame + 1) for tile in shown],
            )


def in_order(tiles: Sequence[Tile]) -> list[Tile]:
    """In space if all have a place, else by Instance Number.

    Several images of one place, as over time, stay in the order of their numbers.
    """
    numbered = sorted(tiles, key=lambda tile: (tile.number, tile.frame))
    places = [tile.place for tile in numbered]
    known = [each for each in places if each is not None]
    # One image without a place cannot be sorted among the others, so none is.
    if len(known) < len(places):
        return numbered
    return [numbered[at] for at in order_in_space(known)]


def thinned(tiles: Sequence[Tile], most: int) -> list[Tile]:
    """At most so many, evenly spaced, the first and the last among them."""
    if len(tiles) <= most:
        return list(tiles)
    return [tiles[int(at)] for at in np.linspace(0, len(tiles) - 1, most)]
