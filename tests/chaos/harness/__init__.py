"""Plays seeded faults against a whole Fluoro and keeps what its clients saw.

`run.py` and `audit.py` are the programs.
"""
