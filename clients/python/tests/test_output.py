"""Where the output of the `fluoro` command goes, and when it cannot."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("words", [["list"], ["list", "--output", "json"]])
def test_output_that_cannot_be_written_is_told_and_nothing_else(gateway, words):
    command = [str(Path(sys.executable).with_name("fluoro")), *words]
    env = {"PATH": os.environ["PATH"], "FLUORO_ENDPOINT": gateway.endpoint, "FLUORO_OWNER": "ada"}
    with Path("/dev/full").open("w", encoding="ascii") as full:

        def ended(stderr):
            return subprocess.run(
                command, env=env, stdout=full, stderr=stderr, text=True, timeout=60, check=False
            )

        told, unheard = ended(subprocess.PIPE), ended(full)
    assert (told.returncode, unheard.returncode) == (5, 5)
    assert "No space left on device" in told.stderr
    assert told.stderr.count("\n") == 1, told.stderr
