"""Whether a process is alive and ready, asked by probes and answered without ever hanging."""

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

import structlog

log = structlog.get_logger(__name__)

MESSAGE_CHARACTERS: Final = 200
"""Longest message of a failed check."""
MAX_TURN_SECONDS: Final = 120
"""A watched thread that has not ticked for that long is stuck.

It may wait for a store, so this is far above the deadline of any one call.
"""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a check found. seconds: how long it took, or has taken so far. message: "" when ok."""

    ok: bool
    seconds: float
    message: str


class _Check:
    """One check. It has at most one thread, however often it is asked and however long it hangs."""

    def __init__(self, name: str, function: Callable[[], object]) -> None:
        self.name = name
        self._function = function
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._started = self._finished = 0.0
        self._last: CheckResult | None = None

    def start(self, max_age_seconds: float) -> None:
        """Begins a run, unless one is on its way or the last is fresh."""
        with self._lock:
            fresh = self._last is not None and time.monotonic() - self._finished < max_age_seconds
            # A check that hangs has its thread already. Another one would hang beside it.
            if fresh or self._thread is not None:
                return
            self._started = time.monotonic()
            self._thread = threading.Thread(
                target=self._run, name=f"check-{self.name}", daemon=True
            )
            self._thread.start()

    def result(self, deadline: float) -> CheckResult:
        """What the run begun by `start()` found; a failure if it is not done by the deadline.

        deadline: by the monotonic clock.
        """
        thread = self._thread
        if thread is not None:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            # Under the lock: the run may have ended between the wait and this line.
            if self._thread is None and self._last is not None:
                return self._last
            seconds = time.monotonic() - self._started
        return CheckResult(
            ok=False, seconds=round(seconds, 3), message=f"no answer for {seconds:.0f} s"
        )

    def _run(self) -> None:
        message = ""
        try:
            self._function()
        except Exception as error:  # noqa: BLE001 - any error is the check's answer
            # The first line: the rest of some errors quotes a statement or a file.
            message = f"{type(error).__name__}: {error}".splitlines()[0][:MESSAGE_CHARACTERS]
        with self._lock:
            self._finished = time.monotonic()
            before, self._last = (
                self._last,
                CheckResult(not message, round(self._finished - self._started, 3), message),
            )
            self._thread = None
        # Only a change is logged; probes come every second.
        if before is None or before.ok != self._last.ok:
            (log.warning if message else log.info)(
                "check_changed", check=self.name, **asdict(self._last)
            )


class Health:
    """What a process says about itself.

    max_beat_age_seconds: a loop that has not ticked for that long is stuck, and the process should
    be restarted. check_timeout_seconds: a check that takes longer has failed; shorter than the
    probe's own timeout. cache_seconds: how long a check's result is good, so that many probes are
    one check.
    """

    def __init__(
        self,
        max_beat_age_seconds: float = 60,
        check_timeout_seconds: float = 2,
        cache_seconds: float = 1,
    ) -> None:
        self._max_beat_age_seconds = max_beat_age_seconds
        self._check_timeout_seconds = check_timeout_seconds
        self._cache_seconds = cache_seconds
        self._checks: dict[str, _Check] = {}
        self._last_beat: float | None = None
        self._turns: dict[threading.Thread, float | None] = {}
        self._draining = False

    def add_check(self, name: str, check: Callable[[], object]) -> None:
        """Makes readiness depend on `check`, which raises when something is wrong.

        It runs in a thread of its own. /readyz shows the first line of its exception. ValueError if
        there is a check of this name.
        """
        if name in self._checks:
            raise ValueError(f"there is a check {name!r} already")
        self._checks[name] = _Check(name, check)

    def beat(self) -> None:
        """Says that the loop which calls this still turns.

        It is the loop of a watched thread, or else the process's own, which never waits for
        anything outside the process. Until its first beat a loop counts as alive.
        """
        thread, now = threading.current_thread(), time.monotonic()
        if thread in self._turns:
            self._turns[thread] = now
        else:
            self._last_beat = now

    def watch(self, thread: threading.Thread) -> None:
        """Makes liveness depend on a thread that may wait for stores.

        It must not end between its start and the draining of the process. Once it has beaten, it
        must beat every MAX_TURN_SECONDS: an outage delays it, and is no reason for a restart.
        """
        self._turns[thread] = None

    def set_draining(self) -> None:
        """Not ready any more, for good: the process finishes what runs and takes nothing new."""
        self._draining = True

    def liveness(self) -> tuple[bool, dict[str, Any]]:
        """Whether the process's own loop and threads tick, and the details for /healthz.

        Looks at nothing outside the process.
        """
        age = _age(self._last_beat)
        # A copy, because threads may be added while a probe looks.
        threads = {
            thread.name: self._lives(thread, turned) for thread, turned in list(self._turns.items())
        }
        ok = (age is None or age <= self._max_beat_age_seconds) and all(threads.values())
        return ok, {
            "ok": ok,
            "beat_age_seconds": age,
            "max_beat_age_seconds": self._max_beat_age_seconds,
            "threads": threads,
        }

    def _lives(self, thread: threading.Thread, turned: float | None) -> bool:
        # While draining it may end, and before its start there is nothing to see.
        if self._draining or thread.ident is None:
            return True
        age = _age(turned)
        return thread.is_alive() and (age is None or age <= MAX_TURN_SECONDS)

    def readiness(self) -> tuple[bool, dict[str, Any]]:
        """Whether every check passes and nothing drains, and the details for /readyz.

        Answers within check_timeout_seconds.
        """
        deadline = time.monotonic() + self._check_timeout_seconds
        checks = list(self._checks.values())
        # All start before any is waited for, so that together they take one deadline.
        for check in checks:
            check.start(self._cache_seconds)
        results = {check.name: check.result(deadline) for check in checks}
        ok = not self._draining and all(result.ok for result in results.values())
        return ok, {
            "ok": ok,
            "draining": self._draining,
            "checks": {name: asdict(result) for name, result in results.items()},
        }


def _age(since: float | None) -> float | None:
    return None if since is None else round(time.monotonic() - since, 3)
