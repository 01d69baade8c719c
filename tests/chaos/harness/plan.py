"""What one round does to Fluoro, as data drawn from the seed and the round's number.

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
COSTLY_SHARE: Final = 0.4
"""Share of rounds in which a whole worker is lost and a lease has to expire.

The others are over in half the time.
"""
FREEZE_SHARE: Final = 0.08
"""Share of the costly rounds in which a process is stopped beyond the lease, instead of killed."""
LONG_SHARE: Final = 0.12
"""Share of the faults of `_LONG` that outlast every deadline of a statement."""
LONG_SECONDS: Final = (11.0, 13.0)
ENDLESS_EVERY: Final = 50
"""One round of so many has a store that answers nobody for `ENDLESS_SECONDS`.

That is longer than a process may be without a sign of life.
"""
ENDLESS_SECONDS: Final = (62.0, 65.0)

GATEWAYS: Final = ("gateway-1", "gateway-2")
SCHEDULERS: Final = ("scheduler-1", "scheduler-2")
PREFORK_WORKERS: Final = ("dicom-prefork", "export-prefork-1", "export-prefork-2")
WORKERS: Final = (*PREFORK_WORKERS, "dicom-threads")
QUEUES: Final = ("dicom", "export")


class Store(StrEnum):
    """What Fluoro keeps things in."""

    POSTGRES = "postgres"
    VALKEY = "valkey"
    BLOBS = "blobs"


class Kind(StrEnum):
    """A fault. Those of the second part befall a store; `STORE_FAULTS` says which befall which."""

    KILL_WORKER = "kill_worker"
    KILL_WORKER_MAIN = "kill_worker_main"
    FREEZE = "freeze"
    KILL_CHILD = "kill_child"
    KILL_GATEWAY = "kill_gateway"
    KILL_SCHEDULER = "kill_scheduler"
    SHORT_STOP = "short_stop"
    DRAIN_WORKER = "drain_worker"
    WRONG_CLOCK = "wrong_clock"
    FLUSHALL = "flushall"
    DROP_MESSAGES = "drop_messages"
    DUPLICATE_MESSAGES = "duplicate_messages"

    KILLED = "killed"
    RESTARTED = "restarted"
    WIPED = "wiped"
    STOPPED = "stopped"
    DEAF = "deaf"
    HALF_OPEN = "half_open"
    SLOW = "slow"
    RESET = "reset"
    READ_ONLY = "read_only"
    FULL = "full"
    AWAY = "away"
    FAILED_OVER = "failed_over"


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
    """at_seconds: after the round's start.

    seconds: how long it lasts, or the killed stays down. target: a service, store or queue.

    count: messages, or which child. amount: of a slow store, seconds that each piece of an answer
    takes longer; of a clock, its offset.
    """

    at_seconds: float
    kind: Kind
    target: str = ""
    seconds: float = 0
    count: int = 0
    amount: float = 0

    @property
    def name(self) -> str:
        """What figures call it: `half_open_postgres`, `kill_worker`."""
        return f"{self.kind}_{self.target}" if self.of_store else str(self.kind)

    @property
    def of_store(self) -> bool:
        """Whether it befalls a store."""
        return any(kind is self.kind for _, kind in STORE_FAULTS)


@dataclass(frozen=True, slots=True)
class Watch:
    """A watcher.

    after_seconds: since the accept. break_after: messages after which it hangs up and resumes by
    cursor; 0 for never.
    """

    after_seconds: float
    break_after: int


@dataclass(frozen=True, slots=True)
class Work:
    """A job to submit.

    run_seconds: how long each step sleeps. cancel_after_seconds: since its accept.
    """

    at_seconds: float
    shape: Shape
    run_seconds: float
    queue: str
    cancel_after_seconds: float
    watches: Sequence[Watch]


@dataclass(frozen=True, slots=True)
class Round:
    """noops: empty jobs, submitted as fast as they are taken, that keep the workers busy."""

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
        told = (
            f"{f.at_seconds:.1f}s {f.kind}{f'({f.target})' if f.target else ''} {f.seconds:.1f}s"
            for f in self.faults
        )
        jobs = f"{len(self.works)} jobs, {self.noops} no-ops"
        return f"round {self.number} [{self.digest}]: {jobs}; {', '.join(told)}"


STORE_FAULTS: Final[dict[tuple[Store, Kind], tuple[float, float]]] = {
    (Store.POSTGRES, Kind.KILLED): (0, 1),
    (Store.POSTGRES, Kind.RESTARTED): (0, 1),
    (Store.POSTGRES, Kind.STOPPED): (1, 6),
    (Store.POSTGRES, Kind.DEAF): (1, 6),
    (Store.POSTGRES, Kind.HALF_OPEN): (1, 6),
    (Store.POSTGRES, Kind.SLOW): (2, 5),
    (Store.POSTGRES, Kind.RESET): (1, 3),
    (Store.POSTGRES, Kind.READ_ONLY): (1, 5),
    (Store.POSTGRES, Kind.FAILED_OVER): (0, 2),
    (Store.VALKEY, Kind.KILLED): (0, 2),
    (Store.VALKEY, Kind.WIPED): (0, 2),
    (Store.VALKEY, Kind.STOPPED): (1, 6),
    (Store.VALKEY, Kind.HALF_OPEN): (1, 6),
    (Store.VALKEY, Kind.SLOW): (2, 5),
    (Store.VALKEY, Kind.RESET): (1, 3),
    (Store.VALKEY, Kind.READ_ONLY): (1, 5),
    (Store.VALKEY, Kind.FULL): (1, 5),
    (Store.BLOBS, Kind.AWAY): (0.3, 4),
    (Store.BLOBS, Kind.READ_ONLY): (1, 5),
    (Store.BLOBS, Kind.FULL): (1, 5),
}
"""Which store fails in which manner, and for how many seconds."""
_LONG: Final = {
    (Store.POSTGRES, Kind.STOPPED),
    (Store.POSTGRES, Kind.HALF_OPEN),
    (Store.VALKEY, Kind.STOPPED),
}
_SLOW_SECONDS: Final = (0.05, 0.3)
_CLOCK_OFFSETS: Final = (3_600.0, -86_400.0)

_CHEAP: Final = (
    Kind.KILL_CHILD,
    Kind.KILL_GATEWAY,
    Kind.KILL_SCHEDULER,
    Kind.SHORT_STOP,
    Kind.DRAIN_WORKER,
    Kind.WRONG_CLOCK,
    Kind.FLUSHALL,
    Kind.DROP_MESSAGES,
    Kind.DUPLICATE_MESSAGES,
)
_TARGETS: Final[dict[Kind, Sequence[str]]] = {
    Kind.KILL_WORKER: WORKERS,
    Kind.KILL_WORKER_MAIN: PREFORK_WORKERS,
    Kind.FREEZE: (*WORKERS, *GATEWAYS, *SCHEDULERS),
    Kind.KILL_CHILD: PREFORK_WORKERS,
    Kind.SHORT_STOP: (*WORKERS, *GATEWAYS, *SCHEDULERS),
    Kind.DRAIN_WORKER: WORKERS,
    Kind.WRONG_CLOCK: WORKERS,
    Kind.KILL_GATEWAY: GATEWAYS,
    Kind.KILL_SCHEDULER: SCHEDULERS,
    Kind.DROP_MESSAGES: QUEUES,
    Kind.DUPLICATE_MESSAGES: QUEUES,
}
_LASTS: Final[dict[Kind, tuple[float, float]]] = {
    Kind.FREEZE: (LEASE_SECONDS + 1.5, LEASE_SECONDS + 3),
    Kind.SHORT_STOP: (0.5, 4),
    Kind.WRONG_CLOCK: (4, 7),
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
"""How often each is drawn, against the others.

