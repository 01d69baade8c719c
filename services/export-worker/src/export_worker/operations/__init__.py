"""The operations of queue `export`: every function with `@handles` in a module of this package."""

from typing import Final

from fluoro_jobs.worker.handler import handlers_in

HANDLERS: Final = handlers_in(__name__, __path__)
"""What the worker runs."""
