"""Work on a stream that threads do ahead of whoever takes the results."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from fluoro_jobs.worker.ahead import made_ahead


def test_results_come_in_order_and_no_more_is_read_than_was_asked_for() -> None:
    read = []

    def numbers() -> Iterator[int]:
        for number in range(9):
            read.append(number)
            yield number

    with ThreadPoolExecutor(2) as pool:
        squares = made_ahead(pool, lambda number: number**2, numbers(), 3)
        assert next(squares) == 0
        assert read == [0, 1, 2, 3]
        assert list(squares) == [number**2 for number in range(1, 9)]


def test_an_error_comes_where_its_result_would() -> None:
    with ThreadPoolExecutor(2) as pool:
        shares = made_ahead(pool, lambda number: 6 // number, [3, 2, 0, 1], 2)
        assert [next(shares), next(shares)] == [2, 3]
        with pytest.raises(ZeroDivisionError):
            next(shares)
