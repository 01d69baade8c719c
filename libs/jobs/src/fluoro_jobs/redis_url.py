"""FLUORO_REDIS_URL: where Redis is, and the clients of it, all made alike.

    redis://[user:password@]host[:6379][/database]
    sentinel://[user:password@]host[:26379][,host…][/database]?master=NAME[&sentinel_username=…][&sentinel_password=…]

`rediss://` and `sentinels://` are the same over TLS, with ssl_ca_certs, ssl_certfile, ssl_keyfile
(paths) and ssl_check_hostname (true or false) after the `?`. User and password are those of Redis
itself. A host name is resolved, and a Sentinel asked, at each connect.

Every connection is to a primary: one that answers as a replica, or as a server that cannot serve
now, is closed and the answer becomes a `redis.ConnectionError`. So whoever outlives a Redis that is
away outlives a failover, and comes to the new primary.
"""

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final, Self
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import redis
from pydantic import AfterValidator
from redis import sentinel
from redis.asyncio import connection as aio_connection
from redis.asyncio import sentinel as aio_sentinel
from redis.asyncio.client import Redis as AioRedis
from redis.asyncio.retry import Retry as AioRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

if TYPE_CHECKING:
    SyncClient = redis.Redis
    AioClient = AioRedis

SCHEMES: Final = {"redis": 6379, "rediss": 6379, "sentinel": 26379, "sentinels": 26379}
"""Kinds of URL, and the port where none is given."""
FORMS: Final = "redis:// or rediss://host:6379/0, or sentinel:// or sentinels://host:26379,host:26379/0?master=NAME"
"""How it is written, for whoever has to write it."""
TIMEOUT_SECONDS: Final = 2
"""How long connecting, or one answer, may take."""
HEALTH_CHECK_SECONDS: Final = 10
"""A connection that was idle this long is tried before it is used."""
PROBE_KEY: Final = "fluoro:probe"
PROBE_TTL_SECONDS: Final = 60
PROBE_SECONDS: Final = 1
"""Pause between two probes of a Redis that is away."""
PROBE_TIMEOUT_SECONDS: Final = 0.5
"""How long a probe waits for a connection, and for its answer."""
AWAY: Final = frozenset(
    {
        "READONLY",
        "UNBLOCKED",
        "MASTERDOWN",
        "CLUSTERDOWN",
        "TRYAGAIN",
        "NOREPLICAS",
        "MISCONF",
        "NOPERM",
    }
)
"""Error answers of a server that cannot serve us now.

redis-py itself makes connection errors of the others (LOADING, NOAUTH).
"""

# redis-py left types out here.
_Sentinel: Any = sentinel.Sentinel
_SentinelPool: Any = sentinel.SentinelConnectionPool
_AioSentinel: Any = aio_sentinel.Sentinel

