"""`python -m fluoro_jobs.doctor`: a diagnosis where the services run, with their environment.

It needs no gateway, so it also tells why none starts. Exits with 1 if something is at fault.
"""

import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict

import structlog
from fluoro_blobs import BlobStore

from fluoro_jobs.doctor import diagnose
from fluoro_jobs.doctor.findings import Level

_VARIABLES = ("FLUORO_DATABASE_URL", "FLUORO_REDIS_URL", "FLUORO_BLOB_URL")


def main(arguments: Sequence[str]) -> None:
    """Prints a line for each finding, or with --json an object of them."""
    missing = [name for name in _VARIABLES if not os.environ.get(name)]
    if missing or set(arguments) - {"--json"}:
        sys.exit(
            f"Usage, with {', '.join(_VARIABLES)} set as for the services: "
            "python -m fluoro_jobs.doctor [--json]"
        )
    # The findings say it all.
    logging.disable()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    database_url, redis_url, blob_url = (os.environ[name] for name in _VARIABLES)
    try:
        found = diagnose(database_url, redis_url, lambda: BlobStore.from_url(blob_url))
    except ValueError as error:
        sys.exit(str(error))
    if arguments:
        sys.stdout.write(json.dumps({"findings": [asdict(one) for one in found]}, indent=2) + "\n")
    else:
        for one in found:
            sys.stdout.write(f"{one.level.lower():<8} {one.check:<14} {one.found}\n")
            if one.advice:
                sys.stdout.write(f"{'':<24}{one.advice}\n")
    sys.stdout.flush()
    # Not sys.exit: a store that hangs still has a thread, and would be waited for.
    os._exit(any(one.level is Level.FAULT for one in found))


if __name__ == "__main__":
    main(sys.argv[1:])
