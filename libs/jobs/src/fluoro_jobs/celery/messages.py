"""What a message says, how it is sent, and what waits in a queue."""

import itertools
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final
from uuid import UUID

import redis
from celery import Celery
from kombu.exceptions import KombuError

from fluoro_jobs.celery.configuration import configure
from fluoro_jobs.celery.transport import Amqp

PAGE_MESSAGES: Final = 1000
"""Messages of a queue read at once."""
HELD_SECONDS: Final = 5
"""Time limit for reading the queues."""
MAX_ATTEMPT: Final = 2**31 - 1
"""The ledger counts attempts in two bytes."""
POOL_SECONDS: Final = 2
"""Longest wait for a connection of this process that is free."""

Message = tuple[UUID, str, str, int]
"""Task id, Celery task name, queue, number of the attempt that it asks for."""


class NotSentError(Exception):
    """Redis did not take the messages, or not all of them.

    cause: the name of the error's class. Its text may hold a password.
    """

    def __init__(self, error: Exception) -> None:
        """error: what kombu or redis-py raised."""
        super().__init__("Redis did not take the messages.")
        self.cause = type(error).__qualname__


class Sender:
    """Sends messages to the queues. Thread-safe."""

    def __init__(self, redis_url: str) -> None:
        """Connects at the first message. ValueError for a URL of an unknown kind."""
        # Not the current app: a process may have a worker's app too, and Celery would mix the two.
        self._app = Celery("fluoro", set_as_current=False, amqp=Amqp)
        configure(self._app, redis_url)

    def send(self, messages: Iterable[Message]) -> Counter[str]:
        """Sends the messages in one pipeline through the anonymous exchange.

        How many went to each queue. NotSentError if Redis is away.
        """
        try:
            return self._send(messages)
        except (KombuError, redis.RedisError, OSError) as error:
            raise NotSentError(error) from error

    def _send(self, messages: Iterable[Message]) -> Counter[str]:
        sent: Counter[str] = Counter()
        pool = self._app.producer_pool
        with pool.acquire(block=True, timeout=POOL_SECONDS) as producer, producer.batch():  # type: ignore[attr-defined]  # the stubs are older
            for task_id, name, queue, attempt in messages:
                # Does what send_task() does, without its routes, declarations and signals. They
                # take most of its time.
                message = self._app.amqp.as_task_v2(
                    str(task_id),
                    name,
                    args=(str(task_id),),
                    argsrepr="",
                    kwargsrepr="",
                    ignore_result=True,
                )
                # The attempt travels as a header. As an argument or in the id it would confuse
                # workers of the previous release, which pass over headers.
                headers = {**message.headers, "attempt": attempt}
                producer.publish(
                    message.body,
                    exchange="",
                    routing_key=queue,
                    headers=headers,
                    **message.properties,
                )
                sent[queue] += 1
        return sent


def held_by_redis(client: "redis.Redis", queues: Iterable[str]) -> set[tuple[str, int | None]]:
    """Task and attempt of all messages that wait in a queue.

    The attempt is None in a message of the previous release, which asks for whichever is next.
    redis.RedisError if Redis is away; TimeoutError if reading takes longer than HELD_SECONDS.
    """
    deadline = time.monotonic() + HELD_SECONDS
    held: set[tuple[str, int | None]] = set()
    for queue in queues:
        # Messages come in at the front, where reading starts. So paging passes none over, whatever
        # comes and goes meanwhile.
        for start in itertools.count(0, PAGE_MESSAGES):
            messages = client.lrange(queue, start, start + PAGE_MESSAGES - 1)
            held.update(ours for ours in map(_held, messages) if ours is not None)
            if len(messages) < PAGE_MESSAGES:
                break
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{queue} holds more messages than can be read in {HELD_SECONDS} s."
                )
    return held


def attempt_of(headers: Mapping[str, object]) -> int | None:
    """The attempt that a message asks for.

    None for whichever is next: the message names none, or no attempt has such a number.
    """
    number = headers.get("attempt")
    return number if isinstance(number, int) and 0 < number <= MAX_ATTEMPT else None


def _held(message: bytes | str) -> tuple[str, int | None] | None:
    try:
        headers = json.loads(message)["headers"]
        return str(headers["id"]), attempt_of(headers)
    except (ValueError, LookupError, TypeError):
        # Not ours. Whoever put it there, the search for lost messages goes on.
        return None
