"""Uploads a file, submits a job, and waits for its end: `python submit_and_wait.py ct.dcm`."""

import os
import sys

from fluoro.v1 import job_pb2
from fluoro_client import Client
from fluoro_client.jobs import inspect, render, report


def main(path: str) -> int:
    """Exit status: 1 if the job failed."""
    endpoint = os.environ.get("FLUORO_ENDPOINT", "localhost:50051")
    with Client(endpoint, owner=os.environ.get("FLUORO_OWNER", "ada")) as client:
        blob = client.upload(path)
        steps = [inspect(), render(), report(after=["inspect", "render"], title="First report")]
        job = client.submit(job_pb2.Job(inputs=[blob.name], steps=steps))
        print(job.name, "is durable: it will end, whatever breaks")

        job = client.wait(job.name)
        print(job_pb2.Job.State.Name(job.state), job.message)
        # One bad file never fails the others: what failed is told item by item.
        for found in client.list_items(job.name, states=[job_pb2.Item.STATE_FAILED]):
            print(f"{found.step}: {found.item.reason}: {found.item.message}")
    return int(job.state == job_pb2.Job.STATE_FAILED)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
