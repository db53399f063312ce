"""The queue: bounded, fair between clients, and batches of equal keys."""

import pytest

from service.fair import FairQueue, QueueFull, Uploads


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
    with pytest.raises(QueueFull, match="pictures waiting already: 1, of them yours: 1"):
        queue.add("a", [("2x", "x", 1.0), ("3x", "x", 1.0)])
    assert list(queue) == ["1x"]


def filled(queue: FairQueue[str], client: str) -> int:
    """How many places the client gets that takes all that it can, one by one."""
    for number in range(queue.size + 1):
        try:
            queue.add(client, [(client, "x", 1.0)])
        except QueueFull:
            return number
    raise AssertionError("the queue took more than its size")


def test_a_client_leaves_as_much_free_as_it_takes() -> None:
    queue: FairQueue[str] = FairQueue(16)
    assert [filled(queue, client) for client in "abcdef"] == [8, 4, 2, 1, 1, 0]
    assert len(queue) == 16


def test_places_are_shared_anew_as_they_become_free() -> None:
    queue: FairQueue[str] = FairQueue(9)
    assert (filled(queue, "a"), filled(queue, "b")) == (4, 2)
    queue.take(1)
    queue.take(1)
    assert (filled(queue, "a"), filled(queue, "b")) == (1, 1)


def test_a_first_request_may_take_all_that_is_free() -> None:
    queue: FairQueue[str] = FairQueue(3)
    queue.add("a", [(each, "x", 1.0) for each in "123"])
    with pytest.raises(QueueFull, match="pictures waiting already: 3, of them yours: 0"):
        queue.add("b", [("4", "x", 1.0)])


def test_uploads_share_their_bytes_in_the_same_way() -> None:
    uploads = Uploads(100)
    with uploads.hold("a", 30), uploads.hold("a", 20), uploads.hold("a", 0):
        with pytest.raises(QueueFull, match="50 bytes of uploads are under way already, 50 of them yours"):
            uploads.hold("a", 1).__enter__()
        with uploads.hold("b", 50), pytest.raises(QueueFull, match=r"100 bytes .*, 0 of them yours"):
            uploads.hold("c", 1).__enter__()
    with pytest.raises(ZeroDivisionError), uploads.hold("a", 0), uploads.hold("a", 0), uploads.hold("c", 100):
        raise ZeroDivisionError
    assert len(uploads) == 0


def test_items_can_leave_out_of_turn() -> None:
    items = [["1x"], ["2x"], ["3x"]]
    queue: FairQueue[list[str]] = FairQueue(9)
    queue.add("a", [(item, "x", 1.0) for item in items])
    assert queue.remove(items[1])
    assert not queue.remove(items[1])
    assert queue.clear() == [items[0], items[2]]
    assert len(queue) == 0
