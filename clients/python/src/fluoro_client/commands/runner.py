"""How every command runs and ends: connected, with an exit code, never with a traceback."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace

from fluoro.v1 import job_pb2

from fluoro_client.aio import AsyncClient
from fluoro_client.arguments import UsageError
from fluoro_client.credentials import TokenError
from fluoro_client.errors import (
    DataLossError,
    DeadlineExceededError,
    FluoroApiError,
    UnreachableError,
)
from fluoro_client.files import BadPathError
from fluoro_client.jobs import InvalidJobError
from fluoro_client.options import Exit, Output, Settings
from fluoro_client.present import job_view, json_text, print_view, to_json, visible
from fluoro_client.profiles import (
    Access,
    EndpointError,
    ProfileError,
    UnknownProfileError,
    access,
)

Action = Callable[[AsyncClient, Settings], Awaitable[Exit]]
Local = Callable[[Settings], Exit]
"""What a command does that calls no gateway, or makes its own connection."""


class DetachedError(Exception):
    """Ctrl-C while a job was watched. The message says how to resume."""


def run(settings: Settings, action: Action) -> None:
    """Runs a command on a connection, and exits with its code."""
    run_here(settings, lambda given: asyncio.run(_connected(given, action)))


def run_here(settings: Settings, action: Local) -> None:
    """Runs a command and exits with its code.

    Errors go to standard error, as JSON if the output is.
    """
    try:
        code = action(settings)
    except FluoroApiError as error:
        code = _exit_code(error)
        fields = {violation.field: violation.description for violation in error.violations}
        details = {
            "code": error.code.name,
            "reason": error.reason,
            "fields": fields,
            "metadata": error.metadata,
        }
        _complain(
            settings, str(error) if settings.output is Output.TABLE else error.message, **details
        )
    except (
        UsageError,
        BadPathError,
        InvalidJobError,
        UnknownProfileError,
        EndpointError,
    ) as error:
        code = Exit.USAGE
        _complain(settings, str(error))
    except (ProfileError, TokenError) as error:
        code = Exit.LOCAL
        _complain(settings, str(error))
    except DetachedError as detached:
        code = Exit.INTERRUPTED
        sys.stderr.write(f"{detached}\n")
    except KeyboardInterrupt:
        code = Exit.INTERRUPTED
        sys.stderr.write("Interrupted.\n")
    except BrokenPipeError:
        code = Exit.LOCAL  # whoever read us has gone, and wants no complaint
    except OSError as error:
        code = Exit.LOCAL
        _complain(settings, f"{error.filename or 'the system'}: {error.strerror or error}")
    except Exception as error:  # noqa: BLE001 - the last line of defence: people get a sentence, not a traceback
        code = Exit.LOCAL
        _complain(
            settings, f"This is a bug in the fluoro command: {type(error).__qualname__}: {error}"
        )
    _leave_nothing_unwritten()
    raise SystemExit(code)


def say(text: str) -> None:
    """Writes a line of the command's output, at once: whoever watches reads it through a pipe."""
    print(text, flush=True)  # noqa: T201 - the command's output


def show(settings: Settings, job: job_pb2.Job) -> None:
    """Prints a job."""
    if settings.output is Output.JSON:
        say(to_json(job))
    else:
        print_view(job_view(job))


def verdict(job: job_pb2.Job) -> Exit:
    """The exit code for how a job ended."""
    return (
        Exit.JOB_FAILED
        if job.state in {job_pb2.Job.STATE_FAILED, job_pb2.Job.STATE_CANCELLED}
        else Exit.OK
    )


def connection(there: Access) -> AsyncClient:
    """A client of that place. UsageError if it cannot be one's."""
    try:
        return AsyncClient(there.endpoint, owner=there.owner, token=there.token, tls=there.tls)
    except ValueError as error:
        raise UsageError(f"{error}.") from error


async def _connected(settings: Settings, action: Action) -> Exit:
    there = access(
        os.environ, endpoint=settings.endpoint, owner=settings.owner, profile=settings.profile
    )
    async with connection(there) as client:
        found = replace(
            settings, endpoint=there.endpoint, owner=there.owner, same_place=there.words()
        )
        return await action(client, found)


def _exit_code(error: FluoroApiError) -> Exit:
    if isinstance(error, UnreachableError | DeadlineExceededError):
        return Exit.UNREACHABLE
    return Exit.LOCAL if isinstance(error, DataLossError) else Exit.REFUSED


def _leave_nothing_unwritten() -> None:
    """Or Python tries again at its end, says that it cannot, and ends with a code of its own."""
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None if closed beforehand
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _complain(settings: Settings, message: str, **details: object) -> None:
    with suppress(OSError):  # nobody reads that either
        _write_complaint(settings, message, details)


def _write_complaint(settings: Settings, message: str, details: Mapping[str, object]) -> None:
    if settings.output is Output.JSON:
        sys.stderr.write(json_text({"error": {"message": message, **details}}) + "\n")
    else:
        lines = map(visible, message.split("\n"))
        sys.stderr.write("Error: " + "\n".join(lines) + "\n")
