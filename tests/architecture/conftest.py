import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def tracked() -> list[Path]:
    """Every file in the repository that still exists, relative to its root."""
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    return [Path(name) for name in names.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="session")
def packages() -> dict[str, Path]:
    """The import packages of the repository: name and folder."""
    return {
        project.name: project
        for parent in sorted(ROOT.glob("*/*/src"))
        for project in sorted(parent.iterdir())
        if project.is_dir()
    }
