"""Works on a stream in threads, a few elements ahead of whoever takes the results."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")


def made_ahead(
    pool: Executor, make: Callable[[Given], Made], given: Iterable[Given], ahead: int
) -> Iterator[Made]:
    """What `make` gives for each, in order, while the pool makes so many more.

    `given` is read in the caller's thread. Errors of `make` come in the place of its result.
    """
    under_way: deque[Future[Made]] = deque()
    for each in given:
        under_way.append(pool.submit(make, each))
        # As many as may be under way, no more: the results of all would fill the memory.
        if len(under_way) > ahead:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()


def read_ahead(pool: Executor, given: Iterator[Given]) -> Iterator[Given]:
    """The same, the next one read by the pool while the caller uses the one before.

    given: without None. It is read by one thread at a time.
    """
    coming = pool.submit(next, given, None)
    while (each := coming.result()) is not None:
        coming = pool.submit(next, given, None)
        yield each
