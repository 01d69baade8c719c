"""`fluoro profiles`: what the configuration has, and what is in effect."""

import os

from fluoro_client import profiles
from fluoro_client.commands.runner import say
from fluoro_client.options import Exit, Output, Settings
from fluoro_client.present import print_view, profiles_view, to_json


def show(settings: Settings) -> Exit:
    """Lists the profiles, and where each part of what a command would use comes from."""
    file = profiles.config_file(os.environ)
    config = profiles.load(file)
    used = profiles.access(
        os.environ,
        endpoint=settings.endpoint,
        owner=settings.owner,
        profile=settings.profile,
        config=config,
        secrets=False,
    )
    rows = [
        {
            "name": one.name,
            "used": one.name == used.profile,
            "endpoint": one.endpoint,
            "owner": one.owner,
            "tls": one.tls or any((one.ca_file, one.certificate_file)),
            "token": str(one.token_file or (one.token_command[:1] and one.token_command[0]) or ""),
        }
        for one in config.profiles.values()
    ]
    effect = {
        "endpoint": {"value": used.endpoint, "from": used.sources["endpoint"]},
        "owner": {"value": used.owner, "from": used.sources.get("owner", "")},
        "token": {"value": "set" if used.token else "", "from": used.sources.get("token", "")},
        "tls": {"value": "on" if used.tls else "", "from": used.sources.get("tls", "")},
    }
    if settings.output is Output.JSON:
        say(to_json({"file": str(file), "profiles": rows, "effect": effect}))
    else:
        print_view(profiles_view(str(file), rows, effect))
    return Exit.OK
