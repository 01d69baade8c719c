"""Runs a service as a release before this one would be: it does not know some of the operations.

`FLUORO_FORGETS=render_dicom python -m fluoro_jobs.testing.old_release MODULE [ARGUMENT ...]`;
FLUORO_FORGETS has fields of the oneof `fluoro.v1.Step.operation`, separated by commas.
"""

import os
import runpy
import sys

from fluoro_jobs import operations


def _forget(fields: set[str]) -> None:
    """Before any other module has read the table, in this process and in each of its children."""
    left = tuple(one for one in operations.OPERATIONS if one.field not in fields)
    operations.OPERATIONS = left  # type: ignore[misc, assignment]  # that is the point
    for field in fields:  # in place: what runs before this has modules read the table
        del operations.BY_FIELD[field]


_forget(set(os.environ["FLUORO_FORGETS"].split(",")))

if __name__ == "__main__":
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__")
