"""A bounded queue that is fair between clients, from which batches of equal keys are taken."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


class QueueFull(Exception):
    """No place is free for so many more."""

    def __init__(self, waiting: int) -> None:
        super().__init__(f"{waiting} pictures are waiting already")
        self.waiting = waiting


@dataclass
class _Waiting(Generic[T]):
    item: T
    client: Hashable
    key: Hashable
    tag: float
    order: int


class FairQueue(Generic[T]):
    """Start-time fair queueing (Goyal et al., "Start-time Fair Queueing", SIGCOMM 1996) with equal weights.

    Each item gets a tag: the later of the queue's virtual time and the end of its client's item before it. Items leave
    by tag, so a client with many items waiting takes turns with one that has few. Not for several threads.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._waiting: list[_Waiting[T]] = []
        self._now = 0.0
        self._ends: dict[Hashable, float] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[T]:
        """Items in the order in which they will leave."""
        return iter([each.item for each in self._waiting])

    def add(self, client: Hashable, entries: list[tuple[T, Hashable, float]]) -> None:
        """Queue all of (item, key, cost), or none: QueueFull where they do not fit."""
        if len(self._waiting) + len(entries) > self.size:
            raise QueueFull(len(self._waiting))
        for item, key, cost in entries:
            tag = max(self._now, self._ends.get(client, 0.0))
            self._ends[client] = tag + cost
            self._count += 1
            self._waiting.append(_Waiting(item, client, key, tag, self._count))
        self._waiting.sort(key=lambda each: (each.tag, each.order))

    def remove(self, item: T) -> bool:
        """Take an item out of turn; whether it was waiting."""
        before = len(self._waiting)
        self._waiting = [each for each in self._waiting if each.item is not item]
        return len(self._waiting) < before

    def take(self, most: int, ready: Callable[[list[T]], bool] = lambda batch: True) -> list[T]:
        """The next item with others of its key, `most` at the most; [] where there is none, or where `ready` says of
        fewer than that that they should wait for more."""
        if not self._waiting:
            return []
        first = self._waiting[0]
        batch = [each for each in self._waiting if each.key == first.key][:most]
        items = [each.item for each in batch]
        if len(batch) < most and not ready(items):
            return []
        self._now = first.tag
        chosen = {id(each) for each in batch}
        self._waiting = [each for each in self._waiting if id(each) not in chosen]
        self._ends = {client: end for client, end in self._ends.items() if end > self._now}
        return items

    def clear(self) -> list[T]:
        """Take all."""
        items, self._waiting = list(self), []
        return items
