"""What is in no file of the repository.

The patterns are spelt so that they do not match themselves.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

FORBIDDEN = {
    "a host of a package registry": (
        r"pypi[.]org|pythonhosted[.]org|deb[.]debian[.]org|npmjs[.](org|com)|proxy[.]golang[.]org"
    ),
    "an index's address": (
        r"--(extra-)?index-ur[l]|--find-link[s]|\bindex[_-]ur[l]\s*=|\bregistr[y]\s*=\s*http"
    ),
    "a path of one machine": r"(?<![\w.$-])/(wor[k]/main|wor[k]/shared|roo[t]/|hom[e]/\w)",
}
LONGEST_FILE_LINES = 500
LONGEST_FUNCTION_LINES = 60


def texts(root: Path, tracked: list[Path]) -> Iterator[tuple[Path, str]]:
    for path in tracked:
        data = (root / path).read_bytes()
        if b"\0" not in data:
            yield path, data.decode()


def found(path: Path, text: str) -> list[str]:
    return [
        f"{path}: {what}: {match[0]}"
        for what, pattern in FORBIDDEN.items()
        for match in re.finditer(pattern, text)
    ]


def functions(
    root: Path, tracked: list[Path]
) -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in written_by_hand(tracked):
        for node in ast.walk(ast.parse((root / path).read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node


def written_by_hand(tracked: list[Path]) -> list[Path]:
    return [
        path
        for path in tracked
        if path.suffix == ".py" and not path.is_relative_to("libs/protos/src")
    ]


def test_no_file_names_a_registry_an_index_or_a_machine(root: Path, tracked: list[Path]) -> None:
    assert [line for path, text in texts(root, tracked) for line in found(path, text)] == []


def test_the_patterns_find_what_they_are_for() -> None:
    lines = (
        "https://files.python" + "hosted.org/x",
        "--index" + "-url x",
        "extra-index" + "_url = x",
        "see /wo" + "rk/main/x",
        "/hom" + "e/me",
    )
    assert [line for line in lines if not found(Path("planted"), line)] == []


def test_no_lock_file_with_addresses_is_tracked(root: Path, tracked: list[Path]) -> None:
    assert [
        path
        for path in tracked
        if path.name in {"uv.lock", "poetry.lock", "Pipfile.lock"}
        or (path.name == "package-lock.json" and '"resolved"' in (root / path).read_text())
    ] == []


def test_no_file_of_code_is_too_long_to_read(root: Path, tracked: list[Path]) -> None:
    lines = {
        str(path): len((root / path).read_text().splitlines()) for path in written_by_hand(tracked)
    }
    assert {path: count for path, count in lines.items() if count > LONGEST_FILE_LINES} == {}


def test_no_function_is_too_long_to_read(root: Path, tracked: list[Path]) -> None:
    lengths = {
        f"{path}:{function.name}": (function.end_lineno or 0) - function.lineno + 1
        for path, function in functions(root, tracked)
        if "versions" not in path.parts  # a migration is one list of statements, in order
    }
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FUNCTION_LINES} == {}


def sleeps(code: str) -> bool:
    """Whether code itself sleeps.

    The programs that tests run as children stand in strings and may.
    """
    return "sleep" in code and any(
        (isinstance(node, ast.Attribute) and ast.unparse(node) == "time.sleep")
        or (
            isinstance(node, ast.ImportFrom)
            and node.module == "time"
            and "sleep" in {name.name for name in node.names}
        )
        for node in ast.walk(ast.parse(code))
    )


def test_no_test_sleeps(root: Path, tracked: list[Path]) -> None:
    tests = [path for path in written_by_hand(tracked) if "tests" in path.parts]
    assert [path for path in tests if sleeps((root / path).read_text())] == []


def test_a_sleep_is_found() -> None:
    assert sleeps("import time\ntime.sleep(1)")
    assert sleeps("from time import sleep\nsleep(1)")
    assert not sleeps("child = 'time.sleep(1)'")
