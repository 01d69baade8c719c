"""Submits a job for each file in one call: `python submit_many.py a.dcm b.dcm blobs/…`.

Names of blobs that were uploaded before do as well. A job that is refused keeps no other from being
stored.
"""

import os
import sys

from fluoro.v1 import job_pb2
from fluoro_client import Client, FluoroApiError
from fluoro_client.jobs import inspect


def main(*sources: str) -> int:
    """Exit status: 1 if any job was refused."""
    endpoint = os.environ.get("FLUORO_ENDPOINT", "localhost:50051")
    with Client(endpoint, owner=os.environ.get("FLUORO_OWNER", "ada")) as client:
        blobs = [
            source if source.startswith("blobs/") else client.upload(source).name
            for source in sources
        ]
        jobs = [job_pb2.Job(inputs=[blob], steps=[inspect()]) for blob in blobs]
        # Ids of your own make the call safe to repeat after a crash; the client makes some if not.
        outcomes = client.submit_many(jobs)
        for source, outcome in zip(sources, outcomes, strict=True):
            if isinstance(outcome, FluoroApiError):
                print(f"{source}: {outcome.reason}: {outcome.message}")
            else:
                print(f"{source}: {outcome.name}")
    return int(any(isinstance(outcome, FluoroApiError) for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
