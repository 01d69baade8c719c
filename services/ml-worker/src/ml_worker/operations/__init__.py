"""The operations of queue `ml`."""

from typing import Final

from ml_worker.operations.analyze import analyze_images

HANDLERS: Final = (analyze_images,)
"""What the worker runs."""
