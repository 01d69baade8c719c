"""Who the client is: tokens and certificates, which may be replaced while it runs."""

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import grpc
import grpc.aio

OWNER_KEY: Final = "fluoro-owner"
"""Metadata key with the caller's identity."""

Token: TypeAlias = str | os.PathLike[str] | Callable[[], str]
"""A token, the path of a file that has one, or a function that returns one.

File and function are asked anew for each call; the function must not block.
"""

Stamp: TypeAlias = tuple[tuple[int, int, int], ...]

LARGEST_FILE: Final = 2**20
"""Bytes of a file with a token, or with certificates; those of all public authorities fit in."""


def read_file(path: str | os.PathLike[str]) -> bytes:
    """A small file, at once.

    OSError also for what is no file: a pipe that nobody writes to would never end, nor a device.
    """
    with open(path, "rb", opener=_without_waiting) as file:
        data = (
            file.read(LARGEST_FILE + 1) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else None
        )
    if data is None:
        raise OSError(errno.EINVAL, "It is not a regular file", os.fspath(path))
    if len(data) > LARGEST_FILE:
        raise OSError(errno.EFBIG, f"It has more than {LARGEST_FILE} bytes", os.fspath(path))
    return data


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


@dataclass(frozen=True, slots=True)
class Tls:
    """Files of an encrypted connection, PEM.

    ca_file: authorities that the gateway's certificate must be of; None for those of gRPC.
    certificate_file, key_file: the client's own, for gateways that ask for one; both or neither.
    When any of them is replaced, calls from then on go over a new connection.
    """

    ca_file: str | os.PathLike[str] | None = None
    certificate_file: str | os.PathLike[str] | None = None
    key_file: str | os.PathLike[str] | None = None

    def stamp(self) -> Stamp:
        """What changes when a file does. OSError if one is not there."""
        files = (self.ca_file, self.certificate_file, self.key_file)
        stats = [Path(file).stat() for file in files if file is not None]
        return tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats)

    def credentials(self) -> grpc.ChannelCredentials:
        """Of the files as they are now. OSError, or ValueError for half of a pair."""
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file and key_file belong together")
        ca, key, certificate = (
            None if file is None else read_file(file)
            for file in (self.ca_file, self.key_file, self.certificate_file)
        )
        return grpc.ssl_channel_credentials(ca, key, certificate)


class TokenError(ValueError):
    """What should be a token cannot travel. The message has nothing of it."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What each call says of its caller: an owner, a token, both or nothing."""

    owner: str = ""
    token: Token | None = None

    def __post_init__(self) -> None:
        """ValueError if the owner cannot travel."""
        if not self.owner.isascii() or not self.owner.isprintable():
            raise ValueError("owner must be printable ASCII: it travels as gRPC metadata")

    @property
    def renews(self) -> bool:
        """Whether the token of the next call may be another one."""
        return self.token is not None and not isinstance(self.token, str)

    def metadata(self) -> grpc.aio.Metadata:
        """For a call that is made now.

        OSError if the token's file cannot be read, TokenError if what is there is no token.
        """
        pairs = [(OWNER_KEY, self.owner)] if self.owner else []
        if self.token is not None:
            pairs.append(("authorization", f"Bearer {self._token()}"))
        return grpc.aio.Metadata(*pairs)

    def _token(self) -> str:
        if isinstance(self.token, os.PathLike):
            token = read_file(self.token).decode("ascii", errors="replace").strip()
        else:
            token = self.token() if callable(self.token) else str(self.token)
        # gRPC would refuse it with a sentence that says nothing.
        if not token.isascii() or not token.isprintable():
            raise TokenError(
                "The token is not one line of printable ASCII. Look at the file, variable or "
                "command that it is from."
            )
        return token
