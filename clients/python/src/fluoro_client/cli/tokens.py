"""Commands on service tokens, for operators."""

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from fluoro_client.cli.command import command
from fluoro_client.cli.lazy import later
from fluoro_client.options import RoleName

if TYPE_CHECKING:
    from fluoro_client.commands import tokens as commands
    from fluoro_client.commands.runner import Action
else:
    commands = later("fluoro_client.commands.tokens")

app = typer.Typer(help="Make, list and revoke service tokens; for operators.")


@command(app, "create")
def create_token(
    *,
    owner_of_token: Annotated[
        str, typer.Argument(metavar="OWNER", help="Whose jobs and blobs it opens.")
    ],
    role: Annotated[list[RoleName], typer.Option("--role", help="May be repeated.")],
    days: Annotated[
        float, typer.Option("--days", min=0.001, max=366, help="Until it expires.")
    ] = 90,
    name: Annotated[str, typer.Option("--name", help="For people: where it is used.")] = "",
) -> "Action":
    """Make a service token. It is printed this once, alone on standard output."""
    return partial(
        commands.create_token,
        owner=owner_of_token,
        roles=[each.value for each in role],
        days=days,
        display_name=name,
    )


@command(app, "list")
def list_tokens(
    *,
    of: Annotated[str, typer.Option("--of", metavar="OWNER", help="Only this owner's.")] = "",
) -> "Action":
    """List service tokens, newest first, without the tokens themselves."""
    return partial(commands.list_tokens, owner=of)


@command(app, "revoke")
def revoke_token(
    *,
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="tokens/ID, or the ID alone.")],
) -> "Action":
    """Revoke a service token. Gateways refuse it within seconds."""
    name = token if token.startswith("tokens/") else f"tokens/{token}"
    return partial(commands.revoke_token, name=name)
