"""What one round does to Fluoro, as data: drawn up front from the seed and the round's number, so that it can be played again alone.

Playing it has timing jitter; the plan has none.
"""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Final

WINDOW_SECONDS: Final = 3.5
"""Submits and faults begin within this time of a round."""
LEASE_SECONDS: Final = 15
"""`fluoro_jobs.ledger.attempts.LEASE_SECONDS`: what a round with a lost worker has to wait for."""
COSTLY_SHARE: Final = 0.5
"""Share of rounds in which a whole worker is lost and a lease has to expire. The others are over in half the time."""
LONG_STOP_SHARE: Final = 0.08
"""Share of the costly rounds in which a worker is stopped beyond its lease, instead of killed."""

PREFORK_WORKERS: Final = ("dicom-prefork", "export-prefork")
WORKERS: Final = (*PREFORK_WORKERS, "dicom-threads")
QUEUES: Final = ("dicom", "export")


class Kind(StrEnum):
    """A fault."""

    KILL_WORKER = "kill_worker"
    KILL_WORKER_MAIN = "kill_worker_main"
    LONG_STOP = "long_stop"
    KILL_CHILD = "kill_child"
    KILL_GATEWAY = "kill_gateway"
    KILL_SCHEDULER = "kill_scheduler"
    SHORT_STOP = "short_stop"
    DRAIN_WORKER = "drain_worker"
    FLUSHALL = "flushall"
    KILL_VALKEY = "kill_valkey"
    WIPE_VALKEY = "wipe_valkey"
    RESTART_POSTGRES = "restart_postgres"
    KILL_POSTGRES = "kill_postgres"
    BLOB_OUTAGE = "blob_outage"
    DROP_MESSAGES = "drop_messages"
    DUPLICATE_MESSAGES = "duplicate_messages"


class Shape(StrEnum):
    """What a job is made of and how it has to end."""

    QUICK = "quick"
    SLOW = "slow"
    CHAIN = "chain"
    DIES_ONCE = "dies_once"
    POISON = "poison"
    FAILS = "fails"
    RETRIED = "retried"
    CANCELLED = "cancelled"
    SPINS = "spins"
    NOOP = "noop"


@dataclass(frozen=True, slots=True)
class Fault:
    """at_seconds: after the round's start. seconds: how long it lasts, or the killed stays down. count: messages, or which child."""

    at_seconds: float
    kind: Kind
    target: str = ""
    seconds: float = 0
    count: int = 0


@dataclass(frozen=True, slots=True)
class Watch:
    """A watcher. after_seconds: since the accept. break_after: messages after which it hangs up and resumes by cursor; 0 for never."""

    after_seconds: float
    break_after: int


@dataclass(frozen=True, slots=True)
class Work:
    """A job to submit. run_seconds: how long each step sleeps. cancel_after_seconds: since its accept."""

    at_seconds: float
    shape: Shape
    run_seconds: float
    queue: str
    cancel_after_seconds: float
    watches: Sequence[Watch]


