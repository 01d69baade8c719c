"""What a call shows of its caller, what a source makes of that, and the seam between the two."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from fluoro_jobs.errors import FluoroError, Reason


class Role(StrEnum):
    """What a caller may be allowed; `roles.NEEDED` says for which calls."""

    VIEWER = "viewer"
    SUBMITTER = "submitter"
    OPERATOR = "operator"
    WORKER = "worker"


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller that a source vouches for.

    owner: whose jobs and blobs the call is about. roles: what it may do. how: the source. name: who
    it is, for the log; the owner, unless an operator acts for another. expires: when the proof
    ends, in seconds since 1970; None if it does not. revocable: whether it may end sooner.
    """

    owner: str
    roles: frozenset[Role]
    how: str
    name: str = ""
    expires: float | None = None
    revocable: bool = False


@dataclass(slots=True)
class Caller:
    """What a call shows of its caller, whatever the transport.

    metadata: keys in lower case. certificate: what the handshake verified, named as in gRPC's
    auth_context; empty without TLS. peer: its address, for the audit. known: whom the door found
    it to be, also if it is turned away.
    """

    metadata: Sequence[tuple[str, str | bytes]] = ()
    certificate: Callable[[], Mapping[str, Iterable[bytes]]] = dict
    peer: str = ""
    known: Principal | None = None

    @property
    def agent(self) -> str:
        """Its user agent, as it says."""
        return next((str(value) for name, value in self.metadata if name == "user-agent"), "")

    def one(self, key: str) -> str | bytes | None:
        """The value of a key, None without one. FluoroError if it is given twice."""
        found: str | bytes | None = None
        for name, value in self.metadata:
            # Two values might be read by two programs in two ways.
            if name == key:
                if found is not None:
                    raise FluoroError(
                        Reason.INVALID_ARGUMENT, f"Metadata {key} is given more than once."
                    )
                found = value
        return found


class Authenticator(Protocol):
    """One way in which callers prove who they are."""

    async def authenticate(self, caller: Caller) -> Principal | None:
        """Whom the caller proves to be.

        None if it shows nothing of this kind: the next source has its turn. FluoroError if what it
        shows is no good: no other source is asked.
        """
