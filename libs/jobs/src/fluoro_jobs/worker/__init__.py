"""The worker runtime: what runs around a plain operation function."""
