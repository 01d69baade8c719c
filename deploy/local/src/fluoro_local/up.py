"""A Fluoro that stays: fixed ports, crashed processes started again, until Ctrl-C."""

import time
from pathlib import Path
from typing import Final

from pydantic import ValidationError
from rich.console import Console

from fluoro_local.errors import StartError
from fluoro_local.settings import LocalSettings
from fluoro_local.supervisor import Supervisor

CHECK_SECONDS: Final = 0.25
"""How often `up` looks after its processes."""

TRY: Final = """
[bold]Fluoro runs on {endpoint}[/]. Try, in another terminal:
  fluoro run imaging-report FILE.dcm --endpoint {endpoint} --owner me
  buf curl --protocol grpc --http2-prior-knowledge -H 'fluoro-owner: me' -d '{{}}' \\
    http://{endpoint}/fluoro.v1.JobService/ListJobs
Metrics:
{metrics}
Logs: {logs}. Ctrl-C stops it."""


def up(data: Path, console: Console) -> None:
    """Run until Ctrl-C or SIGTERM; crashed processes are started again.

    Raises StartError when it cannot run here.
    """
    try:
        settings = LocalSettings()
    except ValidationError as error:
        raise StartError(
            "; ".join(
                f"FLUORO_{'_'.join(map(str, bad['loc'])).upper()}: {bad['msg']}"
                for bad in error.errors()
            )
        ) from error
    console.print(f"Starting Fluoro in {data}")
    fluoro = Supervisor(
        data,
        grpc_port=settings.grpc_port,
        first_http_port=settings.http_port,
        restart=True,
        tell=lambda sentence: console.print(sentence, markup=False),
    )
    try:
        with fluoro:
            metrics = "\n".join(f"  {name:14}{url}" for name, url in fluoro.metrics_urls.items())
            console.print(
                TRY.format(endpoint=fluoro.endpoint, metrics=metrics, logs=fluoro.data / "logs"),
                highlight=False,
                soft_wrap=True,
            )
            while True:
                fluoro.check()
                time.sleep(CHECK_SECONDS)
    except KeyboardInterrupt:
        console.print("Everything has been stopped.")
