"""Which gateway to call and as whom: options, then environment, then a profile, then defaults.

Profiles are in `~/.config/fluoro/config.toml`; `XDG_CONFIG_HOME` moves it (XDG Base Directory
Specification). No secret is in it: a profile names the file that has the token, or the command that
prints it.
"""

import logging
import os
import select
import stat
import subprocess
import threading
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fluoro_client.credentials import Tls, Token, read_file
from fluoro_client.options import DEFAULT_ENDPOINT

COMMAND_SECONDS: Final = 30.0
"""How long a token command may take."""
LONGEST_OUTPUT: Final = 2**16
"""Bytes that a token command may print; no gateway takes a token as long as that."""
REFRESH_SECONDS: Final = 60.0
"""Age at which what a token command printed is asked for anew, while it goes on being used."""

FIELDS: Final[Mapping[str, type]] = {
    "endpoint": str,
    "owner": str,
    "tls": bool,
    "ca_file": str,
    "certificate_file": str,
    "key_file": str,
    "token_file": str,
    "token_command": list,
}
"""What a profile may say, and in which TOML type."""

_FILES: Final = ("ca_file", "certificate_file", "key_file", "token_file")
_TYPES: Final = {str: "text", bool: "true or false", list: "a list of words"}

log = logging.getLogger("fluoro_client")


class ProfileError(Exception):
    """The configuration file, or a file or command that it names, cannot be used."""


class EndpointError(ProfileError):
    """The endpoint is none."""


class NoHomeError(ProfileError):
    """The configuration file cannot be anywhere."""


class UnknownProfileError(ProfileError):
    """There is no profile of that name."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What the configuration says of one deployment; "" and None where it says nothing."""

    name: str = ""
    endpoint: str = ""
    owner: str = ""
    tls: bool = False
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    token_file: Path | None = None
    token_command: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Config:
    """The configuration file: profiles by name, and the name of the one taken unless told."""

    profiles: Mapping[str, Profile] = field(default_factory=dict)
    default: str = ""

    def profile(self, name: str = "") -> Profile:
        """The profile of that name, or the default one, or one that says nothing."""
        name = name or self.default
        if not name:
            return Profile()
        if name not in self.profiles:
            there = ", ".join(sorted(self.profiles)) or "none"
            raise UnknownProfileError(
                f"There is no profile {name}. `fluoro profiles` lists them: {there}."
            )
        return self.profiles[name]


@dataclass(frozen=True, slots=True)
class Access:
    """Where to call, and as whom: what `AsyncClient` and `Client` take.

    profile: name of the one that was used, or "". sources: where each of the others is from.
    """

    endpoint: str
    owner: str
    token: Token | None
    tls: Tls | None
    profile: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)

    def words(self) -> list[str]:
        """Options that lead another command to the same place."""
        words = ["--profile", self.profile] if self.profile else []
        for name, value in (("endpoint", self.endpoint), ("owner", self.owner)):
            if self.sources.get(name, "default") not in {"default", f"profile {self.profile}"}:
                words += [f"--{name}", value]
        return words


class TokenCommand:
    """The token that a command prints. It is asked anew in the background, so no call waits."""

    def __init__(
        self,
        words: Sequence[str],
        seconds: float = COMMAND_SECONDS,
        refresh_seconds: float = REFRESH_SECONDS,
    ) -> None:
        """Runs the command once. ProfileError if it fails or prints nothing within `seconds`."""
        self._words, self._seconds, self._refresh_seconds = list(words), seconds, refresh_seconds
        self._asking = threading.Lock()
        self._token = self._ask()
        self._asked = time.monotonic()

    def __call__(self) -> str:
        """The newest token there is."""
        is_old = time.monotonic() - self._asked > self._refresh_seconds
        if is_old and self._asking.acquire(blocking=False):
            threading.Thread(target=self._renew, name="fluoro-token", daemon=True).start()
        return self._token

    def _renew(self) -> None:
        try:
            self._token = self._ask()
        except ProfileError as error:
            # The token that is there may be good for longer; if not, the gateway says so.
            log.warning("%s The earlier token stays.", error)
        finally:
            self._asked = time.monotonic()
            self._asking.release()

    def _ask(self) -> str:
        name = self._words[0]
        try:
            # What it writes to standard error is for the person: a question, or what is wrong.
            with subprocess.Popen(
                self._words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
            ) as command:
                try:
                    printed = _printed(command, time.monotonic() + self._seconds)
                finally:
                    command.kill()  # unless it has ended
        except TimeoutError:
            raise ProfileError(
                f"The token command {name} did not end within {self._seconds:g} s."
            ) from None
        except OSError as error:
            raise ProfileError(
                f"The token command {name} cannot be run: {error.strerror or error}."
            ) from error
        if len(printed) > LONGEST_OUTPUT:
            raise ProfileError(f"The token command {name} prints far more than a token.")
        token, code = printed.strip(), command.returncode
        if code or not token or not token.isascii():
            why = f"ended with code {code}" if code else "printed no token"
            raise ProfileError(f"The token command {name} {why}. Run it yourself to see why.")
        return token.decode("ascii")


