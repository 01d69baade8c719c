"""Whatever is in the file of limits, a gateway goes on with those it had."""

from pathlib import Path

import pytest
from gateway.limits.owners import LimitsFileError, OwnerLimits, Owners

LONG = ".a" * 30_000
"""Of a key for which the parser takes a minute."""


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 100_000,
        "[a]\nmax_calls = " + "1" * 5_000,
        "[a",
        "\x00",
        f"a{LONG} = 1",
        f"[a{LONG}]",
        f"a = {{ a{LONG} = 1 }}",
        f'"a\\"" . a{LONG} . "a" = 1',
        'a = """\n"\n"""\n"a" ' + LONG.replace(".", " . ") + " = 1",
        '"\\' * 200_000,
    ],
    ids=range(10),
)
def test_a_file_that_no_parser_takes_changes_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "limits.toml"
    path.write_text("[ada]\nmax_calls = 1\n")
    owners = Owners(OwnerLimits(), str(path))
    path.write_text(text)
    owners.look()
    assert owners.of("ada").max_calls == 1


def test_an_owner_with_dots_is_named_in_quotes(tmp_path: Path) -> None:
    path = tmp_path / "limits.toml"
    path.write_text(
        "'x.y.z'.max_calls = 2\neve = { calls_per_second = 2.5, jobs_per_second = 1.25 }\n"
        '# of a.b.c\n["lab.ct.3"]\ncalls_per_second = 1.5 # 2.5.1\n'
    )
    owners = Owners(OwnerLimits(), str(path))
    assert owners.of("lab.ct.3").calls_per_second == 1.5
    assert owners.of("x.y.z").max_calls == 2
    path.write_text("[lab.ct.3]\nmax_calls = 1\n")
    with pytest.raises(LimitsFileError, match="Quote the name"):
        Owners(OwnerLimits(), str(path))
