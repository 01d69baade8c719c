"""Sweeps the ledger and dispatches."""
