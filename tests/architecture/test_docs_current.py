"""The documentation says what the tree has: generated tables, links, named files."""

import ast
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from buf.validate import validate_pb2
from google.protobuf.descriptor_pb2 import FieldDescriptorProto

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
OUTSIDE = re.compile(r"[a-z]+:")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
CODE_BLOCK = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
FILE = re.compile(
    r"[\w./-]+/|[\w./-]+\.(py|proto|md|toml|yaml|txt|in|onnx|typ|sh)|Makefile|LICENSE"
)
"""A folder with its slash, or a file: alone in backticks, both are a promise that it exists."""
TEST = re.compile(r"test_\w+")
INVARIANT = re.compile(r"^\| (I\d+) \| (.+) \|$", re.MULTILINE)
"""The row that states an invariant: its number; the rest, with the tests."""
CITED = re.compile(r"\bI\d+\b")
DIFF = re.compile(r"^```diff\n\+\+\+ (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMING = ("architecture.md", "reliability.md")
"""Pages that name files of the whole tree."""
GENERATED = (
    "conformance.md",
    "errors.md",
    "metrics.md",
    "rendering.md",
    "settings.md",
    "steps.md",
)
MOST_FILES = 7
"""Files that adding an operation may touch, of those that people write."""
EXAMPLE = ("UnpackArchive", "unpack_archive", "archive.unpack")
"""What the operation is called that the page about operations adds."""


def markdown(tracked: list[Path]) -> list[Path]:
    return [path for path in tracked if path.suffix == ".md"]


def anchors(text: str) -> set[str]:
    """Of the headings, spelt as repository hosts do."""
    return {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        for title in HEADING.findall(CODE_BLOCK.sub("", text))
    }


def broken(page: Path) -> Iterator[str]:
    """Links of a page that lead nowhere. Those that leave the repository are not followed."""
    text = page.read_text()
    for link in LINK.findall(CODE_BLOCK.sub("", text)):
        if OUTSIDE.match(link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            yield f"{page}: {link}"


def missing(page: Path, tracked: list[Path]) -> list[str]:
    """Files and folders in backticks that are in the tree neither by path nor by its end."""
    known = {
        "/".join(parts)
        for path in tracked
        for end in range(1, len(path.parts) + 1)
        for parts in tails(path.parts[:end])
    }
    named = [
        code for code in CODE.findall(CODE_BLOCK.sub("", page.read_text())) if FILE.fullmatch(code)
    ]
    return [code for code in named if code.rstrip("/") not in known]


def tails(parts: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    return (parts[start:] for start in range(len(parts)))


@pytest.mark.parametrize("name", GENERATED)
def test_a_table_in_the_documentation_is_what_the_code_gives(root: Path, name: str) -> None:
    documents = runpy.run_path(str(root / "docs/tables.py"))["documents"]()
    assert sorted(path.name for path in documents) == sorted(GENERATED)
    assert (root / "docs" / name).read_text() == documents[root / "docs" / name], "run `make docs`"


@pytest.fixture(scope="module")
def reference(root: Path) -> dict[str, Any]:
    """What makes the reference of the API."""
    return runpy.run_path(str(root / "docs/api.py"))


def test_the_reference_of_the_api_is_what_the_protos_give(
    root: Path, reference: dict[str, Any]
) -> None:
    pages = {path: path.read_text() for path in (root / "docs/api").glob("*.md")}
    assert pages == reference["documents"](), "run `make docs`"


def test_a_rule_that_the_reference_has_no_words_for_is_refused(reference: dict[str, Any]) -> None:
    field = FieldDescriptorProto()
    field.options.Extensions[validate_pb2.field].double.finite = True
    assert list(reference["rules_of"](field)) == ["finite"]
    field.options.Extensions[validate_pb2.field].string.ipv4 = True
    with pytest.raises(LookupError, match=r"StringRules\.ipv4: add some"):
        list(reference["rules_of"](field))


def test_every_relative_link_in_the_documentation_leads_somewhere(
    root: Path, tracked: list[Path]
) -> None:
    assert [link for path in markdown(tracked) for link in broken(root / path)] == []


@pytest.mark.parametrize("page", NAMING)
def test_every_file_that_a_page_about_the_whole_names_exists(
    root: Path, tracked: list[Path], page: str
) -> None:
    assert missing(root / "docs" / page, tracked) == []


def names_of_tests(text: str) -> list[str]:
    return [code for code in CODE.findall(text) if TEST.fullmatch(code)]


def test_every_test_that_the_documentation_names_exists(root: Path, tracked: list[Path]) -> None:
    code = "".join(
        (root / path).read_text()
        for path in tracked
        if path.name.startswith("test_") and path.suffix == ".py"
    )
    named = [
        (str(path), name)
        for path in markdown(tracked)
        for name in names_of_tests((root / path).read_text())
    ]
    assert named
    assert [(page, name) for page, name in named if f"def {name}(" not in code] == []


def untested(rows: list[tuple[str, str]]) -> list[str]:
    return [number for number, row in rows if not names_of_tests(row)]


def test_one_table_states_the_invariants_each_with_its_tests(
    root: Path, tracked: list[Path]
) -> None:
    rows = {path: INVARIANT.findall((root / path).read_text()) for path in markdown(tracked)}
    tables = [table for table in rows.values() if table]
    assert len(tables) == 1
    assert [number for number, _ in tables[0]] == [
        f"I{number}" for number in range(1, len(tables[0]) + 1)
    ]
    assert untested(tables[0]) == []


def test_every_invariant_that_code_or_documentation_names_is_stated(
    root: Path, tracked: list[Path]
) -> None:
    stated = {number for number, _ in INVARIANT.findall((root / "docs/reliability.md").read_text())}
    texts = {path: (root / path).read_text() for path in tracked if path.suffix in {".py", ".md"}}
    named = {str(path): set(CITED.findall(text)) for path, text in texts.items()}
    assert any(named.values())
    assert {path: numbers - stated for path, numbers in named.items() if numbers - stated} == {}


def test_the_architecture_page_says_what_every_setting_of_celery_is_for(root: Path) -> None:
    tree = ast.parse((root / "libs/jobs/src/fluoro_jobs/celery/configuration.py").read_text())
    updates = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "app.conf.update"
    ]
    settings = {
        keyword.arg
        for call in updates
        for keyword in call.keywords
        if keyword.arg != "broker_transport_options"
    }
    options = {
        key
        for call in updates
        for keyword in call.keywords
        if isinstance(keyword.value, ast.Dict)
        for key in keys(keyword.value)
    }
    named = {
        code.split("=")[0] for code in CODE.findall((root / "docs/architecture.md").read_text())
    }
    assert options
    assert (settings | options) - named == set()


def keys(table: ast.Dict) -> set[str]:
    return {str(key.value) for key in table.keys if isinstance(key, ast.Constant)}


def test_the_lines_that_the_page_about_operations_adds_are_in_the_tree(root: Path) -> None:
    diffs = DIFF.findall((root / "docs/add-an-operation.md").read_text())
    assert diffs
    for file, diff in diffs:
        lines = (root / file).read_text().splitlines()
        assert [line for line in diff.splitlines() if line[1:] not in lines] == [], file


def test_the_page_about_operations_counts_the_files_that_it_adds_lines_to(root: Path) -> None:
    page = (root / "docs/add-an-operation.md").read_text()
    added = {file for file, diff in DIFF.findall(page) if diff.startswith("+")}
    assert f"**{len(added)} files**" in page
    assert len(added) <= MOST_FILES


def test_no_other_file_knows_the_operation_that_the_page_about_operations_adds(
    root: Path, tracked: list[Path]
) -> None:
    page = (root / "docs/add-an-operation.md").read_text()
    added = {file for file, _ in DIFF.findall(page)}
    of_tools = {f"docs/{name}" for name in GENERATED}
    # The page itself, decisions, and tests, tools and pipelines that show the operation at work.
    about = (
        *("docs/add-an-operation.md", "docs/adr/", "tests/", "libs/protos/src/", "docs/api/"),
        "libs/jobs/src/fluoro_jobs/pipelines/shipped/",
        "clients/python/src/fluoro_client/testing/pipelines.py",
        "services/dicom-worker/tests/test_bombs.py",
    )
    others = [
        path
        for path in tracked
        if str(path) not in added | of_tools and not str(path).startswith(about)
    ]
    assert [
        str(path)
        for path in others
        if path.suffix in {".py", ".md", ".proto", ".toml", ".yaml"}
        and any(name in (root / path).read_text() for name in EXAMPLE)
    ] == []


def test_the_operation_that_the_readme_shows_is_in_the_tree(root: Path) -> None:
    code = (root / "services/dicom-worker/src/dicom_worker/operations/inspect.py").read_text()
    shown = [
        block for block in PYTHON.findall((root / "README.md").read_text()) if "@handles" in block
    ]
    assert [block in code for block in shown] == [True]


def test_every_decision_says_how_a_change_would_violate_it(root: Path, tracked: list[Path]) -> None:
    decisions = [
        path
        for path in markdown(tracked)
        if path.is_relative_to("docs/adr") and path.name[:4].isdecimal()
    ]
    numbers = [path.name[:4] for path in decisions]
    assert numbers == sorted(set(numbers)), "two decisions have one number"
    wanted = {"context", "decision", "consequences", "a-change-violates-this-when"}
    assert [
        str(path) for path in decisions if not wanted <= anchors((root / path).read_text())
    ] == []


def test_every_decision_is_in_the_list_of_decisions(root: Path, tracked: list[Path]) -> None:
    decisions = {
        path.name
        for path in markdown(tracked)
        if path.is_relative_to("docs/adr") and path.name[:4].isdecimal()
    }
    assert set(LINK.findall((root / "docs/adr/README.md").read_text())) >= decisions


def test_a_dead_link_and_a_missing_file_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One heading\n[a](gone.md) [b](#one-heading) [c](#two) [d](https://example.org)\n"
        "`a/b.py` `b.py` `x/b.py` `gone/`\n"
    )
    assert list(broken(page)) == [f"{page}: gone.md", f"{page}: #two"]
    assert missing(page, [Path("a/b.py")]) == ["x/b.py", "gone/"]


def test_an_invariant_without_a_test_is_found() -> None:
    assert untested(
        INVARIANT.findall("| I1 | Holds. | `test_it` |\n| I2 | Holds too. | see I1 |\n")
    ) == ["I2"]