_TLS_OPTIONS: Final = frozenset(
    {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname"}
)
_SENTINEL_OPTIONS: Final = frozenset({"master", "sentinel_username", "sentinel_password"})


@dataclass(frozen=True, slots=True)
class RedisServer:
    """Where Redis is.

    hosts: of Redis, one; or of the Sentinels that know. master: what they call it, "" without
    Sentinels.

    credentials, sentinel_credentials, tls: keyword arguments of redis-py's connections. tls is None
    without TLS.
    """

    hosts: tuple[tuple[str, int], ...]
    database: int = 0
    master: str = ""
    credentials: dict[str, str] = field(default_factory=dict, repr=False)
    sentinel_credentials: dict[str, str] = field(default_factory=dict, repr=False)
    tls: dict[str, Any] | None = None

    @classmethod
    def from_url(cls, url: str) -> Self:
        """ValueError with what to write instead, without the URL: that may hold a password."""
        try:
            parts = urlsplit(url)
            netloc = parts.netloc
        except ValueError:
            # The cause may quote the URL, and with it the password.
            raise ValueError(f"This is no URL. Use {FORMS}.") from None
        if parts.scheme not in SCHEMES:
            raise ValueError(f"This kind of URL is not known. Use {FORMS}.")
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        with_sentinel, with_tls = (
            parts.scheme.startswith("sentinel"),
            parts.scheme in {"rediss", "sentinels"},
        )
        allowed = (_SENTINEL_OPTIONS if with_sentinel else frozenset()) | (
            _TLS_OPTIONS if with_tls else frozenset()
        )
        # Ignoring an option would mislead whoever set it.
        if unknown := sorted(options.keys() - allowed):
            raise ValueError(
                f"{parts.scheme}:// does not take {', '.join(unknown)}. "
                f"Known: {', '.join(sorted(allowed)) or 'no options'}."
            )
        if with_sentinel and not options.get("master"):
            raise ValueError(
                "A sentinel URL names what the Sentinels watch: "
                "sentinel://host:26379/0?master=NAME."
            )
        # Split from the right, because a password may contain an @.
        userinfo, _, hosts = netloc.rpartition("@")
        user, _, password = userinfo.partition(":")
        return cls(
            _hosts(hosts, SCHEMES[parts.scheme], several=with_sentinel),
            _database(parts),
            options.get("master", ""),
            _given(username=unquote(user), password=unquote(password)),
            _given(
                username=options.get("sentinel_username", ""),
                password=options.get("sentinel_password", ""),
            ),
            _tls(options) if with_tls else None,
        )

    @property
    def address(self) -> str:
        """Where it is, for people and logs: without passwords."""
        hosts = ",".join(f"{host}:{port}" for host, port in self.hosts)
        return f"{hosts}/{self.database}" + (f" ({self.master})" if self.master else "")

    @property
    def connection_class(self) -> type[redis.Connection]:
        """Of a connection to the primary."""
        if self.master:
            return _SentinelTlsConnection if self.tls is not None else _SentinelConnection
        return _TlsConnection if self.tls is not None else _PlainConnection

    def pool(
        self,
        connection_class: type[redis.Connection] | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> redis.ConnectionPool:
        """A pool of connections to the primary. connection_class: derived from ours."""
        options = self._options(timeout_seconds)
        options["connection_class"] = connection_class or self.connection_class
        # Once more at once, because a connection from the pool may have ended long ago; a server
        # that is silent is not asked again.
        options["retry"] = Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,))
        if not self.master:
            return redis.ConnectionPool(**options)
        # A Sentinel that does not answer is not asked twice: there are others.
        asked = self._sentinel_options(timeout_seconds) | {"retry": Retry(NoBackoff(), 0)}
        pool: redis.ConnectionPool = _SentinelPool(
            self.master, _Sentinel(self.hosts, sentinel_kwargs=asked), **options
        )
        return pool

    def client(self, timeout_seconds: float = TIMEOUT_SECONDS) -> "SyncClient":
        """A client whose calls end within a few `timeout_seconds`, whatever the server does.

        redis.RedisError.
        """
        return redis.Redis.from_pool(self.pool(timeout_seconds=timeout_seconds))

    def aio_client(self) -> "AioClient":
        """A client for an event loop.

        It does not try again, and has a deadline for connecting alone: calls bring their own.
        """
        options = self._options(TIMEOUT_SECONDS) | {"retry": AioRetry(NoBackoff(), 0)}
        # A subscription is silent for as long as nothing happens.
        options |= {
            "socket_timeout": None,
            "health_check_interval": 0,
        }
        if not self.master:
            options["connection_class"] = (
                _AioTlsConnection if self.tls is not None else _AioConnection
            )
            return AioRedis.from_pool(aio_connection.ConnectionPool(**options))
        options["connection_class"] = (
            _AioSentinelTlsConnection if self.tls is not None else _AioSentinelConnection
        )
        asked = self._sentinel_options(TIMEOUT_SECONDS) | {"retry": AioRetry(NoBackoff(), 0)}
        return AioRedis.from_pool(
            _AioSentinelPool(
                self.master, _AioSentinel(list(self.hosts), sentinel_kwargs=asked), **options
            )
        )

    def _options(self, timeout_seconds: float) -> dict[str, Any]:
        host, port = self.hosts[0]
        return {
            # With Sentinels, they name host and port at each connect.
            **({} if self.master else {"host": host, "port": port}),
            "db": self.database,
            "socket_timeout": timeout_seconds,
            "socket_connect_timeout": timeout_seconds,
            "socket_keepalive": True,
            "health_check_interval": HEALTH_CHECK_SECONDS,
            **self.credentials,
            **(self.tls or {}),
        }

    def _sentinel_options(self, timeout_seconds: float) -> dict[str, Any]:
        return {
            "socket_timeout": timeout_seconds,
            "socket_connect_timeout": timeout_seconds,
            "ssl": self.tls is not None,
            **self.sentinel_credentials,
            **(self.tls or {}),
        }


def _checked(url: str) -> str:
    RedisServer.from_url(url)
    return url


RedisUrl = Annotated[str, AfterValidator(_checked)]
"""The type of the setting: a URL of an unknown kind is refused at the start."""


def connect(redis_url: str, timeout_seconds: float = TIMEOUT_SECONDS) -> "SyncClient":
    """A client of the primary, as `RedisServer.client`. ValueError for a URL of an unknown kind."""
    return RedisServer.from_url(redis_url).client(timeout_seconds)


def probe(client: "SyncClient") -> None:
    """Makes sure that the server takes writes: a replica answers PING, and even PUBLISH.

    redis.RedisError.
    """
    # A value that nobody reads, with a time to live: a probe must leave nothing.
    client.set(PROBE_KEY, b"", ex=PROBE_TTL_SECONDS)


async def probe_aio(client: "AioClient") -> None:
    """The same on an event loop. It has no deadline of its own."""
    await client.set(PROBE_KEY, b"", ex=PROBE_TTL_SECONDS)


