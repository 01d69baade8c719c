"""Whatever is in the file of limits, a gateway goes on with those it had."""

from pathlib import Path

import pytest
from gateway.limits.owners import OwnerLimits, Owners


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 100_000, "[a]\nmax_calls = " + "1" * 5_000, "[a", "\x00"]
)
def test_a_file_that_no_parser_takes_changes_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "limits.toml"
    path.write_text("[ada]\nmax_calls = 1\n")
    owners = Owners(OwnerLimits(), str(path))
    path.write_text(text)
    owners.look()
    assert owners.of("ada").max_calls == 1
