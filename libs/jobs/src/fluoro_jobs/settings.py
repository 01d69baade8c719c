"""Settings of a process, from its environment."""

import sys
from typing import TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings

Settings = TypeVar("Settings", bound=BaseSettings)


def from_environment(kind: type[Settings]) -> Settings:
    """The settings. If some are missing or wrong, the process names each and exits with code 1."""
    try:
        return kind()
    except ValidationError as error:
        # Not pydantic's own text: it quotes the values, and some hold a password.
        parts = error.errors(include_input=False)
        prefix = kind.model_config.get("env_prefix", "")
        sys.exit(
            "\n".join(
                f"{prefix}{'_'.join(map(str, part['loc'])).upper()}: {part['msg']}"
                for part in parts
            )
        )
