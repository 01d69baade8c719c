"""Seconds from the start of a process to the first 200 of /readyz, for each service.

Beside it, in the same rounds, how long the barest thing of the kind takes to say that it is ready:
a grpc.aio server without anything behind it for the gateway and the scheduler, a stock Celery
worker with the same pool for the workers (it waits a second for other workers). Both sides pay for
an interpreter that starts, some 20 ms, which becomes the process. Last line: `ratio` = the worst of
median / aim; smaller is better, 1 is the aim.
"""

import os
import statistics
import time
from contextlib import AbstractContextManager
from typing import Final

from rig.figures import quick, say
from rig.servers import Process, Servers, servers

SLOTS: Final = 2
AIMS_SECONDS: Final = {
    "gateway": 1.5,
    "scheduler": 1.5,
    "dicom_worker": 3.0,
    "ml_worker": 3.0,
    "export_worker": 3.0,
}
"""What a rolling update or a crash may cost."""
PEERS: Final = {
    "gateway": "grpc",
    "scheduler": "grpc",
    "dicom_worker": "prefork",
    "ml_worker": "threads",
    "export_worker": "prefork",
}


def start(run: Servers, name: str) -> AbstractContextManager[Process]:
    """A service or a peer by name."""
    if name in AIMS_SECONDS:
        return run.service(name, slots=SLOTS)
    if name == "grpc":
        return run.peer("peers.grpc_server")
    return run.peer(
        "celery",
        "-A",
        "peers.stock_celery",
        "worker",
        "-P",
        name,
        "-c",
        str(SLOTS),
        "--loglevel",
        "INFO",
        ready=" ready.",
    )


def main(rounds: int) -> None:
    """Every process in turn, alone, several times.

    rounds: besides the first, which fills caches and does not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in (*AIMS_SECONDS, *PEERS.values())}
    with servers() as run:
        for number in range(rounds + 1):
            for name, measured in seconds.items():
                started = time.perf_counter()
                with start(run, name) as process:
                    if number or not rounds:
                        measured.append(time.perf_counter() - started)
                    process.child.kill()  # how it ends is not the question
    medians = {name: statistics.median(measured) for name, measured in seconds.items()}
    for name, aim in AIMS_SECONDS.items():
        peer = medians[PEERS[name]]
        say(
            name,
            seconds=medians[name],
            aim_seconds=aim,
            ratio=medians[name] / aim,
            peer=PEERS[name],
            peer_seconds=peer,
            ratio_peer=medians[name] / peer,
        )
    worst = max(AIMS_SECONDS, key=lambda name: medians[name] / AIMS_SECONDS[name])
    say(
        "startup",
        ratio=medians[worst] / AIMS_SECONDS[worst],
        worst=worst,
        rounds=rounds,
        cpus=os.cpu_count(),
    )


if __name__ == "__main__":
    main(0 if quick(__doc__) else 4)
