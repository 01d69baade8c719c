"""What Celery and kombu see of Redis: the primary that FLUORO_REDIS_URL leads to, as everybody else here sees it.

kombu has a transport for Redis and another for Sentinel. Ours takes its connections from
`fluoro_jobs.redis_url` instead: with them a server that is no primary any more, or cannot serve
now, is a lost connection, and Celery connects again rather than end the worker.
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

Celery gets one without passwords, because it writes it into its log.
"""
RETRY_SECONDS: Final = {"interval_start": 0.2, "interval_step": 0.3, "interval_max": 2}
"""Celery's pauses before it tries Redis again. Its own grow to 30 s; a failover is over sooner."""


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
        """Kombu sends no batch where one might be sent twice.

        Here it may: a message that comes twice is dropped at the claim.
        """
        return True

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]  # the stubs left it out
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            log.warning("foreign_message_dropped", exception=type(error).__qualname__)
            raise Empty from error


class Transport(kombu_redis.Transport):
    """kombu's, with our channels.

    What somebody else put into a queue goes no further: Celery would end the worker.
    """

    Channel = Channel

    def _deliver(self, message: Any, queue: str | None) -> None:
        if _is_ours(message):
            super()._deliver(message, queue)
        else:
            log.warning("foreign_message_dropped", queue=queue)


def _is_ours(message: Any) -> bool:
    """Whether it is of the form that `dispatch.publish` gives it."""
    try:
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
    """kombu's, which tries sooner."""

    def ensure_connection(self, *arguments: Any, **options: Any) -> Any:
        """As kombu's."""
        return super().ensure_connection(*arguments, **RETRY_SECONDS | options)


class Amqp(AMQP):
    """Celery's, with our connections."""

    Connection = Connection
