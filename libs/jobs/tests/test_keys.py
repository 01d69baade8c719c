"""Keys: which are refused, and the file names made of the others."""

import re
import string
from itertools import product

import pytest
from fluoro_jobs.keys import MAX_KEY_CHARACTERS, checked_key, file_name

GOOD = ["0", "9999", "3/0007", "series-2", "17/4", "a.b_c-d", "A/b/C", "x" * MAX_KEY_CHARACTERS]
HOSTILE = {
    "empty": "",
    "too long": "x" * (MAX_KEY_CHARACTERS + 1),
    "up": "..",
    "up in between": "3/../../etc/passwd",
    "absolute": "/etc/passwd",
    "slash at the end": "3/",
    "two slashes": "3//7",
    "backslash": "3\\7",
    "hidden": ".ssh",
    "hidden below": "3/.ssh",
    "option": "-rf",
    "option below": "3/-rf",
    "line break at the end": "3\n",
    "zero byte": "3\0",
    "blank": "3 7",
    "a name from the data": "Müller^Jürgen",
    "digit of another script": "\u0663",
    "the mark of file names": "3~7",
    "shell": "$(reboot)",
    "wildcard": "*",
}


@pytest.mark.parametrize("key", GOOD)
def test_a_key_of_letters_digits_and_slashes_is_one(key: str) -> None:
    assert checked_key(key) == key


@pytest.mark.parametrize("key", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_or_too_long_key_is_refused_and_not_quoted(key: str) -> None:
    with pytest.raises(ValueError, match="A key is") as refusal:
        checked_key(key)
    assert not key or key not in str(refusal.value).split()


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("3", "preview-0003.png"),
        ("12345", "preview-12345.png"),
        ("3/0007", "preview-3~0007.png"),
        ("series-2", "preview-series-2.png"),
        ("0003", "preview-0003~~446e21f2.png"),
        ("Series-2", "preview-Series-2~~49c0df95.png"),
    ],
)
def test_a_file_name_shows_its_key(key: str, name: str) -> None:
    assert file_name("preview", key, ".png") == name


def test_no_two_keys_share_a_file_name_whatever_the_file_system() -> None:
    parts = ["0", "00", "7", "007", "0007", "a", "A", "aA", "a.b", "a-b", "a_b", "b", "B"]
    keys = {*parts, *(f"{a}/{b}" for a, b in product(parts, parts)), *string.ascii_letters}
    names = [file_name("label-map", key, ".npy") for key in keys]
    assert len({name.lower() for name in names}) == len(keys)


@pytest.mark.parametrize("key", GOOD)
def test_a_file_name_is_plain_short_and_the_same_each_time(key: str) -> None:
    name = file_name("label-map", key, ".npy")
    assert re.fullmatch(r"label-map-[A-Za-z0-9._~-]+\.npy", name)
    assert len(name) <= 200
    assert name == file_name("label-map", key, ".npy")
