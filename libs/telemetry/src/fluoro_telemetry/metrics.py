"""Every metric of Fluoro, declared once: `metrics.TASKS_DISPATCHED.labels(queue="ml").inc()`.

Names follow https://prometheus.io/docs/practices/naming/. A label's values form a small closed set:
a queue, an operation, a code. Jobs and owners belong in logs, and Prometheus itself adds the
instance. `python -m fluoro_telemetry.document` prints the table for the documentation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

# A `_created` series beside each counter would double what is scraped, and `rate()` does not need
# it.
disable_created_metrics()  # type: ignore[no-untyped-call]  # untyped in prometheus_client


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One line of the table.

    kind: counter, gauge or histogram. name: as exposed. buckets: upper bounds of a histogram, in
    the unit of its name.
    """

    kind: str
    name: str
    meaning: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...] = ()


SPECS: Final[list[MetricSpec]] = []
"""All metrics, in the order of their declaration."""

_RPC_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_TASK_SECONDS: Final = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
_BATCH: Final = (1, 2, 4, 8, 16, 32, 64, 128)


def _counter(name: str, meaning: str, *labels: str) -> Counter:
    SPECS.append(MetricSpec("counter", name, meaning, labels))
    return Counter(name, meaning, labels)


def _gauge(name: str, meaning: str, *labels: str) -> Gauge:
    SPECS.append(MetricSpec("gauge", name, meaning, labels))
    return Gauge(name, meaning, labels)


def _histogram(name: str, meaning: str, *labels: str, buckets: Sequence[float]) -> Histogram:
    SPECS.append(MetricSpec("histogram", name, meaning, labels, tuple(buckets)))
    return Histogram(name, meaning, labels, buckets=buckets)


# Jobs
JOBS_ACCEPTED: Final = _counter(
    "fluoro_jobs_accepted_total",
    "Jobs durably accepted; a repeated request_id is not counted again.",
)
JOBS_FINISHED: Final = _counter(
    "fluoro_jobs_finished_total", "Jobs that reached a terminal state.", "state"
)
SUBMIT_SECONDS: Final = _histogram(
    "fluoro_submit_seconds", "Time from the request to the durable accept.", buckets=_RPC_SECONDS
)
GROUP_COMMIT_BATCH_SIZE: Final = _histogram(
    "fluoro_group_commit_batch_jobs", "Jobs that shared one accepting transaction.", buckets=_BATCH
)

# Gateway
RPC_REQUESTS: Final = _counter(
    "fluoro_rpc_requests_total", "Finished calls by method and gRPC status code.", "method", "code"
)
RPC_SECONDS: Final = _histogram(
    "fluoro_rpc_seconds",
    "Duration of unary calls; streams last as long as a client likes.",
    "method",
    buckets=_RPC_SECONDS,
)
CALLS_REFUSED: Final = _counter(
    "fluoro_calls_refused_total", "Calls over a limit of their owner, by the limit.", "limit"
)
RATES_SHARED: Final = _gauge(
    "fluoro_rates_shared",
    "1 while calls of owners with a rate are counted over all gateways, 0 while each counts alone "
    "because Redis is away or slow.",
)
WATCH_STREAMS: Final = _gauge("fluoro_watch_streams", "Watch streams that are open.")
EVENTS_DELIVERED: Final = _counter(
    "fluoro_events_delivered_total", "Durable events sent on watch streams."
)
WAKEUPS_HEARD: Final = _counter(
    "fluoro_wakeups_heard_total",
    "Wake-ups that reached a gateway, its own included. watched: whether somebody there watches "
    "their job or owner.",
    "watched",
)
WAKEUPS_DROPPED: Final = _counter(
    "fluoro_wakeups_dropped_total", "Wake-ups dropped because too many waited for Redis.", "kind"
)
BLOB_BYTES_RECEIVED: Final = _counter(
    "fluoro_blob_received_bytes_total", "Bytes of blobs uploaded by clients."
)
BLOB_BYTES_SENT: Final = _counter(
    "fluoro_blob_sent_bytes_total", "Bytes of blobs downloaded by clients."
)
BLOBS_COLLECTED: Final = _counter(
    "fluoro_blobs_collected_total",
    "Blobs without a record that were deleted, and unfinished files.",
)
BLOB_BYTES_COLLECTED: Final = _counter(
    "fluoro_blob_collected_bytes_total", "Bytes of the blobs without a record that were deleted."
)

