"""Blames the file when pydicom or a codec fails on it, and says nothing of what it holds."""

from fluoro_jobs.blame import blame_file, silence

__all__ = ["blame_file"]

# Their warnings quote values of the file, and the log may hold no patient data.
silence("pydicom", "pylibjpeg", "openjpeg", "rle")
