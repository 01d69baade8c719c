"""Watches a job, and goes on where it was when it is started again, after a crash, say.

`python watch_and_resume.py jobs/… cursor.txt`. Lost connections and restarted gateways are the
client's business. This is about the process itself: it keeps the last cursor in a file.
"""

import os
import sys
from pathlib import Path

from fluoro_client import BASIC, Client


def main(job: str, file: str) -> None:
    """Prints every event once, however often it is stopped and started again."""
    endpoint = os.environ.get("FLUORO_ENDPOINT", "localhost:50051")
    kept = Path(file)
    cursor = kept.read_text() if kept.exists() else ""
    with Client(endpoint, owner=os.environ.get("FLUORO_OWNER", "ada")) as client:
        for update in client.watch(job, cursor, view=BASIC):
            kind = update.WhichOneof("update")
            if kind == "event":
                event = update.event
                print("event", event.sequence, event.WhichOneof("change"), flush=True)
            elif kind == "snapshot":
                print("snapshot", update.snapshot.last_sequence, flush=True)
            # After the work on the message: a crash between tells it again, and loses none.
            fresh = kept.with_suffix(".new")
            fresh.write_text(update.cursor)
            fresh.replace(kept)


if __name__ == "__main__":
    main(*sys.argv[1:])
