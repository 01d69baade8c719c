"""`fluoro models`: which models there are, and what the card of one says."""

import json

from fluoro_client.aio import AsyncClient
from fluoro_client.commands.runner import say
from fluoro_client.options import Exit, Output, Settings
from fluoro_client.present import print_view, to_json
from fluoro_client.present_models import model_view, models_table


async def models(client: AsyncClient, settings: Settings, *, name: str) -> Exit:
    """Lists models, or shows one."""
    if name:
        one = await client.model(name)
        if settings.output is Output.JSON:
            say(to_json(one))
        else:
            print_view(model_view(one))
        return Exit.OK
    found = [model async for model in client.models()]
    if settings.output is Output.JSON:
        say(to_json({"models": [json.loads(to_json(model)) for model in found]}))
    else:
        print_view(models_table(found))
    return Exit.OK
