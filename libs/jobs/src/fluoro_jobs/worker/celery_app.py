"""The one place that sets Celery up, for those who publish and those who consume.

Celery carries wake-ups: its message names a task of the ledger and nothing else. What is not used,
and never may be: eta, countdown, `retry()`, canvas, result backend, revoke. docs/architecture.md §7
says what each setting is for.
"""

from typing import Final

from celery import Celery

from fluoro_jobs.redis_url import HEALTH_CHECK_SECONDS, RedisServer
from fluoro_jobs.worker import broker

CHILD_START_SECONDS: Final = 60
"""How long a pool child may take to start before it is killed and another one started."""


def make_app(redis_url: str, main: str = "fluoro") -> Celery:
    """A Celery app without tasks. Workers register theirs; publishers need none."""
    app = Celery(main, set_as_current=False, amqp=broker.Amqp)
    configure(app, redis_url)
    return app


def configure(app: Celery, redis_url: str) -> None:
    """Every setting that matters, for all apps alike. ValueError for a URL of an unknown kind."""
    host, port = RedisServer.from_url(redis_url).hosts[0]
    app.conf.update(
        broker_url=f"redis://{f'[{host}]' if ':' in host else host}:{port}",  # for Celery's log; the options have the whole one
        broker_transport=broker.Transport,
        task_acks_late=True,
        # A killed child's message is acknowledged: the ledger says what happens next, and counts.
        task_reject_on_worker_lost=False,
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_serializer="json",
        accept_content=["json"],
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_send_task_events=False,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_pool_start_method="spawn",
        # Celery kills a child that is not up after 4 s; a spawned one imports everything anew, and
        # a busy machine would start it for ever.
        worker_proc_alive_timeout=CHILD_START_SECONDS,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # An error that Redis answers is no reason to end either.
        broker_channel_error_retry=True,
        broker_pool_acquire_timeout=2,
        broker_transport_options={
            "priority_steps": [0],
            "health_check_interval": HEALTH_CHECK_SECONDS,
            # Who publishes does not wait for a Redis that is away. Celery's consumer brings a
            # number of its own, without end.
            "max_retries": 0,
            broker.URL_OPTION: redis_url,
        },
    )
