"""Runs a service as a release before this one would be: it does not know some of the operations.

`FLUORO_FORGETS=render_dicom python -m fluoro_jobs.testing.old_release MODULE [ARGUMENT ...]`;
FLUORO_FORGETS has fields of the oneof `fluoro.v1.Step.operation`, separated by commas.
"""

import os
import runpy
import sys
from importlib.resources.abc import Traversable
from typing import Final

from fluoro_jobs import operations


def _forget(fields: set[str]) -> None:
    """Before any other module has read the table, in this process and in each of its children."""
    left = tuple(one for one in operations.OPERATIONS if one.field not in fields)
    operations.OPERATIONS = left  # type: ignore[misc, assignment]  # that is the point
    for field in fields:  # in place: what runs before this has modules read the table
        del operations.BY_FIELD[field]


def _forget_pipelines(fields: set[str]) -> None:
    """That release shipped none with what it did not know."""
    from fluoro_jobs import pipelines  # noqa: PLC0415 - it reads the table

    every = pipelines.files_in

    def known(folder: Traversable, called: str) -> list[tuple[Traversable, str]]:
        return [
            (file, name)
            for file, name in every(folder, called)
            if not any(f"{field}:" in file.read_text() for field in fields)
        ]

    pipelines.files_in = known


FORGOTTEN: Final = set(os.environ["FLUORO_FORGETS"].split(","))
_forget(FORGOTTEN)
_forget_pipelines(FORGOTTEN)

if __name__ == "__main__":
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__")
