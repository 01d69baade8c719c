"""Work on a stream that threads do ahead of whoever takes the results."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
from fluoro_jobs.worker.ahead import made_ahead, read_ahead


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


def test_one_more_is_read_while_the_caller_uses_the_one_before() -> None:
    second, used = Event(), Event()

    def numbers() -> Iterator[int]:
        yield 1
        second.set()
        assert used.wait(60)
        yield 2
        raise OSError

    with ThreadPoolExecutor(1) as pool:
        read = read_ahead(pool, numbers())
        assert next(read) == 1
        assert second.wait(60)
        used.set()
        assert next(read) == 2
        with pytest.raises(OSError):  # noqa: PT011 - it has no text
            next(read)
