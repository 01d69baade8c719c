"""What runs on one machine besides the two servers: declared here once."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

GRPC_PORT: Final = 50051
"""The gateway's usual port."""
FIRST_HTTP_PORT: Final = 9101
"""Health and metrics of the first service; the others follow in the order of SERVICES."""


@dataclass(frozen=True, slots=True)
class Service:
    """One service process.

    name: of its folder and its log.
    command: an absolute path and arguments.
    grpc: whether it is the gateway, and gets FLUORO_GRPC_PORT.
    """

    name: str
    command: Sequence[str]
    grpc: bool = False


SERVICES: Final = (
    Service("gateway", (sys.executable, "-m", "gateway"), grpc=True),
    Service("dicom-worker", (sys.executable, "-m", "dicom_worker")),
    Service("ml-worker", (sys.executable, "-m", "ml_worker")),
    Service("export-worker", (sys.executable, "-m", "export_worker")),
    Service("scheduler", (sys.executable, "-m", "scheduler")),
)
"""Every service, in the order they start."""