# Every service
CLOCK_OFFSET_SECONDS: Final = _gauge(
    "fluoro_clock_offset_seconds",
    "How far this machine's clock is ahead of PostgreSQL's; measured every half minute.",
)

# Tasks
TASKS_DISPATCHED: Final = _counter(
    "fluoro_tasks_dispatched_total",
    "Tasks handed to Celery, again after a lost message too.",
    "queue",
)
TASK_ATTEMPTS_FINISHED: Final = _counter(
    "fluoro_task_attempts_finished_total",
    "Attempts that ended, by outcome.",
    "operation",
    "outcome",
)
WORKER_PAUSED: Final = _gauge(
    "fluoro_worker_paused",
    "1 while this worker takes no tasks, because a store that they need does not answer.",
)
TASK_RUN_SECONDS: Final = _histogram(
    "fluoro_task_run_seconds",
    "Time from the claim of an attempt to its end.",
    "operation",
    buckets=_TASK_SECONDS,
)
TASK_WAIT_SECONDS: Final = _histogram(
    "fluoro_task_wait_seconds", "Time from READY to the claim.", "operation", buckets=_TASK_SECONDS
)
LEASE_RENEWALS: Final = _counter(
    "fluoro_lease_renewals_total", "Leases renewed by a worker's heartbeat."
)
LEASES_EXPIRED: Final = _counter(
    "fluoro_leases_expired_total", "Leases that ran out, so that the task was taken back."
)

# Queues, as the ledger has them. Every scheduler exposes the same figures: take max, not sum.
QUEUE_TASKS: Final = _gauge(
    "fluoro_queue_tasks",
    "Tasks that are not finished, by state; WAITING for those whose time has not come.",
    "queue",
    "state",
)
QUEUE_HELD_TASKS: Final = _gauge(
    "fluoro_queue_held_tasks",
    "Ready tasks that are held back, because no worker of the queue knows their operation.",
    "queue",
)
QUEUE_BACKLOG_SECONDS: Final = _gauge(
    "fluoro_queue_backlog_seconds",
    "Ready, queued and running work over the queue's capacity; KEDA scales on it.",
    "queue",
)
QUEUE_OLDEST_READY_AGE_SECONDS: Final = _gauge(
    "fluoro_queue_oldest_ready_age_seconds",
    "How long the oldest claimable task has waited.",
    "queue",
)
WORKERS: Final = _gauge("fluoro_workers", "Worker processes with a live heartbeat.", "queue")
WORKER_SLOTS: Final = _gauge(
    "fluoro_worker_slots", "Attempts those workers can run at once.", "queue"
)
SWEEPS: Final = _counter("fluoro_sweeps_total", "Rows changed by the scheduler's sweeps.", "action")
SWEEP_FAILURES: Final = _counter(
    "fluoro_sweep_failures_total",
    "Jobs, or whole parts of a round, that a sweep could not deal with: a bug, or a broken job.",
    "action",
)
LEDGER_REFUSALS: Final = _counter(
    "fluoro_ledger_refusals_total",
    "Uses of the ledger that PostgreSQL did not carry out, by reason.",
    "reason",
)

# Models: runs of samples of several jobs together. model: the name that its manifest has.
MODEL_RUN_SAMPLES: Final = _histogram(
    "fluoro_model_run_samples",
    "Samples that ran together, filling not counted.",
    "model",
    buckets=_BATCH,
)
MODEL_FILLING_SAMPLES: Final = _counter(
    "fluoro_model_filling_samples_total",
    "Samples that filled runs up to a size of the ladder, and whose outputs nobody wants.",
    "model",
)
MODEL_WAIT_SECONDS: Final = _histogram(
    "fluoro_model_wait_seconds",
    "Time from when samples were prepared to the run that showed them to the model.",
    "model",
    buckets=_RPC_SECONDS,
)
MODEL_RUN_SECONDS: Final = _histogram(
    "fluoro_model_run_seconds",
    "Duration of a run that went well.",
    "model",
    buckets=(*_RPC_SECONDS, 30, 60, 300),
)
MODEL_RUNS_FAILED: Final = _counter(
    "fluoro_model_runs_failed_total",
    "Runs that did not go well: failed, invalid, out_of_memory, timeout, or left by all callers.",
    "model",
    "cause",
)
