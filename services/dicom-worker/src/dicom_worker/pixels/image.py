"""What the header says about the pixel data (Image Pixel Module, PS3.3 C.7.6.3)."""

from dataclasses import dataclass
from typing import Final

from fluoro_jobs.errors import FluoroError, Reason
from pydicom.dataset import Dataset

from dicom_worker.attributes import number, text
from dicom_worker.structure import Element, truncated

KEYWORDS: Final = {
    0x7FE00008: "FloatPixelData",
    0x7FE00009: "DoubleFloatPixelData",
    0x7FE00010: "PixelData",
}
MAX_UINT16: Final = 2**16 - 1
MAX_INT32: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Image:
    """The pixel data's geometry and encoding; field names are those of the Image Pixel Module.

    keyword: of the element that holds the pixels. bits_stored, high_bit: 32 or 64 and one less for
    float pixel data. signed: Pixel Representation is 1. photometric: Photometric Interpretation, ""
    if absent.
    """

    keyword: str
    rows: int
    columns: int
    frames: int
    samples: int
    photometric: str
    planar: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool

    @property
    def is_float(self) -> bool:
        """Whether the stored values are floating point."""
        return self.keyword != "PixelData"

    @property
    def frame_bits(self) -> int:
        """Bits of one native frame, without padding.

        YBR_FULL_422 shares its chroma between two pixels (PS3.3 C.7.6.3.1.2).
        """
        bits = self.rows * self.columns * self.samples * self.bits_allocated
        return bits * 2 // 3 if self.photometric == "YBR_FULL_422" else bits

    @property
    def native_bytes(self) -> int:
        """Bytes of all native frames, without the padding to an even length.

        Frames of 1 bit follow each other within a byte.
        """
        return (self.frame_bits * self.frames + 7) // 8

    @property
    def decoded_frame_bytes(self) -> int:
        """Bytes of one decoded frame."""
        return self.rows * self.columns * self.samples * max(1, self.bits_allocated // 8)

    @property
    def channels(self) -> int:
        """Values of a pixel in the array."""
        return 3 if self.photometric == "PALETTE COLOR" else self.samples

    def array_pixel_bytes(self, palette_bits: int) -> int:
        """The most that a pixel takes in the array. palette_bits: of a colour in the palette."""
        if self.photometric == "PALETTE COLOR":
            return 3 * -(-palette_bits // 8)
        # A rescale may turn any grey value into a 32-bit float.
        return max(4, self.samples * -(-self.bits_allocated // 8))

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns), and samples when there is more than one."""
        return (
            (self.rows, self.columns)
            if self.samples == 1
            else (self.rows, self.columns, self.samples)
        )

    @property
    def planes(self) -> tuple[int, ...]:
        """(samples, rows, columns), the order of Planar Configuration 1."""
        return self.samples, self.rows, self.columns


def image_of(header: Dataset, pixels: Element) -> Image:
    """What the header says about `pixels`.

    FluoroError: DICOM_INVALID if it contradicts itself, DICOM_TRUNCATED if native pixels are
    missing.
    """
    keyword = KEYWORDS[pixels.tag]
    allocated = number(header, "BitsAllocated", 1, 64)
    is_float = keyword != "PixelData"
    stored = allocated if is_float else number(header, "BitsStored", 1, allocated)
    samples = number(header, "SamplesPerPixel", 1, MAX_UINT16, default=1)
    image = Image(
        keyword=keyword,
        rows=number(header, "Rows", 1, MAX_UINT16),
        columns=number(header, "Columns", 1, MAX_UINT16),
        frames=number(header, "NumberOfFrames", 1, MAX_INT32, default=1),
        samples=samples,
        photometric=text(header, "PhotometricInterpretation"),
        # Planar Configuration has no meaning for one sample (PS3.3 C.7.6.3.1.3), and some writers
        # put anything there.
        planar=number(header, "PlanarConfiguration", 0, 1, default=0) if samples > 1 else 0,
        bits_allocated=allocated,
        bits_stored=stored,
        # A High Bit under Bits Stored - 1 would put the lowest bits outside the cell (PS3.5 8.1.1).
        high_bit=stored - 1
        if is_float
        else number(header, "HighBit", stored - 1, allocated - 1, default=stored - 1),
        signed=not is_float and number(header, "PixelRepresentation", 0, 1, default=0) == 1,
    )
    if allocated != 1 and allocated % 8:
        raise FluoroError(
            Reason.DICOM_INVALID, "Bits Allocated is neither 1 nor a multiple of 8 (PS3.5 8.1.1)."
        )
    # Decoders would fill up what is missing, and a picture that was cut off would look whole.
    if pixels.length is not None and pixels.length < image.native_bytes:
        raise truncated()
    return image