def _printed(command: subprocess.Popen[bytes], until: float) -> bytes:
    """What it prints until its end, or a little more than LONGEST_OUTPUT. TimeoutError."""
    assert command.stdout is not None
    printed, waiting = bytearray(), select.poll()
    waiting.register(command.stdout)
    while len(printed) <= LONGEST_OUTPUT:
        if not waiting.poll(max(0.0, until - time.monotonic()) * 1000):
            raise TimeoutError
        if not (piece := os.read(command.stdout.fileno(), LONGEST_OUTPUT)):
            try:
                command.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise TimeoutError from None
            break
        printed += piece
    return bytes(printed)


def config_file(variables: Mapping[str, str]) -> Path:
    """Where the configuration is. A relative XDG_CONFIG_HOME is ignored, as its rules say.

    NoHomeError for a user whom the system does not know, in a container for example.
    """
    home = Path(variables.get("XDG_CONFIG_HOME") or "")
    try:
        folder = home if home.is_absolute() else Path(variables.get("HOME") or "~").expanduser()
    except RuntimeError as error:
        raise NoHomeError(
            "This user has no home folder, where the profiles are. Set HOME or XDG_CONFIG_HOME."
        ) from error
    return (folder if home.is_absolute() else folder / ".config") / "fluoro" / "config.toml"


