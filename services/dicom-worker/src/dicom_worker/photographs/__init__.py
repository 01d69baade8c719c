"""Photographs: JPEG, PNG, WebP, TIFF and HEIC as certified arrays, without metadata."""
