"""The operations and DCMTK, ready to run."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from dicom_worker.operations.convert import convert_dicom
from dicom_worker.operations.inspect import inspect_dicom
from dicom_worker.operations.render import render_dicom
from dicom_worker.testing import Convert, Dcmtk, Inspect, Render
from fluoro.v1 import dicom_pb2
from fluoro.v1.convert_pb2 import ConvertDicom, ConvertDicomResult
from fluoro.v1.dicom_pb2 import VoiWindow
from fluoro_jobs.testing import Attempt, step_context


@pytest.fixture
def inspect(tmp_path: Path) -> Inspect:
    def run(*inputs: bytes | Path) -> tuple[dicom_pb2.InspectDicomResult, Attempt]:
        attempt = step_context(tmp_path, inputs)
        return inspect_dicom(dicom_pb2.InspectDicom(), attempt.context), attempt

    return run


@pytest.fixture
def render(tmp_path: Path) -> Render:
    def run(
        *inputs: bytes | Path, window: Sequence[Any] = (), **options: Any
    ) -> tuple[dicom_pb2.RenderDicomResult, Attempt]:
        attempt = step_context(tmp_path, inputs)
        request = dicom_pb2.RenderDicom(**options)
        if window:
            center, width, *function = window
            request.window.center, request.window.width = center, width
            for name in function:
                request.window.function = VoiWindow.Function.Value(f"FUNCTION_{name}")
        return render_dicom(request, attempt.context), attempt

    return run


@pytest.fixture
def convert(tmp_path: Path) -> Convert:
    def run(
        *inputs: bytes | Path, group: bool = True, **target: Any
    ) -> tuple[ConvertDicomResult, Attempt]:
        attempt = step_context(tmp_path, inputs, group=group)
        return convert_dicom(ConvertDicom(**target or {"nifti": {}}), attempt.context), attempt

    return run


@pytest.fixture
def dcmtk(tmp_path: Path) -> Dcmtk:
    """An independent opinion. Skips on a laptop without it, fails in CI."""

    def run(*command: str | Path) -> Path:
        if not shutil.which(command[0]):
            assert "CI" not in os.environ, f"CI must have {command[0]}"
            pytest.skip(f"{command[0]} is not installed")
        target = tmp_path / "by-dcmtk"
        subprocess.run([*command, target], check=True, capture_output=True)
        return target

    return run
