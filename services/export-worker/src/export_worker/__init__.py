"""CPU worker: reports as PDF and JSON."""
