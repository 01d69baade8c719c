"""Every setting of Celery, for those who send and those who consume.

Never used: eta, countdown, `retry()`, canvas, result backend, revoke. Delays, edges and results are
in the ledger. docs/architecture.md §7 says what each setting is for.
"""

from typing import Final

from celery import Celery

from fluoro_jobs.celery.transport import URL_OPTION, Transport
from fluoro_jobs.redis_url import HEALTH_CHECK_SECONDS, RedisServer

CHILD_START_SECONDS: Final = 60
"""How long a pool child may take to start before it is killed and another one started."""


def configure(app: Celery, redis_url: str) -> None:
    """Sets an app up. ValueError for a URL of an unknown kind."""
    host, port = RedisServer.from_url(redis_url).hosts[0]
    app.conf.update(
        # For Celery's log. The transport's option has the whole URL, with its password.
        broker_url=f"redis://{f'[{host}]' if ':' in host else host}:{port}",
        broker_transport=Transport,
        # Redis gets no acknowledgements (`no_ack` in tasks.py). Celery's late one is how we learn
        # that a slot is free (ADR 0012).
        task_acks_late=True,
        # A killed child's message is acknowledged: the ledger says what happens next, and counts.
        task_reject_on_worker_lost=False,
        # Results are in the ledger.
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        # No pickle: what is unpickled can run code.
        task_serializer="json",
        accept_content=["json"],
        # A worker takes a message when it has a slot for it, not before.
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        # The ledger lists the live workers.
        worker_send_task_events=False,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        # gRPC, obstore and CUDA do not survive a fork.
        worker_pool_start_method="spawn",
        # Celery kills a child that is not up after 4 s. A spawned one imports everything anew: a
        # busy machine would kill and start it for ever.
        worker_proc_alive_timeout=CHILD_START_SECONDS,
        # Work goes on while Redis is away: a commit does not need it.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # A worker outlives any absence of Redis, also at its start.
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # An error that Redis answers is no reason to end the worker either.
        broker_channel_error_retry=True,
        broker_pool_acquire_timeout=2,
        broker_transport_options={
            # One list per queue: priority is the ledger's.
            "priority_steps": [0],
            "health_check_interval": HEALTH_CHECK_SECONDS,
            # A sender does not wait for a Redis that is away. Celery's consumer passes a number of
            # its own, and tries for ever.
            "max_retries": 0,
            URL_OPTION: redis_url,
        },
    )
