"""What reports say, by language: one file each in `languages/`."""

import tomllib
from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import Final

from export_worker import wording

LANGUAGES: Final = ("en", "de", "es", "zh")
"""The first one is the default."""


class Words:
    """The words of one language, and how it writes numbers and dates."""

    def __init__(self, language: str) -> None:
        """language: one of `LANGUAGES`."""
        self.language = language
        text = (files("export_worker") / "languages" / f"{language}.toml").read_text("utf-8")
        self.all: Final[dict[str, str]] = tomllib.loads(text)
        # Both marks at once: one after the other, the second would change what the first has made.
        self._marks = str.maketrans(
            {",": self.all["thousands"], ".": self.all["decimal"]},
        )

    def __call__(self, key: str, /, **values: str) -> str:
        """A phrase, with its names in braces filled in. Values are never phrases themselves."""
        return self.all[key].format(**values)

    def term(self, name: str) -> str:
        """What a colour or a structure of lesions is called here; others keep their name."""
        # Names of TOML keys have no spaces.
        key = "term_" + name.replace(" ", "_").replace("-", "_")
        return self.all.get(key) or wording.printable(name, 64)

    def count(self, value: int) -> str:
        """`16,384`."""
        return self.marked(wording.count(value))

    def number(self, value: float, decimals: int) -> str:
        """See `wording.number`."""
        return self.marked(wording.number(value, decimals))

    def percent(self, fraction: float) -> str:
        """See `wording.percent`."""
        return self.marked(wording.percent(fraction))

    def short(self, value: float) -> str:
        """See `wording.short`."""
        return self.marked(wording.short(value))

    def marked(self, number: str) -> str:
        """A number in English, with the marks of this language."""
        return number.translate(self._marks)

    def date(self, moment: datetime) -> str:
        """Day and time."""
        return moment.strftime(self.all["date"])


@cache
def words_of(language: str) -> Words:
    """Read once."""
    return Words(language or LANGUAGES[0])
