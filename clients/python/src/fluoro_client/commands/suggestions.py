"""Words that a shell offers. A shell waits for them, so they come soon or not at all."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Final

from fluoro.v1 import job_pb2

from fluoro_client.aio import AsyncClient
from fluoro_client.display import state_text
from fluoro_client.errors import FluoroApiError
from fluoro_client.options import Settings
from fluoro_client.profiles import ProfileError, access, config_file, load

SECONDS: Final = 2.0
"""How long a shell waits for a gateway."""
JOBS: Final = 20
"""Jobs that are offered."""

Suggestions = list[tuple[str, str]]
"""Words, each with what it is."""


def profiles() -> list[str]:
    """Names of profiles."""
    try:
        return sorted(load(config_file(os.environ)).profiles)
    except ProfileError:
        return []  # a command that runs says what is wrong; here it would land in the prompt


def pipelines(settings: Settings) -> Suggestions:
    """Names of pipelines, without versions: `@` ends a word in bash."""

    async def ask(client: AsyncClient) -> Suggestions:
        return [(one.name.split("/")[1], one.title) async for one in client.pipelines()]

    return _soon(settings, ask)


def models(settings: Settings) -> Suggestions:
    """Names of models, without versions, as above."""

    async def ask(client: AsyncClient) -> Suggestions:
        found = {one.name.split("/")[1]: one.summary async for one in client.models()}
        return list(found.items())

    return _soon(settings, ask)


def jobs(settings: Settings) -> Suggestions:
    """Names of the newest jobs."""

    async def ask(client: AsyncClient) -> Suggestions:
        return [
            (job.name, state_text(job_pb2.Job.State.Name(job.state)).plain)
            async for job in client.list(limit=JOBS)
        ]

    return _soon(settings, ask)


def _soon(settings: Settings, ask: Callable[[AsyncClient], Awaitable[Suggestions]]) -> Suggestions:
    async def connected() -> Suggestions:
        there = access(
            os.environ,
            endpoint=settings.endpoint,
            owner=settings.owner,
            profile=settings.profile,
            command_seconds=SECONDS,
        )
        client = AsyncClient(there.endpoint, owner=there.owner, token=there.token, tls=there.tls)
        async with client, asyncio.timeout(SECONDS):
            return await ask(client)

    try:
        return asyncio.run(connected())
    except (FluoroApiError, ProfileError, TimeoutError, OSError, ValueError):
        return []  # as above
