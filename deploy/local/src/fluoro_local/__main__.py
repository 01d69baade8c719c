"""`python -m fluoro_local demo` and `python -m fluoro_local up`."""

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from fluoro_client.errors import FluoroApiError
from rich.console import Console

from fluoro_local.demo import PIPELINE, demo
from fluoro_local.errors import StartError
from fluoro_local.up import up


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fluoro_local", description="Fluoro on one machine."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    once = commands.add_parser(
        "demo", help="start Fluoro, run one imaging job, fetch its results, stop"
    )
    once.add_argument(
        "--input",
        type=Path,
        metavar="PATH",
        help="DICOM file or folder (default: a CT and an MR that pydicom ships)",
    )
    once.add_argument(
        "--pipeline",
        default=PIPELINE,
        metavar="NAME",
        help="what runs: dicom-intake, imaging-report, archive-report, … (default: %(default)s)",
    )
    once.add_argument(
        "--data",
        type=Path,
        default=Path(".data/demo"),
        help="folder it keeps its state in (default: %(default)s)",
    )
    once.add_argument(
        "--out",
        type=Path,
        default=Path("out/demo"),
        help="folder for the results (default: %(default)s)",
    )
    stay = commands.add_parser("up", help="start Fluoro and keep it running until Ctrl-C")
    stay.add_argument(
        "--data",
        type=Path,
        default=Path(".data/up"),
        help="folder it keeps its state in (default: %(default)s)",
    )
    return parser.parse_args()


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def main() -> int:
    """The exit code: 0; 130 when interrupted; 1 with a message for whatever else went wrong."""
    signal.signal(signal.SIGTERM, _interrupt)
    arguments = _arguments()
    console = Console()
    try:
        if arguments.command == "up":
            up(arguments.data, console)
            return 0
        asked = (arguments.input, arguments.data, arguments.out, console, arguments.pipeline)
        return 0 if demo(*asked) else 1
    except (StartError, FluoroApiError) as error:
        Console(stderr=True).print(str(error), style="red", markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        Console(stderr=True).print("Interrupted; everything has been stopped.")
        return 130


if __name__ == "__main__":
    sys.exit(main())
