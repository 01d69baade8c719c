"""Hurts a whole Fluoro in seeded rounds, and looks for broken promises after each.

    python tests/chaos/run.py --rounds 20 --seed 7

The same seed makes the same plan of faults; what runs is told on standard error, findings and
figures on standard output as JSON lines. `--first N --rounds 1` plays round N alone. Exits with 1
if there is any finding. Bounded: ends with what it has after `--minutes`.

Last line: lost, duplicated and so on count findings (audit.py says what they mean). `stalls` has
for each kind of fault how many seconds anything waited at most that could have gone on, after the
last fault of a round with one of them; `stalls_during` the same before that. `ratio` is Fluoro's
lost jobs per SIGKILL of one of its processes over stock Celery's lost tasks per SIGKILL of its
worker; 0 when Fluoro lost none, null when only Fluoro lost any.
"""

import argparse
import asyncio
import json
import logging
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg
from audit import ENDS, KINDS, Finding, audit
from fluoro_client import AsyncClient
from fluoro_jobs.ids import new_id
from harness import faults, record
from harness.deployment import Deployment, until
from harness.disk import enter_namespace
from harness.load import OWNER, Load
from harness.plan import Kind, Round, Store, make_round
from harness.pulse import Pulse, judge, longest
from harness.stock import Stock

REST_SECONDS: Final = 120
"""How long after the last fault everything may take to end: a lease, a back-off, and room."""
WATCHERS_SECONDS: Final = 20
"""How long after that watchers may take to see it."""
CANCEL_SECONDS: Final = 6
"""How long something may compute on after a cancel: a heartbeat, if Redis did not pass the word.

A worker that a fault kept from hearing it hears it a heartbeat later.
"""
STATEMENT_SECONDS: Final = 11
"""How long a heartbeat may hang on a dead connection, and the pause before the next try."""
PROBE_AFTER_SECONDS: Final = 2
"""How long after the last fault calls are measured."""
LATE_SECONDS: Final = 0.5
"""How long what should not compute is given to show itself once the gate is open."""


@dataclass(slots=True)
class Score:
    """What all rounds together came to."""

    rounds: int = 0
    accepted: int = 0
    kills: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    stalls: dict[str, float] = field(default_factory=dict)
    stalls_during: dict[str, float] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


