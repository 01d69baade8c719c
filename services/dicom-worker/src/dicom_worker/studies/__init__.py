"""Studies: which slices lie where, and which of them make a volume."""