The last three cost a pool child each time, which takes seconds to start.
"""
_PREFORK_ONLY: Final = {Shape.DIES_ONCE, Shape.POISON, Shape.SPINS}
"""They need a pool child that can be lost."""


def make_round(seed: int, number: int) -> Round:
    """The plan of a round; the same for the same arguments, always."""
    rng = random.Random(f"{seed}:{number}")
    faults = sorted(
        (*_draw_store_faults(rng, seed, number), *_draw_faults(rng)),
        key=lambda fault: fault.at_seconds,
    )
    works = sorted(
        (_draw_work(rng) for _ in range(rng.randint(12, 20))), key=lambda work: work.at_seconds
    )
    return Round(seed, number, works, rng.randint(60, 200), faults)


def _draw_store_faults(rng: random.Random, seed: int, number: int) -> list[Fault]:
    """Two cards of a deck that is shuffled when it is used up: a few rounds meet every one."""
    deck = list(STORE_FAULTS)
    rounds = len(deck) // 2
    random.Random(f"{seed}:{number // rounds}").shuffle(deck)
    if (number + seed) % ENDLESS_EVERY == ENDLESS_EVERY - 1:
        return [
            _fault(rng, rng.choice((Kind.STOPPED, Kind.HALF_OPEN)), Store.POSTGRES, ENDLESS_SECONDS)
        ]
    faults: list[Fault] = []
    for store, kind in deck[2 * (number % rounds) :][:2]:
        long = (store, kind) in _LONG and rng.random() < LONG_SHARE
        faults.append(_fault(rng, kind, store, LONG_SECONDS if long else STORE_FAULTS[store, kind]))
    return faults


def _draw_faults(rng: random.Random) -> list[Fault]:
    kinds = rng.sample(_CHEAP, rng.randint(0, 3))
    if rng.random() < COSTLY_SHARE:
        if rng.random() < FREEZE_SHARE:
            # The rest must leave processes alone: a lock per target would make the round longer
            # still.
            kinds = [Kind.FREEZE, *(kind for kind in kinds if kind not in _TARGETS)]
        else:
            kinds += rng.choices(
                (Kind.KILL_WORKER, Kind.KILL_WORKER_MAIN), (3, 1), k=rng.randint(1, 3)
            )
    return [
        _fault(rng, kind, rng.choice(_TARGETS.get(kind, ("",))), _LASTS.get(kind, (0, 1)))
        for kind in kinds
    ]


def _fault(rng: random.Random, kind: Kind, target: str, lasts: tuple[float, float]) -> Fault:
    amount = round(rng.uniform(*_SLOW_SECONDS), 3) if kind is Kind.SLOW else 0
    return Fault(
        at_seconds=round(rng.uniform(0.2, WINDOW_SECONDS), 2),
        kind=kind,
        target=target,
        seconds=round(rng.uniform(*lasts), 2),
        count=rng.randint(1, 4),
        amount=rng.choice(_CLOCK_OFFSETS) if kind is Kind.WRONG_CLOCK else amount,
    )


def _draw_work(rng: random.Random) -> Work:
    (shape,) = rng.choices(list(_SHAPES), list(_SHAPES.values()))
    watches = [
        Watch(round(rng.uniform(0, 2), 2), rng.choice((0, 0, 1, 2, 4)))
        for _ in range(rng.choice((0, 1, 1, 2)))
    ]
    return Work(
        at_seconds=round(rng.uniform(0, WINDOW_SECONDS), 2),
        shape=shape,
        run_seconds=round(rng.choice((0.05, 0.2, 0.5, 1.0)) * rng.random(), 3),
        queue="export" if shape in _PREFORK_ONLY else rng.choice(QUEUES),
        cancel_after_seconds=round(rng.uniform(0, 1.5), 2),
        watches=watches,
    )