class Breaker:
    """Spares callers the wait for a Redis that is away.

    After a failure nobody asks Redis until a probe works. There is one probe a second.
    """

    def __init__(self, redis_url: str) -> None:
        """ValueError for a URL of an unknown kind."""
        self._client = connect(redis_url, PROBE_TIMEOUT_SECONDS)
        self._away = False
        self._probe_at = 0.0

    def admits(self) -> bool:
        """Whether Redis is worth asking.

        Takes about a second at most, and that at most once a second.
        """
        if self._away and time.monotonic() >= self._probe_at:
            try:
                probe(self._client)
            except redis.RedisError:
                self._probe_at = time.monotonic() + PROBE_SECONDS
            else:
                self._away = False
        return not self._away

    def failed(self) -> None:
        """A call has failed: Redis is away."""
        self._away, self._probe_at = True, time.monotonic() + PROBE_SECONDS


def _hosts(text: str, default_port: int, *, several: bool) -> tuple[tuple[str, int], ...]:
    found = []
    for one in text.split(","):
        try:
            parts = urlsplit(f"//{one}")
            found.append((parts.hostname or "", parts.port or default_port))
        except ValueError:
            raise ValueError("A host and its port are written host:6379, or [::1]:6379.") from None
    if not all(host for host, _ in found):
        raise ValueError("The URL names no host.")
    if len(found) > 1 and not several:
        raise ValueError(
            "More than one host goes with Sentinel only: "
            "sentinel://host:26379,host:26379/0?master=NAME."
        )
    return tuple(found)


def _database(parts: SplitResult) -> int:
    number = parts.path.strip("/") or "0"
    if not number.isdecimal():
        raise ValueError("What follows the host is the number of a database: redis://host:6379/0.")
    return int(number)


def _given(**options: str) -> dict[str, str]:
    return {key: value for key, value in options.items() if value}


def _tls(options: dict[str, str]) -> dict[str, Any]:
    given: dict[str, Any] = {key: value for key, value in options.items() if key in _TLS_OPTIONS}
    # Anything else would be taken for true, and somebody who wrote "no" would believe it off.
    if given.get("ssl_check_hostname", "true") not in {"true", "false"}:
        raise ValueError("ssl_check_hostname is true or false.")
    return given | {"ssl_check_hostname": given.get("ssl_check_hostname", "true") == "true"}


def _is_away(error: redis.ResponseError) -> bool:
    return (getattr(error, "status_code", None) or str(error).partition(" ")[0]) in AWAY


class _Primary(redis.Connection if TYPE_CHECKING else object):  # type: ignore[misc]  # a mixin
    """Closes a connection whose server says that it is not the one to work with now."""

    def read_response(self, *arguments: Any, **options: Any) -> Any:
        try:
            return super().read_response(*arguments, **options)
        except redis.ResponseError as error:
            # Other errors are answers to what was asked, and say nothing about the server.
            if not _is_away(error):
                raise
            # The next use connects anew, and so finds out who is the primary by then.
            self.disconnect()
            raise redis.ConnectionError(f"Redis cannot serve now: {error}") from error


class _PlainConnection(_Primary, redis.Connection):
    """To Redis itself."""


class _TlsConnection(_Primary, redis.SSLConnection):
    """To Redis itself, over TLS."""


class _SentinelConnection(_Primary, sentinel.SentinelManagedConnection):
    """To whom a Sentinel names."""


class _SentinelTlsConnection(_Primary, sentinel.SentinelManagedSSLConnection):
    """To whom a Sentinel names, over TLS."""


class _AioPrimary(aio_connection.Connection if TYPE_CHECKING else object):  # type: ignore[misc]  # a mixin
    """The same for an event loop."""

    async def read_response(self, *arguments: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*arguments, **options)
        except redis.ResponseError as error:
            if not _is_away(error):
                raise
            await self.disconnect()
            raise redis.ConnectionError(f"Redis cannot serve now: {error}") from error


class _AioConnection(_AioPrimary, aio_connection.Connection):
    """To Redis itself."""


class _AioTlsConnection(_AioPrimary, aio_connection.SSLConnection):
    """To Redis itself, over TLS."""


class _AioSentinelConnection(_AioPrimary, aio_sentinel.SentinelManagedConnection):
    """To whom a Sentinel names."""


class _AioSentinelTlsConnection(_AioPrimary, aio_sentinel.SentinelManagedSSLConnection):
    """To whom a Sentinel names, over TLS."""


class _AioSentinelPool(aio_sentinel.SentinelConnectionPool):
    """redis-py's, which closes its connections to the Sentinels too."""

    def __init__(self, master: str, watchers: Any, **options: Any) -> None:
        super().__init__(master, watchers, **options)  # type: ignore[no-untyped-call]
        self._watchers = watchers.sentinels

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """All of them, or those nobody uses."""
        await super().disconnect(inuse_connections)
        if inuse_connections:
            for watcher in self._watchers:
                await watcher.aclose()
