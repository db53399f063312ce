"""The queue: bounded, fair between clients, and batches of equal keys."""

import pytest

from service.fair import FairQueue, QueueFull


def queued(*entries: tuple[str, str], size: int = 99) -> FairQueue[str]:
    """A queue with (client, item) added one by one; an item's key is its last letter."""
    queue: FairQueue[str] = FairQueue(size)
    for client, item in entries:
        queue.add(client, [(item, item[-1], 1.0)])
    return queue


def drained(queue: FairQueue[str], most: int = 1) -> list[list[str]]:
    batches = []
    while batch := queue.take(most):
        batches.append(batch)
    return batches


def test_clients_take_turns_however_much_one_of_them_sends() -> None:
    queue = queued(*[("greedy", f"g{i}") for i in range(4)], ("shy", "s1"), ("late", "l1"))
    assert [batch[0] for batch in drained(queue)] == ["g0", "s1", "l1", "g1", "g2", "g3"]


def test_one_clients_requests_keep_their_order() -> None:
    assert [batch[0] for batch in drained(queued(*[("a", f"{i}x") for i in range(5)]))] == [f"{i}x" for i in range(5)]


def test_shares_are_equal_while_all_have_work() -> None:
    queue: FairQueue[str] = FairQueue(10_000)
    for client in range(32):
        queue.add(client, [(f"{client}", "key", 1.0)] * (10 + 20 * (client % 3)))
    first = [queue.take(1)[0] for _ in range(320)]
    assert {first.count(str(client)) for client in range(32)} == {10}


def test_a_client_that_was_away_gets_no_credit() -> None:
    queue = queued(*[("busy", f"b{i}") for i in range(3)])
    assert [queue.take(1)[0] for _ in range(2)] == ["b0", "b1"]
    queue.add("back", [(f"r{i}", "r", 1.0) for i in range(2)])
    assert [batch[0] for batch in drained(queue)] == ["r0", "b2", "r1"]


def test_only_equal_keys_share_a_batch() -> None:
    queue = queued(("a", "1x"), ("a", "1y"), ("b", "2x"), ("c", "3x"), ("d", "4x"))
    assert drained(queue, most=3) == [["1x", "2x", "3x"], ["4x"], ["1y"]]


def test_the_first_may_wait_for_company_but_not_a_full_batch() -> None:
    queue = queued(("a", "1x"), ("a", "2x"))
    assert queue.take(3, lambda batch: len(batch) > 2) == []
    assert queue.take(2, lambda batch: False) == ["1x", "2x"]


def test_all_of_a_request_fit_or_none() -> None:
    queue = queued(("a", "1x"), size=2)
    with pytest.raises(QueueFull) as full:
        queue.add("a", [("2x", "x", 1.0), ("3x", "x", 1.0)])
    assert full.value.waiting == 1
    assert list(queue) == ["1x"]


def test_items_can_leave_out_of_turn() -> None:
    items = [["1x"], ["2x"], ["3x"]]
    queue: FairQueue[list[str]] = FairQueue(9)
    queue.add("a", [(item, "x", 1.0) for item in items])
    assert queue.remove(items[1])
    assert not queue.remove(items[1])
    assert queue.clear() == [items[0], items[2]]
    assert len(queue) == 0
