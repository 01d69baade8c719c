"""What the commands share: their common options, and words that several of them take."""

import functools
import importlib.util
import inspect
import sys
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from fluoro_client.options import DEFAULT_ENDPOINT, Exit, Output, Settings

if TYPE_CHECKING:
    from fluoro_client.commands.runner import Action

EPILOG: Final = (
    "Exit codes: 0 ok (partially succeeded jobs too), 1 the watched job failed or was cancelled, "
    "2 usage, 3 refused by the server, 4 no server reached or no answer in time, "
    "5 trouble with files here, 130 interrupted. "
    "FLUORO_TOKEN or FLUORO_TOKEN_FILE is sent as bearer token; FLUORO_CA_FILE encrypts, "
    "FLUORO_CERTIFICATE_FILE and FLUORO_KEY_FILE are your own certificate."
)

Labels = Annotated[
    list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="May be repeated.")
]
Parameters = Annotated[
    list[str] | None,
    typer.Option(
        "--param", metavar="NAME=VALUE", help="A parameter of the pipeline. May be repeated."
    ),
]
JobName = Annotated[str, typer.Argument(metavar="JOB", help="jobs/ID, or the ID alone.")]
SomeJob = Annotated[
    str, typer.Argument(metavar="[JOB]", help="jobs/ID, or the ID alone.", show_default=False)
]


def later(name: str) -> ModuleType:
    """A module that is imported when something in it is used.

    gRPC and protobuf cost most of the start: help and completion do without them
    (docs.python.org, "Implementing lazy imports").
    """
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


if not TYPE_CHECKING:
    runner = later("fluoro_client.commands.runner")
else:
    from fluoro_client.commands import runner


def _settings(
    *,
    endpoint: Annotated[
        str, typer.Option("--endpoint", envvar="FLUORO_ENDPOINT", help="Gateway, host:port.")
    ] = DEFAULT_ENDPOINT,
    owner: Annotated[
        str,
        typer.Option(
            "--owner",
            envvar="FLUORO_OWNER",
            help="Who you are; you see your own jobs and blobs. Gateways for many users need it.",
        ),
    ] = "",
    output: Annotated[Output, typer.Option("--output", help="json is proto3 JSON.")] = Output.TABLE,
) -> Settings:
    """Options that every command has."""
    return Settings(endpoint, owner, output)


_COMMON: Final = inspect.signature(_settings).parameters


def command(
    app: typer.Typer, name: str | None = None
) -> Callable[[Callable[..., "Action"]], Callable[..., None]]:
    """Makes a function that returns what to do a command that does it.

    The command has the function's options and the common ones.
    """

    def decorate(action: Callable[..., "Action"]) -> Callable[..., None]:
        @functools.wraps(action)
        def run(**given: Any) -> None:
            settings = _settings(**{common: given.pop(common) for common in _COMMON})
            runner.run(settings, action(**given))

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
