"""kombu's transport for Redis, on the connections of `fluoro_jobs.redis_url`.

With those, a server that is no longer the primary, or cannot serve now, is a lost connection.
Celery then connects again. With kombu's own transports for Redis and Sentinel the worker ends.
"""

import json
from base64 import b64decode
from queue import Empty
from typing import Any, Final
from uuid import UUID

import kombu
import structlog
from celery.app.amqp import AMQP
from kombu.transport import redis as kombu_redis

from fluoro_jobs.redis_url import RedisServer

log = structlog.get_logger(__name__)

URL_OPTION: Final = "fluoro_redis_url"
"""The transport option with the whole URL.

Celery logs `broker_url`, so that one has no password.
"""
RETRY_SECONDS: Final = {"interval_start": 0.2, "interval_step": 0.3, "interval_max": 2}
"""Celery's pauses between tries at Redis. By default they grow to 30 s, longer than a failover."""


class Channel(kombu_redis.Channel):
    """kombu's, on our connections."""

    def _get_pool(self, asynchronous: bool = False) -> Any:
        transport: Any = self.connection
        server = RedisServer.from_url(transport.client.transport_options[URL_OPTION])
        self.connection_class = server.connection_class
        self.keyprefix_fanout = self.keyprefix_fanout.format(db=server.database)
        # The class that kombu derives from ours tells its poller when a connection ends.
        return server.pool(self._connparams(asynchronous)["connection_class"])  # type: ignore[attr-defined]  # the stubs left it out

    @property
    def supports_batch_publish(self) -> bool:
        """Kombu sends no batches over connections that retry: part of one might go twice.

        Here a message may come twice. The claim drops the second.
        """
        return True

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]  # the stubs left it out
        # kombu has popped it already. To Celery the error would be a reason to end the worker.
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            log.warning("foreign_message_dropped", exception=type(error).__qualname__)
            raise Empty from error


class Transport(kombu_redis.Transport):
    """kombu's, with our channels. Drops messages that are not of our form.

    Celery would end the worker over one that somebody else put into its queue.
    """

    Channel = Channel

    def _deliver(self, message: Any, queue: str | None) -> None:
        if is_ours(message):
            super()._deliver(message, queue)
        else:
            log.warning("foreign_message_dropped", queue=queue)


def is_ours(message: Any) -> bool:
    """Whether it is of the form that `Sender` gives it."""
    try:
        # One argument, the task, which is also the message's id: anything else was not sent by
        # `Sender`.
        task, properties = message["headers"]["id"], message["properties"]
        arguments, _, _ = json.loads(b64decode(message["body"]))
        return (
            arguments == [task]
            and bool(UUID(task))
            and {"delivery_tag", "delivery_info", "body_encoding"} <= properties.keys()
        )
    except (ValueError, LookupError, TypeError, AttributeError):
        return False


class Connection(kombu.Connection):
    """kombu's, which tries again sooner."""

    def ensure_connection(self, *arguments: Any, **options: Any) -> Any:
        """As kombu's, with other pauses."""
        return super().ensure_connection(*arguments, **RETRY_SECONDS | options)


class Amqp(AMQP):
    """Celery's, with our connections."""

    Connection = Connection
