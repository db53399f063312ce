"""One thread owns the cascade: order, limits, cancelling by id alone, and an answer for everyone."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError

import pytest

from service.cascade import Cascade, GenerateRequest
from service.worker import Cancelled, NotReady, QueueFull, State, Worker
from tests.service_fakes import FakeCascade, wait_until


@pytest.fixture
def cascade() -> FakeCascade:
    return FakeCascade()


@pytest.fixture
def worker(cascade: FakeCascade) -> Iterator[Worker]:
    worker = Worker(lambda: cascade, queue_size=2)
    worker.start()
    worker.loaded.result(10)
    yield worker
    cascade.gate.set()
    worker.close()


def ask(name: str) -> GenerateRequest:
    return GenerateRequest(name, seed=len(name))


def test_requests_are_answered_in_order_by_one_thread() -> None:
    threads = set()

    class Noting(FakeCascade):
        def generate(self, request, on_step=None):  # type: ignore[no-untyped-def]
            threads.add(threading.current_thread().name)
            return super().generate(request, on_step)

    cascade = Noting()

    def load() -> Cascade:
        threads.add(threading.current_thread().name)
        return cascade

    worker = Worker(load, queue_size=5)
    worker.start()
    worker.loaded.result(10)
    jobs = [worker.submit(ask("p" * n)) for n in range(1, 6)]
    assert [job.future.result(10).seed for job in jobs] == [1, 2, 3, 4, 5]
    worker.close()
    assert cascade.begun == ["p", "pp", "ppp", "pppp", "ppppp"]
    assert threads == {"cascade"}


def test_nothing_is_taken_before_the_load_is_done() -> None:
    with pytest.raises(NotReady, match="loading"):
        Worker(FakeCascade, queue_size=1).submit(ask("a"))


def test_failed_load_is_kept_and_told() -> None:
    def load() -> Cascade:
        raise OSError("no such model")

    worker = Worker(load, queue_size=1)
    worker.start()
    assert isinstance(worker.loaded.exception(10), OSError)
    with pytest.raises(NotReady, match="failed"):
        worker.submit(ask("a"))
    worker.close()
    assert worker.state is State.FAILED


def test_queue_is_bounded_and_says_when_a_place_is_expected() -> None:
    seconds = iter([0.0, 0.0, 31.0, *[31.0] * 9])  # submitted, begun, done: 31 s, so a mean of 10
    cascade = FakeCascade()
    worker = Worker(lambda: cascade, queue_size=2, clock=lambda: next(seconds))
    worker.start()
    worker.loaded.result(10)
    worker.submit(ask("first")).future.result(10)
    cascade.gate.clear()
    worker.submit(ask("running"))
    wait_until(lambda: "running" in cascade.begun)
    for name in ("waits", "waits too"):
        worker.submit(ask(name))
    with pytest.raises(QueueFull) as full:
        worker.submit(ask("one too many"))
    assert (full.value.waiting, full.value.retry_after) == (2, 10)
    cascade.gate.set()
    worker.close()


def test_time_in_the_queue_is_measured() -> None:
    seconds = iter([5.0, 7.5, 8.0])
    worker = Worker(FakeCascade, queue_size=1, clock=lambda: next(seconds))
    worker.start()
    worker.loaded.result(10)
    job = worker.submit(ask("a"))
    job.future.result(10)
    worker.close()
    assert job.waited == 2.5


def test_cancelling_the_running_one_stops_it_at_its_next_step(worker: Worker, cascade: FakeCascade) -> None:
    cascade.gate.clear()
    first, second = worker.submit(ask("first")), worker.submit(ask("second"))
    wait_until(lambda: cascade.begun)
    worker.cancel(first)
    cascade.gate.set()
    with pytest.raises(Cancelled):
        first.future.result(10)
    assert second.future.result(10).seed == len("second")
    assert "first" not in cascade.steps_done


def test_cancelling_a_waiting_one_leaves_the_others_alone(worker: Worker, cascade: FakeCascade) -> None:
    cascade.gate.clear()
    running = worker.submit(ask("running"))
    wait_until(lambda: cascade.begun)
    gone, waits = worker.submit(ask("gone")), worker.submit(ask("waits"))
    worker.cancel(gone)
    worker.submit(ask("took the place"))
    cascade.gate.set()
    with pytest.raises(CancelledError):
        gone.future.result(10)
    assert running.future.result(10).seed == len("running")
    assert waits.future.result(10).seed == len("waits")
    assert "gone" not in cascade.begun


@pytest.mark.parametrize("error", [RuntimeError("broken"), MemoryError(), SystemExit(3), StopIteration()])
def test_failure_reaches_its_own_client_alone(error: BaseException) -> None:
    class Failing(FakeCascade):
        def generate(self, request, on_step=None):  # type: ignore[no-untyped-def]
            if request.prompt == "bad":
                raise error
            return super().generate(request, on_step)

    worker = Worker(Failing, queue_size=2)
    worker.start()
    worker.loaded.result(10)
    bad, good = worker.submit(ask("bad")), worker.submit(ask("good"))
    raised = bad.future.exception(10)
    assert raised is not None
    assert error in (raised, raised.__cause__)
    assert isinstance(raised, Exception), "an event loop ends by a SystemExit"
    assert not isinstance(raised, StopIteration), "a future takes none"
    assert good.future.result(10).seed == 4
    worker.close()


def test_closing_answers_all_and_ends_the_thread(worker: Worker, cascade: FakeCascade) -> None:
    cascade.gate.clear()
    running = worker.submit(ask("running"))
    wait_until(lambda: cascade.begun)
    waits = worker.submit(ask("waits"))
    closer = threading.Thread(target=worker.close)
    closer.start()
    with pytest.raises(NotReady, match="closed"):
        waits.future.result(10)
    cascade.gate.set()
    with pytest.raises(Cancelled):
        running.future.result(10)
    closer.join(10)
    assert worker.state is State.CLOSED
    assert not worker._thread.is_alive()
    with pytest.raises(NotReady, match="closed"):
        worker.submit(ask("late"))


def test_closing_does_not_wait_for_a_load_that_hangs() -> None:
    go_on = threading.Event()

    def load() -> Cascade:
        go_on.wait(20)
        return FakeCascade()

    worker = Worker(load, queue_size=1)
    worker.start()
    closed = within(2, worker.close)
    go_on.set()
    assert closed
    worker.loaded.result(10)
    assert worker.state is State.CLOSED


def within(seconds: float, call: Callable[[], None]) -> bool:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()
