"""`python -m fluoro_local` when something is in its way."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest


def run(*arguments: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "fluoro_local", *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ | environment,
    )


def test_up_on_a_taken_port_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        ended = run("up", "--data", tmp_path / "data", FLUORO_GRPC_PORT=port)
    assert ended.returncode == 1
    assert f"Port {port} for the gateway is taken" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "data").exists()


def test_up_refuses_a_setting_that_makes_no_sense_by_name(tmp_path: Path) -> None:
    ended = run("up", "--data", tmp_path / "data", FLUORO_GRPC_PORT="coffee")
    assert ended.returncode == 1
    assert "FLUORO_GRPC_PORT" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("content", ["absent", "empty"])
def test_demo_without_any_input_file_is_refused_before_anything_starts(
    tmp_path: Path, content: str
) -> None:
    source = tmp_path / "input"
    if content == "empty":
        source.mkdir()
    ended = run("demo", "--input", source, "--data", tmp_path / "data", "--out", tmp_path / "out")
    assert ended.returncode == 1
    assert f"There is no file in {source}" in ended.stderr
    assert not (tmp_path / "data").exists()


def test_demo_whose_data_folder_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = run("demo", "--data", tmp_path / "file" / "data", "--out", tmp_path / "out")
    assert ended.returncode == 1
    assert "cannot write to" in ended.stderr
    assert "Traceback" not in ended.stderr
