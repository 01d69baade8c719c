"""Commands that move bytes: `fluoro upload` and `fluoro download`."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

from fluoro.v1 import blob_service_pb2, job_pb2

from fluoro_client.aio import AsyncClient
from fluoro_client.arguments import UsageError
from fluoro_client.commands.runner import say
from fluoro_client.files import find_files, target_of, target_of_blob
from fluoro_client.options import Exit, Output, Settings
from fluoro_client.present import print_view, to_json, uploads_table
from fluoro_client.transfers import each


async def upload(client: AsyncClient, settings: Settings, *, paths: Sequence[Path]) -> Exit:
    """Uploads files and the files in folders."""
    files = find_files(paths)
    blobs = await each(client.upload, files)
    if settings.output is Output.JSON:
        uploads = [
            {"file": str(file), "blob": json.loads(to_json(blob))}
            for file, blob in zip(files, blobs, strict=True)
        ]
        say(to_json({"uploads": uploads}))
    else:
        print_view(
            uploads_table([(str(file), blob) for file, blob in zip(files, blobs, strict=True)])
        )
    return Exit.OK


async def download(
    client: AsyncClient,
    settings: Settings,
    *,
    name: str,
    steps: Sequence[str],
    roles: Sequence[str],
    artifacts: Sequence[str],
    folder: Path,
    some: bool = True,
) -> Exit:
    """Downloads a blob, or artifacts of a job, into a folder.

    some: whether it is a mistake if there is nothing to download.
    """
    if name.startswith("blobs/"):
        targets = [target_of_blob(await client.get_blob(name), folder)]
    else:
        step = steps[0] if len(steps) == 1 else ""
        targets = [
            target_of(found, folder)
            async for found in client.list_artifacts(name, step=step, roles=roles)
            if (not steps or found.step in steps)
            and (not artifacts or found.artifact.name in artifacts)
        ]
        if not targets and some:
            raise UsageError(
                f"{name} has no artifact that matches. `fluoro get {name}` lists what it has."
            )

    async def fetch(target: tuple[blob_service_pb2.Blob | job_pb2.Artifact, Path]) -> Path:
        what, path = target
        await asyncio.to_thread(path.parent.mkdir, parents=True, exist_ok=True)
        return await client.download(what, path)

    paths = await each(fetch, targets)
    if settings.output is Output.JSON:
        say(to_json({"files": [str(path) for path in paths]}))
    elif paths:
        say("\n".join(map(str, paths)))
    return Exit.OK
