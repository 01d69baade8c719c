"""A line in which owners take turns: who brings much waits behind itself, not before others."""

import threading
from collections import OrderedDict, deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Line(Generic[Item]):
    """For threads of which one takes."""

    def __init__(self) -> None:
        self._owners: OrderedDict[str, deque[Item]] = OrderedDict()
        self._size, self._closed = 0, False
        self._changed = threading.Condition()

    def put(self, owner: str, item: Item) -> None:
        """Behind what the owner has there already."""
        with self._changed:
            self._owners.setdefault(owner, deque()).append(item)
            self._size += 1
            # One waiter: only one thread takes.
            self._changed.notify()

    def close(self) -> None:
        """No more will come."""
        with self._changed:
            self._closed = True
            # The taker may be waiting for something that will never come.
            self._changed.notify()

    def take(self, *, wait: bool) -> Item | None:
        """The next one. None if none is there; with `wait`, only once the line is closed."""
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._size or self._closed)
            if not self._size:
                return None
            # The owner that waited longest, with its oldest item.
            owner, items = self._owners.popitem(last=False)
            item = items.popleft()
            if items:
                # Only owners with something are in the line, so that it cannot grow with all who
                # ever came.
                self._owners[owner] = items  # behind the others
            self._size -= 1
            return item

    def __len__(self) -> int:
        """How many are there."""
        return self._size
