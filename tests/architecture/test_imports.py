import shutil
import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest

LINT_IMPORTS = Path(sysconfig.get_path("scripts")) / "lint-imports"

VIOLATIONS = {
    "a service imports another service": ("gateway", "dicom_worker"),
    "the client imports a service": ("fluoro_client", "gateway"),
    "a library imports a service": ("fluoro_jobs", "scheduler"),
    "a lower library imports a higher one": ("fluoro_blobs", "fluoro_jobs"),
    "the generated code imports ours": ("fluoro", "fluoro_telemetry"),
    "the gateway imports an array library": ("gateway", "numpy"),
    "the scheduler imports a model runtime": ("scheduler", "onnxruntime"),
    "a worker imports SQL": ("export_worker", "sqlalchemy"),
    "a service imports Celery": ("scheduler", "celery"),
    "the worker's runtime imports Celery": ("fluoro_jobs.worker", "celery"),
    "the ledger imports Celery's transport": ("fluoro_jobs.ledger", "kombu"),
    "dispatch looks behind Celery's door": ("fluoro_jobs", "fluoro_jobs.celery.messages"),
    "a service looks behind Celery's door": ("scheduler", "fluoro_jobs.celery.tasks"),
    "what is around Celery imports the runtime": ("fluoro_jobs.celery", "fluoro_jobs.worker.body"),
    "a worker imports the object store's library": ("ml_worker", "obstore"),
}


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LINT_IMPORTS, "--no-cache", "--no-logo"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def copy(root: Path, packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages side by side with the rules, so that the copies are what gets imported."""
    folder = tmp_path_factory.mktemp("tree")
    shutil.copy(root / "pyproject.toml", folder)
    for name, source in packages.items():
        shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_every_package_keeps_the_import_rules(root: Path) -> None:
    result = lint(root)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(("importer", "imported"), VIOLATIONS.values(), ids=VIOLATIONS.keys())
def test_a_planted_import_is_found(copy: Path, importer: str, imported: str) -> None:
    planted = copy / importer.replace(".", "/") / "planted.py"
    planted.write_text(f"import {imported}\n")
    try:
        result = lint(copy)
    finally:
        planted.unlink()
    assert result.returncode == 1
    assert f"{importer}.planted -> {imported} (l.1)" in result.stdout


def test_the_rules_cover_every_package(root: Path, packages: dict[str, Path]) -> None:
    rules = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]
    assert set(rules["root_packages"]) == set(packages)
