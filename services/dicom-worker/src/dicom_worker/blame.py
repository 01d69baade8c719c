"""Blames the file when pydicom or a codec fails on it, and says nothing of what it holds."""

from fluoro_jobs.blame import blame_file, silence

__all__ = ["blame_file"]

silence("pydicom", "pylibjpeg", "openjpeg", "rle")
