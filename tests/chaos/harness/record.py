"""What clients were told: the other half of what the audit compares the ledger with.

Kept as one JSON line per job.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(slots=True)
class WatchRecord:
    """What one watcher saw.

    start: last_sequence of its snapshot, 0 without one that was due; -1 until it came. seen:
    sequence and state of each event. error: why it broke, if it did. whole: it watched all jobs
    (WatchJobs), so its stream went on when the job had ended.
    """

    start: int = -1
    seen: list[tuple[int, str]] = field(default_factory=list)
    error: str = ""
    whole: bool = False


@dataclass(slots=True)
class JobRecord:
    """One job, from its submit on.

    key: the job's label `key`, and its request_id. shape: what it does.
    end: the state it has to end in. artifacts: how many it has once it succeeded.
    name: "" until a submit was answered with OK. refused: why none was.
    cancelled_as: the state that the answer to a cancel told; "" for no cancel.
    late: a file that only a cancelled attempt that computes on would make; "" for none.
    """

    key: str
    shape: str
    end: str
    artifacts: int = 0
    name: str = ""
    refused: str = ""
    cancelled_as: str = ""
    late: str = ""
    watches: list[WatchRecord] = field(default_factory=list)


def write(path: Path, records: Iterable[JobRecord]) -> None:
    """Appends the records to a file."""
    with path.open("a") as file:
        file.writelines(json.dumps(asdict(record)) + "\n" for record in records)


def read(path: Path) -> list[JobRecord]:
    """All records of a file."""
    return [_parse(json.loads(line)) for line in path.read_text().splitlines()]


def _parse(fields: dict[str, Any]) -> JobRecord:
    watches = [
        WatchRecord(**each | {"seen": [(n, state) for n, state in each["seen"]]})
        for each in fields["watches"]
    ]
    return JobRecord(**fields | {"watches": watches})
