"""A model of the ledger, and a machine that does the same to both, in any order, and compares.

Needs hypothesis.

`job.py` says what a job is, `moves.py` what can happen, `picture.py` what must hold; `machine.py`
brings them together.
"""
