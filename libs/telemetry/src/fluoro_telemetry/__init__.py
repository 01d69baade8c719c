"""Structured logs, Prometheus metrics and the health endpoint."""
