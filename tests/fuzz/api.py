"""Sends generated calls to every method of a real gateway, and looks for answers that none may get.

    python tests/fuzz/api.py --calls 50000 --seed 7

The same seed makes the same calls; `--first N --calls 1` makes call N alone. Prints how often each
method answered with each code, findings as lines of JSON, and a summary as the last line. Exits
with 1 if there is any finding.
"""

import argparse
import asyncio
import json
import time
from collections import Counter
from dataclasses import asdict
from typing import Final

from fluoro_local.services import SERVICES
from fluoro_local.testing import running
from fuzzing.calls import METHODS, Finding, Report, findings_of_log, fuzz

MOST_TOLD: Final = 20
"""Findings that are printed."""
LEAST_MADE: Final = 0.98
"""Share of the calls that are made: raw ones of streams that do not end are left out."""


def main() -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else "")
    parser.add_argument("--calls", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    with running([each for each in SERVICES if each.name == "gateway"]) as fluoro:
        port = int(fluoro.endpoint.rpartition(":")[2])
        numbers = range(options.first, options.first + options.calls)
        report = asyncio.run(fuzz(port, numbers, options.seed))
        if (made := report.codes.total()) < LEAST_MADE * options.calls:
            report.findings.append(Finding("gone", -1, "", f"only {made} calls were made"))
        status, _ = fluoro.get("gateway", "/healthz")
        if status != 200:
            report.findings.append(Finding("gone", -1, "", f"/healthz says {status}"))
        log = (fluoro.data / "logs" / "gateway.log").read_text(errors="replace")
        report.findings += findings_of_log(log)
    tell(report, options.seed, time.monotonic() - started)
    return 1 if report.findings else 0


def tell(report: Report, seed: int, seconds: float) -> None:
    """Prints table, findings and summary."""
    for method in [*(method.full_name for method in METHODS), "on the wire"]:
        codes = {code: n for (name, code), n in sorted(report.codes.items()) if name == method}
        told = ", ".join(f"{code} {count}" for code, count in codes.items())
        print(f"{method:<62}{told}")
    for finding in report.findings[:MOST_TOLD]:
        print(json.dumps(asdict(finding)))
    kinds = Counter(finding.kind for finding in report.findings)
    print(
        json.dumps(
            {
                "name": "api-fuzz",
                "seed": seed,
                "calls": report.codes.total(),
                "methods": len({name for name, _ in report.codes} - {"on the wire"}),
                "internal": kinds["internal"],
                "hangs": kinds["hang"],
                "echoes": kinds["echo"],
                "untyped": kinds["untyped"],
                "log": kinds["log"],
                "gone": kinds["gone"],
                "seconds": round(seconds, 1),
            }
        )
    )


if __name__ == "__main__":
    raise SystemExit(main())
