"""Whole slides: cut into tiles, of which those with tissue are certified."""
