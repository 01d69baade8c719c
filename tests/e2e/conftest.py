"""Whole Fluoros, as people run them: real processes, asked through the doors everybody uses."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fluoro_local.services import SERVICES
from fluoro_local.testing import RunningFluoro, running
from pydicom.data import get_testdata_file


@pytest.fixture(scope="session")
def fluoro() -> Iterator[RunningFluoro]:
    """One whole Fluoro for all tests that leave it as it was."""
    with running(SERVICES) as fluoro:
        yield fluoro


@pytest.fixture(scope="module")
def core() -> Iterator[RunningFluoro]:
    """Gateway, one worker and scheduler, for tests that take their servers away."""
    with running(
        [
            service
            for service in SERVICES
            if service.name in {"gateway", "dicom-worker", "scheduler"}
        ]
    ) as fluoro:
        yield fluoro


@pytest.fixture(scope="session")
def ct() -> Path:
    """A CT slice, which the model is made for."""
    return Path(str(get_testdata_file("CT_small.dcm")))


@pytest.fixture(scope="session")
def mr() -> Path:
    """An MR slice, which it is not made for."""
    return Path(str(get_testdata_file("MR_small.dcm")))