@dataclass(frozen=True, slots=True)
class Round:
    """noops: jobs that do nothing, submitted as fast as they are taken, to keep the workers busy when they are killed."""

    seed: int
    number: int
    works: Sequence[Work]
    noops: int
    faults: Sequence[Fault]

    @property
    def digest(self) -> str:
        """SHA-256 of the plan, shortened."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]

    def __str__(self) -> str:
        told = (f"{f.at_seconds:.1f}s {f.kind}{f'({f.target})' if f.target else ''}" for f in self.faults)
        return f"round {self.number} [{self.digest}]: {len(self.works)} jobs, {self.noops} no-ops; {', '.join(told)}"


_CHEAP: Final = (
    Kind.KILL_CHILD,
    Kind.KILL_GATEWAY,
    Kind.KILL_SCHEDULER,
    Kind.SHORT_STOP,
    Kind.DRAIN_WORKER,
    Kind.FLUSHALL,
    Kind.KILL_VALKEY,
    Kind.WIPE_VALKEY,
    Kind.RESTART_POSTGRES,
    Kind.KILL_POSTGRES,
    Kind.BLOB_OUTAGE,
    Kind.DROP_MESSAGES,
    Kind.DUPLICATE_MESSAGES,
)
_TARGETS: Final[dict[Kind, Sequence[str]]] = {
    Kind.KILL_WORKER: WORKERS,
    Kind.KILL_WORKER_MAIN: PREFORK_WORKERS,
    Kind.LONG_STOP: WORKERS,
    Kind.KILL_CHILD: PREFORK_WORKERS,
    Kind.SHORT_STOP: (*WORKERS, "gateway", "scheduler"),
    Kind.DRAIN_WORKER: WORKERS,
    Kind.KILL_GATEWAY: ("gateway",),
    Kind.KILL_SCHEDULER: ("scheduler",),
    Kind.DROP_MESSAGES: QUEUES,
    Kind.DUPLICATE_MESSAGES: QUEUES,
}
_LASTS: Final[dict[Kind, tuple[float, float]]] = {
    Kind.LONG_STOP: (LEASE_SECONDS + 1.5, LEASE_SECONDS + 3),
    Kind.SHORT_STOP: (0.5, 4),
    Kind.BLOB_OUTAGE: (0.3, 2),
    Kind.KILL_VALKEY: (0, 2),
    Kind.WIPE_VALKEY: (0, 2),
    Kind.KILL_POSTGRES: (0, 1),
}
"""Seconds; others are down for up to one."""
_SHAPES: Final[dict[Shape, int]] = {
    Shape.QUICK: 10,
    Shape.SLOW: 10,
    Shape.CHAIN: 8,
    Shape.CANCELLED: 8,
    Shape.RETRIED: 3,
    Shape.FAILS: 2,
    Shape.DIES_ONCE: 1,
    Shape.POISON: 1,
    Shape.SPINS: 1,
}
"""How often each is drawn, against the others. The last three cost a pool child each time, which takes seconds to start."""
_PREFORK_ONLY: Final = {Shape.DIES_ONCE, Shape.POISON, Shape.SPINS}
"""They need a pool child that can be lost."""


def make_round(seed: int, number: int) -> Round:
    """The plan of a round; the same for the same arguments, always."""
    rng = random.Random(f"{seed}:{number}")
    faults = sorted(_draw_faults(rng), key=lambda fault: fault.at_seconds)
    works = sorted((_draw_work(rng) for _ in range(rng.randint(12, 20))), key=lambda work: work.at_seconds)
    return Round(seed, number, works, rng.randint(60, 200), faults)


def _draw_faults(rng: random.Random) -> list[Fault]:
    kinds = rng.sample(_CHEAP, rng.randint(1, 4))
    if rng.random() < COSTLY_SHARE:
        if rng.random() < LONG_STOP_SHARE:
            # The rest must leave the stopped worker alone: a lock per target would make the round longer still.
            kinds = [Kind.LONG_STOP, *(kind for kind in kinds if WORKERS[0] not in _TARGETS.get(kind, ()))]
            return [_draw_fault(rng, kind) for kind in kinds]
        kinds += rng.choices((Kind.KILL_WORKER, Kind.KILL_WORKER_MAIN), (3, 1), k=rng.randint(1, 3))
    return [_draw_fault(rng, kind) for kind in kinds]


def _draw_fault(rng: random.Random, kind: Kind) -> Fault:
    return Fault(
        at_seconds=round(rng.uniform(0.2, WINDOW_SECONDS), 2),
        kind=kind,
        target=rng.choice(_TARGETS.get(kind, ("",))),
        seconds=round(rng.uniform(*_LASTS.get(kind, (0, 1))), 2),
        count=rng.randint(1, 4),
    )


def _draw_work(rng: random.Random) -> Work:
    (shape,) = rng.choices(list(_SHAPES), list(_SHAPES.values()))
    watches = [Watch(round(rng.uniform(0, 2), 2), rng.choice((0, 0, 1, 2, 4))) for _ in range(rng.choice((0, 1, 1, 2)))]
    return Work(
        at_seconds=round(rng.uniform(0, WINDOW_SECONDS), 2),
        shape=shape,
        run_seconds=round(rng.choice((0.05, 0.2, 0.5, 1.0)) * rng.random(), 3),
        queue="export" if shape in _PREFORK_ONLY else rng.choice(QUEUES),
        cancel_after_seconds=round(rng.uniform(0, 1.5), 2),
        watches=watches,
    )