class Run:
    """One deployment, its clients, and the peer, through all rounds."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self._arguments = arguments
        self._folder = folder
        self._fluoro = Deployment(folder)
        self._score = Score()
        for name in ("rounds", "stock"):
            (folder / name).mkdir()
        self._stock = Stock(folder / "stock", arguments.seed) if arguments.stock else None

    async def play(self) -> dict[str, Any]:
        """All rounds; the figures."""
        deadline = time.monotonic() + 60 * self._arguments.minutes
        with ExitStack() as stack:
            stack.callback(self._fluoro.stop)
            await asyncio.to_thread(self._fluoro.start)
            if self._stock:
                stack.callback(self._stock.stop)
                await asyncio.to_thread(self._stock.start)
            watchdog = asyncio.create_task(self._fluoro.watchdog())
            async with AsyncClient(
                self._fluoro.endpoint, owner=OWNER, deadline_seconds=10, patience_seconds=90
            ) as client:
                for number in range(
                    self._arguments.first, self._arguments.first + self._arguments.rounds
                ):
                    if time.monotonic() > deadline:
                        tell("Out of time.")
                        break
                    await self._round(client, make_round(self._arguments.seed, number))
            watchdog.cancel()
            drained = await asyncio.to_thread(self._stock.drain) if self._stock else (0, 0)
        return self._figures(*drained)

    async def _round(self, client: AsyncClient, plan: Round) -> None:
        tell(str(plan))
        began = time.monotonic()
        late = await self._fluoro.ready()
        findings = [Finding("stuck", name, "The process did not become ready.") for name in late]
        folder = self._folder / "rounds" / str(plan.number)
        folder.mkdir()
        load = Load(client, plan, folder)
        strike = asyncio.create_task(asyncio.to_thread(self._stock.strike)) if self._stock else None
        started = time.monotonic()
        with Pulse(lambda: self._fluoro.postgres.url, new_id(), self._fluoro.living) as pulse:
            done = await self._hurt(load, plan, started)
            names = [each.name for each in load.records if each.name]
            await until(lambda: self._at_rest(names), REST_SECONDS, 0.2)
            rest = time.monotonic()
        mended = max(each.ended for each in done)
        await load.watched(await asyncio.to_thread(self._last_sequences, names), WATCHERS_SECONDS)
        await asyncio.sleep(max(0, _heard(done, load.last_cancel) - time.monotonic()))
        load.gate.touch()
        await asyncio.sleep(LATE_SECONDS)
        findings += await asyncio.to_thread(
            audit, self._fluoro.postgres.url, self._fluoro.blob_url, load.records
        )
        waits = [*load.calls, *pulse.waits]
        during, stall = (longest(waits, *span) for span in ((started, mended), (mended, rest)))
        findings += judge(stall, pulse.unhealthy, self._fluoro.exits)
        self._fluoro.exits.clear()
        if strike:
            await strike
        record.write(self._folder / "records.jsonl", load.records)
        self._note(plan, load, findings, (during[0], stall[0]))
        seconds = {
            "until_mended": mended - started,
            "until_rest": rest - mended,
            "all": time.monotonic() - began,
        }
        told = {
            "accepted": len(names),
            "seconds": seconds,
            "stall": stall,
            "stall_during": during,
            "findings": len(findings),
        }
        say("round", number=plan.number, plan=plan.digest, **told)

    async def _hurt(self, load: Load, plan: Round, started: float) -> list[faults.Done]:
        """Load, probes and faults at once, until all are over."""
        over = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            probe = group.create_task(load.probe(over))
            group.create_task(load.play(started))
            done = await faults.play(self._fluoro, plan, started)
            await asyncio.sleep(PROBE_AFTER_SECONDS)
            over.set()
            await probe
        return done

    def _at_rest(self, names: list[str]) -> bool:
        ids = [name.removeprefix("jobs/") for name in names]
        with psycopg.connect(self._fluoro.postgres.url) as connection:
            query = (
                "SELECT NOT EXISTS"
                " (SELECT FROM jobs WHERE id = ANY(%s::uuid[]) AND NOT state = ANY(%s))"
            )
            row = connection.execute(query, (ids, list(ENDS))).fetchone()
        return bool(row and row[0])

    def _last_sequences(self, names: list[str]) -> dict[str, int]:
        with psycopg.connect(self._fluoro.postgres.url) as connection:
            query = "SELECT 'jobs/' || id, last_sequence FROM jobs WHERE 'jobs/' || id = ANY(%s)"
            return dict(connection.execute(query, (names,)).fetchall())

    def _note(
        self, plan: Round, load: Load, findings: list[Finding], stalls: tuple[float, float]
    ) -> None:
        """stalls: seconds of the longest while the round's faults lasted, and after that."""
        score = self._score
        score.rounds += 1
        score.accepted += sum(bool(each.name) for each in load.records)
        score.kills += sum(fault.kind in faults.KILLS for fault in plan.faults)
        score.faults.update(fault.name for fault in plan.faults)
        for name in {fault.name for fault in plan.faults}:
            for longest_so_far, seconds in zip(
                (score.stalls_during, score.stalls), stalls, strict=True
            ):
                longest_so_far[name] = max(longest_so_far.get(name, 0), seconds)
        score.findings += findings
        with (self._folder / "findings.jsonl").open("a") as file:
            for finding in findings:
                told = {"round": plan.number} | asdict(finding)
                say("finding", **told)
                file.write(json.dumps(told) + "\n")
        if findings:
            arguments = self._arguments
            tell(
                f"Replay: python tests/chaos/run.py --seed {arguments.seed} "
                f"--first {plan.number} --rounds 1"
            )
            tell(
                f"    or: python tests/chaos/run.py --seed {arguments.seed} "
                f"--first {arguments.first} --rounds {score.rounds}"
            )

    def _figures(self, stock_lost: int, stock_twice: int) -> dict[str, Any]:
        score, stock = self._score, self._stock
        counts = Counter(finding.kind for finding in score.findings)
        figures: dict[str, Any] = {
            "rounds": score.rounds,
            "seed": self._arguments.seed,
            "accepted": score.accepted,
        }
        figures |= {kind: counts[kind] for kind in KINDS} | {
            "kills": score.kills,
            "faults": dict(score.faults),
        }
        figures |= {"stalls": score.stalls, "stalls_during": score.stalls_during}
        if stock:
            lost, theirs = counts["lost"] / max(1, score.kills), stock_lost / max(1, stock.kills)
            ratio = 0.0 if not lost else (lost / theirs if theirs else None)
            figures |= {
                "stock_celery_published": stock.published,
                "stock_celery_kills": stock.kills,
            }
            figures |= {
                "stock_celery_lost": stock_lost,
                "stock_celery_twice": stock_twice,
                "ratio": ratio,
            }
        return figures


def _heard(done: Sequence[faults.Done], last_cancel: float) -> float:
    """When every worker should know of every cancel, in seconds of time.monotonic()."""
    kept = [
        each
        for each in done
        if each.fault.kind in faults.DEAFENS
        and each.fault.target not in {Store.VALKEY, Store.BLOBS}
    ]
    hanging = [each.ended + STATEMENT_SECONDS for each in kept if each.fault.kind is Kind.HALF_OPEN]
    return max([last_cancel, *(each.ended for each in kept), *hanging]) + CANCEL_SECONDS


def say(name: str, **figures: object) -> None:
    """One JSON line."""
    print(json.dumps({"name": name} | figures, default=str), flush=True)


def tell(text: str) -> None:
    """A line for people."""
    print(text, file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--minutes", type=float, default=60, help="no round begins after this")
    parser.add_argument("--plan", action="store_true", help="print the plan and do nothing")
    parser.add_argument(
        "--no-stock", dest="stock", action="store_false", help="without the comparison"
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="keep the folder with logs and records also when nothing was found",
    )
    return parser.parse_args()


def main() -> None:
    """The program. SIGTERM ends it and everything it started, as Ctrl-C does."""
    arguments = parse()
    if arguments.plan:
        for number in range(arguments.first, arguments.first + arguments.rounds):
            say("plan", **asdict(make_round(arguments.seed, number)))
        return
    enter_namespace()
    logging.getLogger("fluoro_client").setLevel(
        logging.ERROR
    )  # that connections break off is the point
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # Not in a folder that is ours alone: PostgreSQL runs as another user when we are root.
    folder = Path(tempfile.mkdtemp(prefix="fluoro-chaos-"))
    figures: dict[str, Any] = {}
    try:
        figures = asyncio.run(Run(arguments, folder).play())
    finally:
        clean = bool(figures) and not any(figures[kind] for kind in KINDS)
        if clean and not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            tell(f"Logs and records are in {folder}.")
    say("chaos", **figures)
    sys.exit(not clean)


if __name__ == "__main__":
    main()
