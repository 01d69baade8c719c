import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

BUF = Path(sysconfig.get_path("scripts")) / "buf"
PLANTED = """syntax = "proto3";

package fluoro.v1;

// A planted message.
message Planted {
  // Nothing to say.
  string task_name = 1;
}
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BUF, "lint"], cwd=folder, capture_output=True, text=True, check=False)


def test_the_committed_code_is_what_the_protos_generate(root: Path, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, root / "libs/protos/generate.py", tmp_path],
        check=True,
        capture_output=True,
    )
    committed = contents(root / "libs/protos/src")
    generated = contents(tmp_path)
    assert sorted(committed) == sorted(generated)
    assert {name for name in committed if committed[name] != generated[name]} == set(), (
        "run `make gen`"
    )


def test_the_protos_keep_the_rules_of_buf(root: Path) -> None:
    result = lint(root)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("good", "bad", "complaint"),
    [
        ("string task_name", "string taskName", 'Field name "taskName" should be lower_snake_case'),
        ("// Nothing to say.\n", "", 'Field "task_name" should have a non-empty comment'),
    ],
)
def test_buf_refuses_a_proto_that_breaks_a_rule(
    root: Path, tmp_path: Path, good: str, bad: str, complaint: str
) -> None:
    shutil.copy(root / "buf.yaml", tmp_path)
    shutil.copytree(root / "protos", tmp_path / "protos")
    (tmp_path / "protos/fluoro/v1/planted.proto").write_text(PLANTED.replace(good, bad))
    result = lint(tmp_path)
    assert result.returncode != 0
    assert f"planted.proto:{complaint}" in re.sub(r":\d+", "", result.stdout)
