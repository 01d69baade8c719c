"""Sends damaged DICOM files through the operations of the dicom-worker, and looks for faults.

    python tests/fuzz/dicom.py --files 10000 --seed 7

The same seed makes the same files; `--first N --files 1` makes file N alone. Each is inspected,
rendered, de-identified and converted, in processes that run nothing else; the first `--jobs` of
them once more as inputs of real jobs, by a real worker behind a real gateway. For each file there
is a photograph and an archive as damaged; every tenth file's pixels are searched for text, and
every tenth photograph for faces; every twentieth time a name in the pixels is masked. Prints how
often each operation came to each outcome, findings as lines of JSON, and a summary as the last
line. Exits with 1 if there is any finding.
"""

import argparse
import json
import os
import time
from collections import Counter
from dataclasses import asdict
from typing import Final

from fuzzing.operations import Report, operate_on
from fuzzing.worker import worked_on

MOST_TOLD: Final = 20
"""Findings that are printed."""


def main() -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else "")
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=500, help="files that real jobs work on")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    started = time.monotonic()
    numbers = range(options.first, options.first + options.files)
    report = operate_on(numbers, options.seed, options.processes)
    if part := numbers[: options.jobs]:
        report.add(worked_on(part, options.seed))
    tell(report, options.seed, len(numbers), len(part), time.monotonic() - started)
    return 1 if report.findings else 0


def tell(report: Report, seed: int, files: int, by_worker: int, seconds: float) -> None:
    """Prints table, findings and summary."""
    for (operation, outcome), count in sorted(report.outcomes.items()):
        print(f"{operation:<18}{outcome:<38}{count}")
    for finding in report.findings[:MOST_TOLD]:
        print(json.dumps(asdict(finding)))
    kinds = Counter(finding.kind for finding in report.findings)
    print(
        json.dumps(
            {
                "name": "fuzz-dicom",
                "seed": seed,
                "files": files,
                "by_worker": by_worker,
                "operations": report.outcomes.total(),
                "succeeded": sum(
                    count for (_, what), count in report.outcomes.items() if what == "SUCCEEDED"
                ),
                "untyped": kinds["untyped"],
                "hangs": kinds["hang"],
                "lost": kinds["lost"],
                "memory": kinds["memory"],
                "identifiers": kinds["identifier"],
                "log": kinds["log"],
                "seconds": round(seconds, 1),
            }
        )
    )


if __name__ == "__main__":
    raise SystemExit(main())
