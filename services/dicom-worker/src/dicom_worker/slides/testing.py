"""Small slides, for tests and benchmarks."""

from io import BytesIO
from typing import Any, Final

import imagecodecs
import numpy as np
import pydicom
import tifffile
from numpy.typing import NDArray
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGBaseline8Bit

from dicom_worker.slides.source import WHOLE_SLIDE

GLASS: Final = 243
Picture = NDArray[np.uint8]


def stained(rows: int, columns: int, seed: int = 1) -> Picture:
    """Pink and violet, softly varied, on glass: tissue is the middle half of rows and columns."""
    random = np.random.default_rng(seed)
    picture = np.full((rows, columns, 3), GLASS, np.uint8)
    coarse = random.integers(0, 2, (rows // 8 + 1, columns // 8 + 1))
    violet = np.kron(coarse, np.ones((8, 8), int))[:rows, :columns, np.newaxis]
    shade = random.integers(-8, 8, (rows, columns, 1))
    tissue = np.where(violet, (110, 60, 140), (225, 150, 190)) + shade
    middle = np.s_[rows // 4 : rows * 3 // 4, columns // 4 : columns * 3 // 4]
    picture[middle] = tissue[middle].astype(np.uint8)
    return picture


def tiff(picture: Picture, **how: Any) -> bytes:
    """A tiled TIFF with pixels of half a micrometre. how: further arguments of tifffile."""
    file = BytesIO()
    given = {"tile": (128, 128), "photometric": "rgb", "resolution": (20_000, 20_000)}
    tifffile.imwrite(file, picture, resolutionunit="CENTIMETER", **{**given, **how})
    return file.getvalue()


def instance(
    picture: Picture, tile: int = 128, *, sparse: bool = False, jpeg: bool = False, **changes: Any
) -> bytes:
    """A DICOM slide. sparse: without the tiles that are all glass."""
    rows, columns = picture.shape[:2]
    frames, places = [], []
    for top in range(0, rows, tile):
        for left in range(0, columns, tile):
            frame = np.full((tile, tile, 3), GLASS, np.uint8)
            part = picture[top : top + tile, left : left + tile]
            frame[: part.shape[0], : part.shape[1]] = part
            if not sparse or (part != GLASS).any():
                frames.append(frame)
                places.append((top, left))
    path = get_testdata_file("CT_small.dcm")
    assert isinstance(path, str)
    file = pydicom.dcmread(path)
    del file.DataSetTrailingPadding
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = UID(WHOLE_SLIDE)
    file.Modality, file.ImageType = "SM", ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    file.TotalPixelMatrixRows, file.TotalPixelMatrixColumns = rows, columns
    file.Rows = file.Columns = tile
    file.SamplesPerPixel, file.PhotometricInterpretation, file.PlanarConfiguration = 3, "RGB", 0
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 8, 8, 7, 0
    file.NumberOfFrames = len(frames)
    file.DimensionOrganizationType = "TILED_SPARSE" if sparse else "TILED_FULL"
    measures = Dataset()
    measures.PixelSpacing = [0.0005, 0.0005]
    shared = Dataset()
    shared.PixelMeasuresSequence = Items([measures])
    file.SharedFunctionalGroupsSequence = Items([shared])
    if sparse:
        file.PerFrameFunctionalGroupsSequence = Items([_placed(*place) for place in places])
    if jpeg:
        file.PhotometricInterpretation = "YBR_FULL_422"
        file.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        file.PixelData = encapsulate([bytes(imagecodecs.jpeg8_encode(one, 90)) for one in frames])
        file["PixelData"].VR = "OB"
    else:
        file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        file.PixelData = np.stack(frames).tobytes()
    for keyword, value in changes.items():
        setattr(file, keyword, value)
    written = BytesIO()
    file.save_as(written, enforce_file_format=True)
    return written.getvalue()


def _placed(top: int, left: int) -> Dataset:
    position = Dataset()
    position.RowPositionInTotalImagePixelMatrix = top + 1
    position.ColumnPositionInTotalImagePixelMatrix = left + 1
    group = Dataset()
    group.PlanePositionSlideSequence = Items([position])
    return group
