"""What the commands share: their common options, and words that several of them take."""

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from fluoro_client.cli.completion import complete_job, complete_profile
from fluoro_client.cli.lazy import later
from fluoro_client.options import DEFAULT_ENDPOINT, Exit, Output, Settings

if TYPE_CHECKING:
    from fluoro_client.commands import runner
    from fluoro_client.commands.runner import Action, Local
else:
    runner = later("fluoro_client.commands.runner")

EPILOG: Final = "Exit codes, environment and profiles: fluoro --help"

COMMON_PANEL: Final = "Options of every command"

Labels = Annotated[
    list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="May be repeated.")
]
Parameters = Annotated[
    list[str] | None,
    typer.Option(
        "--param", metavar="NAME=VALUE", help="A parameter of the pipeline. May be repeated."
    ),
]
JobName = Annotated[
    str,
    typer.Argument(metavar="JOB", help="jobs/ID, or the ID alone.", autocompletion=complete_job),
]
SomeJob = Annotated[
    str,
    typer.Argument(
        metavar="[JOB]",
        help="jobs/ID, or the ID alone.",
        show_default=False,
        autocompletion=complete_job,
    ),
]


def _settings(
    *,
    endpoint: Annotated[
        str,
        typer.Option(
            "--endpoint",
            metavar="HOST:PORT",
            help=f"Gateway; FLUORO_ENDPOINT, or {DEFAULT_ENDPOINT}.",
            show_default=False,
            rich_help_panel=COMMON_PANEL,
        ),
    ] = "",
    owner: Annotated[
        str,
        typer.Option(
            "--owner",
            metavar="OWNER",
            help="Who you are; you see your own jobs and blobs. Gateways for many users need it; "
            "FLUORO_OWNER.",
            show_default=False,
            rich_help_panel=COMMON_PANEL,
        ),
    ] = "",
    profile: Annotated[
        str,
        typer.Option(
            "--profile",
            metavar="NAME",
            help="Take what is not given from this profile; `fluoro profiles` lists them; "
            "FLUORO_PROFILE.",
            show_default=False,
            autocompletion=complete_profile,
            rich_help_panel=COMMON_PANEL,
        ),
    ] = "",
    output: Annotated[
        Output,
        typer.Option("--output", help="json is proto3 JSON.", rich_help_panel=COMMON_PANEL),
    ] = Output.TABLE,
) -> Settings:
    """Options that every command has."""
    return Settings(endpoint, owner, output, profile)


_COMMON: Final = inspect.signature(_settings).parameters


def command(
    app: typer.Typer, name: str | None = None
) -> Callable[[Callable[..., "Action"]], Callable[..., None]]:
    """Makes a function that returns what to do a command that does it on a connection.

    The command has the function's options and the common ones.
    """
    return _command(app, name, "run")


def local_command(
    app: typer.Typer, name: str | None = None
) -> Callable[[Callable[..., "Local"]], Callable[..., None]]:
    """As `command`, for what needs no connection or makes its own."""
    return _command(app, name, "run_here")


def _command(
    app: typer.Typer, name: str | None, start: str
) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    def decorate(action: Callable[..., Any]) -> Callable[..., None]:
        @functools.wraps(action)
        def run(**given: Any) -> None:
            settings = _settings(**{common: given.pop(common) for common in _COMMON})
            getattr(runner, start)(settings, action(**given))

        own = inspect.signature(action)
        parameters = [*own.parameters.values(), *_COMMON.values()]
        run.__signature__ = own.replace(parameters=parameters, return_annotation=None)  # type: ignore[attr-defined]  # PEP 362
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return app.command(name, epilog=EPILOG)(run)

    return decorate


def one_or_many(
    job: str,
    filter_by: str,
    one: Callable[..., Awaitable[Exit]],
    many: Callable[..., Awaitable[Exit]],
    *,
    yes: bool,
) -> "Action":
    """What to do: to the job of that name, or to all that pass the filter."""
    if bool(job) == bool(filter_by) or (yes and not filter_by):
        raise typer.BadParameter("say either which JOB, or --filter; --yes goes with --filter")
    if filter_by:
        return functools.partial(many, filter_by=filter_by, yes=yes)
    return functools.partial(one, name=job_name(job))


def job_name(given: str) -> str:
    """The name of a job that is given as name or ID."""
    return given if given.startswith("jobs/") else f"jobs/{given}"


def labels_of(given: list[str] | None) -> dict[str, str]:
    """Labels of the words KEY=VALUE."""
    return pairs(given, "a label is KEY=VALUE")


def pairs(given: list[str] | None, otherwise: str) -> dict[str, str]:
    """What words KEY=VALUE say. Others are a usage error of that text."""
    found = [word.partition("=") for word in given or []]
    if any(not separator or not key for key, separator, _ in found):
        raise typer.BadParameter(otherwise)
    return {key: value for key, _, value in found}