def load(file: Path) -> Config:
    """Reads the configuration. ProfileError if it says what cannot be; none at all is fine."""
    try:
        text = read_file(file)
        _private(file, stat.S_IWGRP | stat.S_IWOTH, "change it: chmod go-w")
        said = tomllib.loads(text.decode())
    except FileNotFoundError:
        return Config()
    except OSError as error:
        raise ProfileError(f"{file} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        # What tomllib makes of bad TOML, bad UTF-8, endless numbers, and lists in lists in lists.
        raise ProfileError(f"{file} is not TOML: {error}.") from error
    profiles = said.pop("profiles", {})
    default = said.pop("default", "")
    if said:
        raise ProfileError(
            f"{file}: {', '.join(sorted(said))} is not known at the top. "
            "There may be default = NAME, and tables [profiles.NAME]."
        )
    if not isinstance(profiles, dict) or not isinstance(default, str):
        raise ProfileError(f"{file}: default must be text, and profiles tables [profiles.NAME].")
    config = Config({name: _profile(file, name, of) for name, of in profiles.items()}, default)
    if default and default not in config.profiles:
        raise ProfileError(f"{file}: default names {default}, but there is no such profile.")
    return config


def access(
    variables: Mapping[str, str],
    *,
    endpoint: str = "",
    owner: str = "",
    profile: str = "",
    config: Config | None = None,
    command_seconds: float = COMMAND_SECONDS,
    secrets: bool = True,
) -> Access:
    """Where to call and as whom: what is given here, then the environment, then the profile.

    variables: `os.environ`. config: read from its file unless given. command_seconds: how long a
    token command may take. secrets: False only looks; the token is not one to send.

    ProfileError, among them UnknownProfileError and EndpointError. A profile's token and key must
    be nobody else's to read.
    """
    name = profile or variables.get("FLUORO_PROFILE", "")
    if config is None:
        try:
            config = load(config_file(variables))
        except NoHomeError:
            if name:
                raise
            config = Config()
    chosen = config.profile(name)
    found = _Found(variables, chosen, secrets)
    target = found.text("endpoint", endpoint, DEFAULT_ENDPOINT)
    if target.startswith(("http://", "https://")):
        raise EndpointError(
            f"The endpoint {target} ({found.sources['endpoint']}) must be host:port, without "
            "http:// or https://. FLUORO_TLS=1 or FLUORO_CA_FILE encrypts."
        )
    return Access(
        endpoint=target,
        owner=found.text("owner", owner, ""),
        token=found.token(command_seconds),
        tls=found.tls(),
        profile=chosen.name,
        sources=found.sources,
    )


@dataclass(slots=True)
class _Found:
    """Looks things up, and notes where each was found."""

    variables: Mapping[str, str]
    profile: Profile
    secrets: bool
    sources: dict[str, str] = field(default_factory=dict)

    def text(self, name: str, given: str, default: str) -> str:
        variable = f"FLUORO_{name.upper()}"
        for source, value in (
            (f"--{name}", given),
            (variable, self.variables.get(variable, "")),
            (f"profile {self.profile.name}", getattr(self.profile, name)),
            ("default", default),
        ):
            if value:
                self.sources[name] = source
                return value
        return ""

    def token(self, command_seconds: float) -> Token | None:
        for variable in ("FLUORO_TOKEN_FILE", "FLUORO_TOKEN"):
            if value := self.variables.get(variable):
                self.sources["token"] = variable
                return Path(value) if variable.endswith("FILE") else value
        if self.profile.token_file is not None:
            self.sources["token"] = f"token_file of profile {self.profile.name}"
            self._check(self.profile.token_file)
            return self.profile.token_file
        if self.profile.token_command:
            self.sources["token"] = f"token_command of profile {self.profile.name}"
            if not self.secrets:
                return self.profile.token_command[0]
            return TokenCommand(self.profile.token_command, command_seconds)
        return None

    def tls(self) -> Tls | None:
        ca = self._file("CA")
        # A certificate and its key belong together, so they come from one place.
        pair = self._file("CERTIFICATE"), self._file("KEY")
        own = pair == (None, None)
        if own:
            pair = self.profile.certificate_file, self.profile.key_file
        if (pair[0] is None) != (pair[1] is None):
            names = [name if not own else name.lower() for name in ("CERTIFICATE", "KEY")]
            where = f"profile {self.profile.name}: {{}}_file" if own else "FLUORO_{}_FILE"
            raise ProfileError(
                f"{where.format(names[0])} and {where.format(names[1])} belong together: give both."
            )
        if own and pair[1] is not None:
            self._check(pair[1])
        ca = ca or self.profile.ca_file
        asked = self.variables.get("FLUORO_TLS") == "1"
        if not (ca or pair[0] or asked or self.profile.tls):
            return None
        from_variables = asked or self._file("CA") or (pair[0] and not own)
        self.sources["tls"] = "environment" if from_variables else f"profile {self.profile.name}"
        return Tls(ca, *pair)

    def _check(self, secret: Path) -> None:
        if self.secrets:
            _secret(secret)

    def _file(self, name: str) -> Path | None:
        value = self.variables.get(f"FLUORO_{name}_FILE")
        return Path(value) if value else None


def _profile(file: Path, name: str, said: object) -> Profile:
    if not isinstance(said, dict):
        raise ProfileError(f"{file}: write profile {name} as a table, [profiles.{name}].")
    if "token" in said:
        raise ProfileError(
            f"{file}: profile {name} has a token in it. Put it into a file of its own, which only "
            "you may read, and name that: token_file."
        )
    for key, value in said.items():
        kind = FIELDS.get(key)
        if kind is None:
            raise ProfileError(
                f"{file}: profile {name} says {key}, which is none of {', '.join(FIELDS)}."
            )
        is_words = kind is not list or (value and all(isinstance(word, str) for word in value))
        if not isinstance(value, kind) or not is_words:
            raise ProfileError(f"{file}: {key} of profile {name} must be {_TYPES[kind]}.")
        if isinstance(value, str | list) and any("\0" in word for word in value):
            raise ProfileError(f"{file}: {key} of profile {name} must be without NUL.")
    if "token_file" in said and "token_command" in said:
        raise ProfileError(f"{file}: profile {name} has both token_file and token_command.")
    try:
        paths = {key: file.parent / Path(said[key]).expanduser() for key in _FILES if said.get(key)}
    except RuntimeError as error:
        raise ProfileError(f"{file}: profile {name} has ~ of somebody without a home.") from error
    return Profile(**{**said, **paths, "name": name})


def _secret(file: Path) -> None:
    """Refuses a file with a secret that others may read, as ssh does."""
    try:
        _private(file, stat.S_IRWXG | stat.S_IRWXO, "read it: chmod 600")
    except OSError as error:
        raise ProfileError(f"{file} cannot be read: {error.strerror or error}.") from error


def _private(file: Path, bits: int, what: str) -> None:
    if file.stat().st_mode & bits:
        raise ProfileError(f"{file} is not yours alone. Others may {what} {file}")
