from pathlib import Path

import pytest

GENERATED = {"fluoro", "buf", "open_inference"}


def test_every_package_tells_type_checkers_that_it_is_typed(packages: dict[str, Path]) -> None:
    assert {
        name for name, folder in packages.items() if not (folder / "py.typed").is_file()
    } == set()


def test_every_folder_with_code_is_a_package(packages: dict[str, Path]) -> None:
    folders = {module.parent for folder in packages.values() for module in folder.rglob("*.py")}
    importable = {
        folder for folder in folders if folder.name.isidentifier()
    }  # models/name/1.0.0 holds data and how it was made
    assert {str(folder) for folder in importable if not (folder / "__init__.py").is_file()} == set()


def test_every_package_says_what_it_is(packages: dict[str, Path]) -> None:
    written = [
        module
        for name, folder in packages.items()
        if name not in GENERATED
        for module in folder.rglob("__init__.py")
    ]
    assert {str(module) for module in written if not module.read_text().startswith('"""')} == set()


def test_no_package_has_a_drawer_for_everything(packages: dict[str, Path]) -> None:
    drawers = {"common", "core", "helpers", "misc", "shared", "util", "utils"}
    assert {
        str(path)
        for folder in packages.values()
        for path in folder.rglob("*")
        if path.stem in drawers
    } == set()


@pytest.mark.parametrize("kind", ["libs", "services"])
def test_a_folder_has_the_name_of_its_distribution_and_import_package(
    root: Path, kind: str
) -> None:
    for project in sorted((root / kind).iterdir()):
        if (project / "pyproject.toml").is_file():
            package = (
                project.name.replace("-", "_") if kind == "services" else f"fluoro_{project.name}"
            )
            expected = GENERATED if project.name == "protos" else {package}
            assert {
                folder.name for folder in (project / "src").iterdir() if folder.is_dir()
            } == expected
