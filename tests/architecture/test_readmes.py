"""A README that lists the files of its folder lists each of them, once."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TABLE = re.compile(r"^\| (?:file|folder) \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", re.MULTILINE)
FIRST_CELL = re.compile(r"^\| ([^|]*) \|", re.MULTILINE)
CODE = re.compile(r"`([^`]+)`")
UNSAID = {"__init__.py", "py.typed", "conftest.py", "README.md"}
"""Files whose names say everything."""


def listed(readme: str) -> list[str]:
    """Files, and folders with a slash, in the first column of the tables of files and folders."""
    return [
        name
        for rows in TABLE.findall(readme)
        for cell in FIRST_CELL.findall(rows)
        for name in CODE.findall(cell)
    ]


def folder_of(readme: Path) -> Path:
    """The folder that names in its tables are relative to.

    The import package beside a README, or else the README's own folder.
    """
    return next(
        (folder.parent for folder in (readme.parent / "src").glob("*/__init__.py")), readme.parent
    )


def mistakes(names: list[str], files: list[str]) -> Iterator[str]:
    """What is wrong with a list of names, for these files.

    A folder stands for all that is in it.
    """
    yield from (
        f"{name} does not exist" for name in names if not any(is_at(file, name) for file in files)
    )
    for file in files:
        times = sum(is_at(file, name) for name in names)
        if times != 1:
            yield f"{file} is listed {times} times"


def is_at(file: str, name: str) -> bool:
    return file == name or (name.endswith("/") and file.startswith(name))


def contents(folder: Path, tracked: list[Path]) -> list[str]:
    """Files that a table has to list."""
    inside = [path.relative_to(folder) for path in tracked if path.is_relative_to(folder)]
    return [
        path.as_posix()
        for path in inside
        if path.name not in UNSAID and not path.name.startswith("test_")
    ]


@pytest.fixture(scope="session")
def tables(root: Path, tracked: list[Path]) -> dict[Path, list[str]]:
    """What each README lists, if it lists anything."""
    found = {
        path: listed((root / path).read_text()) for path in tracked if path.name == "README.md"
    }
    return {path: names for path, names in found.items() if names}


def test_a_readme_lists_each_file_of_its_folder_once(
    root: Path, tracked: list[Path], tables: dict[Path, list[str]]
) -> None:
    found = {
        path: list(mistakes(names, contents(folder_of(root / path).relative_to(root), tracked)))
        for path, names in tables.items()
    }
    assert {str(path): wrong for path, wrong in found.items() if wrong} == {}


def test_every_service_and_the_library_below_them_have_a_readme_that_lists_files(
    root: Path, tables: dict[Path, list[str]]
) -> None:
    projects = [
        *root.glob("services/*/pyproject.toml"),
        root / "libs/jobs/pyproject.toml",
        root / "deploy/local/pyproject.toml",
    ]
    assert {path.parent.relative_to(root) for path in projects} - {
        path.parent for path in tables
    } == set()


def test_files_that_are_left_out_repeated_or_gone_are_found() -> None:
    first = "| file | what |\n|---|---|\n| `a.py` → `gone.py` | one, `b.py` not |\n| `c/` | all |\n"
    readme = (
        f"{first}\n| file | what |\n|---|---|\n| `c/d.py` | it |\n\n| other |\n|---|\n| `e.py` |\n"
    )
    assert listed(readme) == ["a.py", "gone.py", "c/", "c/d.py"]
    assert list(mistakes(listed(readme), ["a.py", "b.py", "c/d.py", "c/e.py"])) == [
        "gone.py does not exist",
        "b.py is listed 0 times",
        "c/d.py is listed 2 times",
    ]
