"""How much one file may ask of this worker.

Each limit is compared with what the file's header claims, before anything is allocated. A file over
a limit fails with IMAGE_TOO_LARGE; the other inputs of its job go on.
"""

from typing import Final

MIB: Final = 1024 * 1024

FRAME_LIMIT_BYTES: Final = 128 * MIB
"""One frame of stored values, and one frame's code stream.

Rendering needs about ten times as much memory. The largest radiographs have some 30 million pixels
of 2 bytes.
"""

PHOTOGRAPH_LIMIT_BYTES: Final = 160 * MIB
"""One decoded picture of a photograph: 55 million pixels of 3 bytes.

Decoding takes some six times as much memory. Telephones make 50 million pixels.
"""

PHOTOGRAPH_FILE_LIMIT_BYTES: Final = 256 * MIB
"""A photograph's file. It is read into memory."""

PHOTOGRAPH_FRAME_LIMIT: Final = 500
"""Pictures in one file, an animation's or a TIFF's pages."""

ARRAY_LIMIT_BYTES: Final = 2048 * MIB
"""The pixel array of one instance, all frames, at 4 bytes per grey value.

It is on disk only: frames pass through memory one by one.
"""

TILES_LIMIT_BYTES: Final = 1024 * MIB
"""The tiles of one task's contact sheets (on disk)."""

SLIDE_SIDE: Final = 500_000
"""Rows or columns of a slide. The largest scanners make some 200,000."""

SLIDE_TILES: Final = 250_000
"""Tiles, or strips, of one level of a slide, as they lie in the file."""

SLIDE_TILE_LIMIT_BYTES: Final = 64 * MIB
"""One of them decoded, and its code stream."""

SLIDE_BAND_LIMIT_BYTES: Final = 192 * MIB
"""A row of them decoded. Tiling takes some three times as much memory."""

FRAME_LIMIT: Final = 100_000
"""Frames of one instance.

However small, each takes time and a certificate of its own.
"""

SLICE_LIMIT: Final = 32_767
"""Slices in one item of ConvertDicom.

NIfTI-1 has 15 bits for each dimension; each takes some 2 KiB of memory while they are sorted.
"""

ITEM_LIMIT_BYTES: Final = 8192 * MIB
"""The files of one item of ConvertDicom (on disk, all at once)."""

SERIES_LIMIT_BYTES: Final = 8192 * MIB
"""The arrays of all volumes of one series, at 4 bytes per value (on disk)."""

INFLATED_LIMIT_BYTES: Final = 1024 * MIB
"""The data set of one deflated instance once inflated (on disk).

zlib reaches 1:1000: 1 MiB can ask for 1 GiB.
"""

HEADER_LIMIT_BYTES: Final = 64 * MIB
"""Everything before the pixel data, without large binary values.

Parsed, it takes some ten times as much memory.
"""

ELEMENT_LIMIT: Final = 400_000
"""Data elements, items and fragments in one instance.

pydicom's data set and its JSON take some 0.8 KB each: 320 MB. An enhanced MR of 5,000 frames has
300,000.
"""

DEPTH_LIMIT: Final = 64
"""Sequences within each other.

The standard has no limit; the deepest templates of structured reports need about 20.
"""

DEFER_LIMIT_BYTES: Final = 64 * 1024
"""Values longer than this stay on disk until they are asked for."""

INLINE_BINARY_LIMIT_BYTES: Final = 1024
"""Binary values longer than this are bulk data: they are left out of the metadata."""

DECODER_MEMORY_LIMIT_BYTES: Final = 4096 * MIB
"""Address space of the process that runs the codecs.

OpenJPEG takes 4 bytes per sample and copies.
"""

DECODER_TIME_LIMIT_SECONDS: Final = 120
"""Time for one frame.

The slowest codec, JPEG 2000, takes about 10 seconds for a frame at `FRAME_LIMIT_BYTES`.
"""

J2K_TILE_LIMIT: Final = 65535
"""Tiles in one JPEG 2000 code stream (ISO/IEC 15444-1 A.4.2: Isot has 16 bits).

OpenJPEG allocates per tile what the header claims.
"""
