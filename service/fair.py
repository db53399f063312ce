"""A bounded queue that is fair between clients, from which batches of equal keys are taken; and room for uploads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


class QueueFull(Exception):
    """No place is free for so many more of this client's."""


def fits(size: int, taken: int, mine: int, more: int) -> bool:
    """Whether `more` of a client that has `mine` of what is `taken` find a place among `size`.

    Dynamic thresholds (Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches", 1998,
    with α = 1): a client may have as much as it leaves free, one alone half, two a third each. So there is a place for
    one that comes with its first.
    """
    free = size - taken - more
    return free >= 0 and (mine == 0 or mine + more <= free)


class Uploads:
    """Bytes of uploads that are in memory before they come to the queue. Not for several threads."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._held: Counter[Hashable] = Counter()

    def __len__(self) -> int:
        return sum(self._held.values())

    @contextmanager
    def hold(self, client: Hashable, number: int) -> Iterator[None]:
        """Have room for so many bytes during the block; QueueFull where there is none."""
        if not fits(self.size, len(self), self._held[client], number):
            raise QueueFull(f"{len(self)} bytes of uploads are under way already, {self._held[client]} of them yours")
        self._held[client] += number
        try:
            yield
        finally:
            self._held[client] -= number
            if not self._held[client]:
                del self._held[client]


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
        mine = sum(each.client == client for each in self._waiting)
        if not fits(self.size, len(self._waiting), mine, len(entries)):
            raise QueueFull(f"pictures waiting already: {len(self._waiting)}, of them yours: {mine}")
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
