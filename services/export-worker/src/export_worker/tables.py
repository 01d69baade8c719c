"""Outcomes of items as tables: CSV for spreadsheets, Parquet for programs."""

import csv
from collections.abc import Iterator, Sequence
from io import BytesIO, StringIO
from typing import Final

from arro3.core import Array, DataType, Table
from arro3.io import write_parquet
from fluoro.v1 import job_pb2
from fluoro_jobs.worker.context import Upstream

COLUMNS: Final = ("step", "item", "input", "state", "reason", "message")

Row = tuple[str, str, int, str, str, str]


def rows(upstream: Sequence[Upstream]) -> Iterator[Row]:
    """One per item: step, key, number of the job's input or -1, state, reason, message."""
    for step in upstream:
        for item in step.items:
            # In words: numbers of an enum mean nothing in a spreadsheet.
            state = job_pb2.Item.State.Name(item.state).removeprefix("STATE_").lower()
            yield step.step, item.key, item.input, state, item.reason, item.message


def as_csv(upstream: Sequence[Upstream]) -> bytes:
    """RFC 4180, UTF-8, a line of names first.

    No cell begins with what a spreadsheet takes for a formula: keys and names of steps begin with a
    letter or digit, messages are Fluoro's own.
    """
    text = StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    writer.writerows(rows(upstream))
    return text.getvalue().encode()


def as_parquet(upstream: Sequence[Upstream]) -> bytes:
    """The same columns; input is int32, the others are strings."""
    # zip of no rows gives no columns.
    columns = list(zip(*rows(upstream), strict=True)) or [()] * len(COLUMNS)
    table = Table.from_pydict(
        {
            name: Array(list(column), DataType.int32() if name == "input" else DataType.string())
            for name, column in zip(COLUMNS, columns, strict=True)
        }
    )
    file = BytesIO()
    write_parquet(table, file, compression="zstd(3)")
    return file.getvalue()
