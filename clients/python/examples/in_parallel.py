"""Runs a pipeline on each file, many at once: `python in_parallel.py dicom-intake *.dcm`."""

import asyncio
import os
import sys

from fluoro.v1 import job_pb2
from fluoro_client import BASIC, AsyncClient, FluoroApiError

AT_ONCE = 8


async def main(pipeline: str, *files: str) -> None:
    """Prints what came of each file as soon as its job has ended."""
    endpoint = os.environ.get("FLUORO_ENDPOINT", "localhost:50051")
    room = asyncio.Semaphore(AT_ONCE)
    async with (
        AsyncClient(endpoint, owner=os.environ.get("FLUORO_OWNER", "ada")) as client,
        asyncio.TaskGroup() as group,
    ):

        async def run(file: str) -> None:
            async with room:
                try:
                    job = await client.run(pipeline, [file], view=BASIC)
                except FluoroApiError as error:
                    print(f"{file}: refused: {error.reason}: {error.message}")
                else:
                    print(f"{file}: {job_pb2.Job.State.Name(job.state)} {job.reason}")

        for file in files:
            group.create_task(run(file))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
