"""The operations this worker runs, one file each."""

from typing import Final

from export_worker.operations.report import export_report

HANDLERS: Final = (export_report,)
