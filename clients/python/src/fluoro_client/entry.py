"""Entry point of the `fluoro` command.

Most of its first second goes into imports. They come after the net for Ctrl-C, so none is above.
"""


def main() -> None:
    """Runs the command. Ctrl-C ends it with 130 and without a traceback, from the start."""
    try:
        from fluoro_client.cli import main as command  # noqa: PLC0415 - under the net

        command()
    except KeyboardInterrupt:
        raise SystemExit(130) from None  # Exit.INTERRUPTED, which another import would bring
