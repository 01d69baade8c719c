"""The `fluoro` command line: options and help.

What the commands do is in `commands`, which is imported when one runs.
"""

import os
from typing import Final

import typer

from fluoro_client.cli import (
    audit,
    completion,
    doctor,
    files,
    jobs,
    models,
    profiles,
    running,
    tokens,
)
from fluoro_client.options import MEANINGS

ENVIRONMENT: Final = (
    "Environment: FLUORO_ENDPOINT, FLUORO_OWNER and FLUORO_PROFILE are options of every command. "
    "FLUORO_TOKEN or FLUORO_TOKEN_FILE is sent as bearer token. FLUORO_CA_FILE or FLUORO_TLS=1 "
    "encrypts; FLUORO_CERTIFICATE_FILE and FLUORO_KEY_FILE are your own certificate. Options come "
    "before the environment, and that before a profile."
)
EXIT_CODES: Final = "\n".join(
    f"{code:>3}  {meaning.replace('`', '')}" for code, meaning in MEANINGS.items()
)
EPILOG: Final = f"Exit codes:\n{EXIT_CODES}\n\n{ENVIRONMENT}"

app = typer.Typer(
    name="fluoro",
    help="Hand imaging jobs to Fluoro, watch them live, fetch the results.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for part in (running, models, jobs, files, audit, doctor, profiles, completion):
    app.add_typer(part.app)
app.add_typer(tokens.app, name="tokens", no_args_is_help=True)


def main() -> None:
    """Entry point of the `fluoro` command."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    app()
