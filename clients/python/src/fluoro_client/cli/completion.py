"""Completion of what is typed: the scripts for shells, and names that only a gateway knows."""

from typing import TYPE_CHECKING, Annotated

import typer
from typer import completion as typer_completion

from fluoro_client.cli.lazy import later
from fluoro_client.options import Output, Settings, Shell

if TYPE_CHECKING:
    from fluoro_client.commands import suggestions
else:
    suggestions = later("fluoro_client.commands.suggestions")

# What Typer's own options would do; a command is easier to find, and writes no file of yours.
typer_completion.completion_init()  # type: ignore[attr-defined]  # typer exports it so itself

app = typer.Typer()


@app.command()
def completion(
    shell: Annotated[Shell, typer.Argument(help="The shell that reads what is printed.")],
) -> None:
    """Print the completion for a shell.

    bash: source <(fluoro completion bash), in ~/.bashrc. zsh: the same after compinit, in ~/.zshrc.
    fish: fluoro completion fish > ~/.config/fish/completions/fluoro.fish
    """
    script = typer_completion.get_completion_script  # type: ignore[attr-defined]  # as above
    typer.echo(script(prog_name="fluoro", complete_var="_FLUORO_COMPLETE", shell=shell))


def complete_profile(incomplete: str) -> list[str]:
    """Names of profiles."""
    return [name for name in suggestions.profiles() if name.startswith(incomplete)]


def complete_pipeline(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Names of pipelines with their titles."""
    return [found for found in suggestions.pipelines(_said(ctx)) if found[0].startswith(incomplete)]


def complete_model(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Names of models with their summaries."""
    return [found for found in suggestions.models(_said(ctx)) if found[0].startswith(incomplete)]


def complete_job(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Names of your newest jobs with their states."""
    return [found for found in suggestions.jobs(_said(ctx)) if found[0].startswith(incomplete)]


def _said(ctx: typer.Context) -> Settings:
    words = {name: ctx.params.get(name) or "" for name in ("endpoint", "owner", "profile")}
    return Settings(**words, output=Output.TABLE)
