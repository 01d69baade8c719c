"""The one door to Celery, which carries wake-ups from the ledger to pools of processes.

A message names one attempt of one task. It says who should look now, never what is true, so it may
get lost, come twice, or come late. Whoever has work to announce uses `Sender`. A worker's main
process runs a `Consumer`; each of its pool children runs a `Body`.

Nobody outside this folder imports Celery or kombu, or any module in it but this one. ADR 0016 says
what we use of Celery, and why each work-around exists.
"""

from fluoro_jobs.celery.consumer import Consumer, received, running
from fluoro_jobs.celery.deaf import DeafWatch, SlotWatch
from fluoro_jobs.celery.messages import Message, NotSentError, Sender, held_by_redis
from fluoro_jobs.celery.tasks import (
    LEFT,
    STALE,
    UNREPORTED,
    Body,
    LedgerRequest,
    Listener,
    Options,
)

__all__ = [
    "LEFT",
    "STALE",
    "UNREPORTED",
    "Body",
    "Consumer",
    "DeafWatch",
    "LedgerRequest",
    "Listener",
    "Message",
    "NotSentError",
    "Options",
    "Sender",
    "SlotWatch",
    "held_by_redis",
    "received",
    "running",
]
