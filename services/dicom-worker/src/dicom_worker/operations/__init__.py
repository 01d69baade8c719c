"""The operations this worker runs."""

from typing import Final

from dicom_worker.operations.inspect import inspect_dicom
from dicom_worker.operations.render import render_dicom

HANDLERS: Final = (inspect_dicom, render_dicom)
