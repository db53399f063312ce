"""Who may go on: how much is in memory at once, and who is alone."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Budget:
    """Bytes that may be in hand at once; one picture may always be, however large."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.used = 0
        self._changed = threading.Condition()

    @contextmanager
    def take(self, cost: int) -> Iterator[None]:
        """Wait until there is room, and keep it for as long as the block runs."""
        with self._changed:
            self._changed.wait_for(lambda: self.used == 0 or self.used + cost <= self._limit)
            self.used += cost
        try:
            yield
        finally:
            with self._changed:
                self.used -= cost
                self._changed.notify_all()


class Turns:
    """Blocks that run together, or alone, in the order in which they were asked for."""

    def __init__(self) -> None:
        self._queue: deque[object] = deque()
        self._inside, self._alone = 0, False
        self._changed = threading.Condition()

    @contextmanager
    def take(self, alone: bool) -> Iterator[None]:
        """Wait for this turn: `alone`, until nobody is inside, and nobody comes in before its end."""
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            self._changed.wait_for(
                lambda: self._queue[0] is ticket and not self._alone and not (alone and self._inside)
            )
            self._queue.popleft()
            self._inside, self._alone = self._inside + 1, alone
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._inside, self._alone = self._inside - 1, False
                self._changed.notify_all()
