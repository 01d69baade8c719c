"""Runs a pipeline on a folder: `python run_folder.py imaging-report ./study ./results`."""

import os
import sys
from pathlib import Path

from fluoro.v1 import job_pb2
from fluoro_client import BASIC, Client
from fluoro_client.pipelines import Update


def tell(update: Update) -> None:
    """Prints how far each step is; the messages between are for a finer display."""
    if update.WhichOneof("update") == "progress":
        progress = update.progress
        print(f"{progress.step}: {progress.stage} {progress.fraction:.0%}")
    elif update.event.WhichOneof("change") == "step_changed":
        changed = update.event.step_changed
        print(f"{changed.step}: {job_pb2.Step.State.Name(changed.state)} {changed.message}")


def main(pipeline: str, folder: str, results: str) -> int:
    """Exit status: 1 if the job failed."""
    endpoint = os.environ.get("FLUORO_ENDPOINT", "localhost:50051")
    with Client(endpoint, owner=os.environ.get("FLUORO_OWNER", "ada")) as client:
        # BASIC stays small, however many files there are; lists bring the rest page by page.
        job = client.run(pipeline, [folder], view=BASIC, told=tell)
        print(job.name, job_pb2.Job.State.Name(job.state), job.message)
        target = Path(results)
        target.mkdir(parents=True, exist_ok=True)
        for found in client.list_artifacts(job.name, roles=["report", "result"]):
            print("wrote", client.download(found.artifact, target / found.artifact.name))
    return int(job.state == job_pb2.Job.STATE_FAILED)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
