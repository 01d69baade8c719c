"""Commands on service tokens, for operators."""

import json
import sys
from collections.abc import Sequence

from fluoro.v1 import token_service_pb2

from fluoro_client.aio import AsyncClient
from fluoro_client.commands.runner import say
from fluoro_client.options import Exit, Output, Settings
from fluoro_client.present import print_view, to_json, tokens_table


async def create_token(
    client: AsyncClient,
    settings: Settings,
    *,
    owner: str,
    roles: Sequence[str],
    days: float,
    display_name: str,
) -> Exit:
    """Makes a service token. What it is for goes to standard error: the token stands alone."""
    numbers = [token_service_pb2.Role.Value(f"ROLE_{role.upper()}") for role in roles]
    made = await client.create_token(owner, numbers, display_name=display_name, days=days)
    if settings.output is Output.JSON:
        say(to_json(made))
    else:
        until = made.token.expire_time.ToDatetime()
        sys.stderr.write(f"{made.token.name}, until {until:%Y-%m-%d}. Shown this once:\n")
        say(made.secret)
    return Exit.OK


async def list_tokens(client: AsyncClient, settings: Settings, *, owner: str) -> Exit:
    """Lists service tokens."""
    found = [token async for token in client.list_tokens(owner)]
    if settings.output is Output.JSON:
        say(to_json({"tokens": [json.loads(to_json(token)) for token in found]}))
    else:
        print_view(tokens_table(found))
    return Exit.OK


async def revoke_token(client: AsyncClient, settings: Settings, *, name: str) -> Exit:
    """Revokes a service token."""
    token = await client.revoke_token(name)
    if settings.output is Output.JSON:
        say(to_json(token))
    else:
        print_view(tokens_table([token]))
    return Exit.OK
