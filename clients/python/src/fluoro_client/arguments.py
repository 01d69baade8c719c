"""What words of the command line stand for: blobs, parameters of a pipeline, the text of a file."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from fluoro.v1.pipeline_service_pb2 import PipelineParameter

from fluoro_client.aio import AsyncClient
from fluoro_client.files import find_files
from fluoro_client.transfers import each


class UsageError(Exception):
    """The command line does not make sense."""


async def as_blobs(client: AsyncClient, inputs: Sequence[str]) -> list[str]:
    """Names of blobs: those given, and those of the files and folders given, which are uploaded."""
    sources: list[str | Path] = []
    for given in inputs:
        sources += [given] if given.startswith("blobs/") else find_files([Path(given)])

    async def name(source: str | Path) -> str:
        return source if isinstance(source, str) else (await client.upload(source)).name

    return await each(name, sources)


async def typed(
    client: AsyncClient, pipeline: str, given: Mapping[str, str]
) -> dict[str, str | float | bool]:
    """Words of the command line as what the pipeline takes."""
    types = {one.name: one.type for one in (await client.pipeline(pipeline)).parameters}
    return {name: _value(name, word, types.get(name)) for name, word in given.items()}


def _value(name: str, word: str, kind: int | None) -> str | float | bool:
    match kind:
        case PipelineParameter.TYPE_NUMBER | PipelineParameter.TYPE_INTEGER:
            try:
                return float(word)
            except ValueError:
                raise UsageError(f"--param {name} must be a number.") from None
        case PipelineParameter.TYPE_BOOLEAN if word not in {"true", "false"}:
            raise UsageError(f"--param {name} must be true or false.")
        case PipelineParameter.TYPE_BOOLEAN:
            return word == "true"
    return word


def text(file: str) -> str:
    """What is in a file, `-` is standard input."""
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8 text.") from error
    except FileNotFoundError as error:
        raise UsageError(f"There is no {file}.") from error
