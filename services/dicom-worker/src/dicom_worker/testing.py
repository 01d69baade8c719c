"""For tests of this worker: the DICOM files in pydicom's wheel, edits, and what an attempt left."""

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pydicom.data
from fluoro.v1 import convert_pb2, dicom_pb2, job_pb2
from fluoro_jobs.testing import Attempt
from fluoro_jobs.worker.handler import Handler
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset

WHEEL: Final = Path(pydicom.data.__file__).parent
"""The folder with pydicom's test data."""

Inspect = Callable[..., tuple[dicom_pb2.InspectDicomResult, Attempt]]
"""Runs InspectDicom on inputs, bytes or paths."""
Render = Callable[..., tuple[dicom_pb2.RenderDicomResult, Attempt]]
"""Runs RenderDicom on inputs, bytes or paths; `window=(center, width)`, with a function's
name after them or not, and other fields of the request by keyword."""
Convert = Callable[..., tuple[convert_pb2.ConvertDicomResult, Attempt]]
"""Runs ConvertDicom on inputs, bytes or paths, as one item unless `group=False`; the target by
keyword, NIfTI without one."""
Dcmtk = Callable[..., Path]
"""Runs a DCMTK tool with these arguments and a path to write to, which it returns."""


def wheel_file(name: str) -> Path:
    """The test file `name`.dcm."""
    return WHEEL / "test_files" / f"{name}.dcm"


def saved(dataset: Dataset) -> bytes:
    """The data set as a Part 10 file."""
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def edited(name: str, **changes: Any) -> bytes:
    """The test file `name` with some attributes changed; None removes one."""
    dataset = pydicom.dcmread(wheel_file(name))
    for keyword, value in changes.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return saved(dataset)


def outcome(attempt: Attempt, number: int = 0) -> str:
    """State and reason of an item: `SUCCEEDED`, `FAILED NOT_DICOM`."""
    item = attempt.context.items[number]
    state = job_pb2.Item.State.Name(item.state).removeprefix("STATE_")
    return f"{state} {item.reason}".strip()


def array_of(attempt: Attempt, number: int = 0) -> NDArray[Any]:
    """The pixel array of an input."""
    array: NDArray[Any] = np.load(
        io.BytesIO(attempt.read(f"pixels-{number:04}.npy")), allow_pickle=False
    )
    return array


def preview_of(attempt: Attempt, number: int = 0) -> NDArray[np.uint8]:
    """The pixels of an input's preview."""
    return np.asarray(Image.open(io.BytesIO(attempt.read(f"preview-{number:04}.png"))))


MEASURE: Final = """
import importlib, resource, sys
from pathlib import Path
from fluoro_jobs.testing import operate

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

module, name, messages, message, *paths = sys.argv[1:]
operation = getattr(importlib.import_module(module), name)
request = getattr(importlib.import_module(messages), message)()
good, bomb, folder = map(Path, paths)
operate(operation, request, folder, [good])
before = peak()
_, attempt = operate(operation, request, folder, [bomb])
print(attempt.context.items[0].reason, peak() - before)
"""
"""Runs an operation on a good file, then on a bomb."""


def added_to_peak(
    operation: Handler[Any, Any], request: type[Any], good: Path, bomb: Path, folder: Path
) -> tuple[str, int]:
    """The reason of a bomb's item, and what it adds to a process's peak of memory, in bytes."""
    names = [operation.function.__module__, operation.function.__name__]
    names += [request.__module__, request.__name__]
    command = [sys.executable, "-c", MEASURE, *names, str(good), str(bomb), str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    reason, _, extra = done.stdout.strip().rpartition(" ")
    return reason, int(extra)
