"""What a worker process remembers of its device, with a clock that the test sets."""

from pathlib import Path

from service.messages import Item
from service.requests import GenerateRequest
from service.worker import FITS_SECONDS, _Runner
from tests.service_fakes import FakeCascade


class Inbox:
    """Takes what the worker says."""

    def __init__(self) -> None:
        self.cancelled: set[str] = set()
        self.said: list[object] = []

    def send(self, message: object) -> None:
        self.said.append(message)


def test_batch_that_had_no_room_is_tried_again_later_and_its_kind_is_not_remembered_for_ever(tmp_path: Path) -> None:
    clock = [1000.0]
    runner = _Runner(FakeCascade(tmp_path), Inbox(), lambda: clock[0])  # type: ignore[arg-type]

    def begun(prompt: str, steps: int | None = None) -> list[int]:
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        runner.run([Item(str(index), GenerateRequest(prompt, index, steps=steps)) for index in range(2)])
        return [line.count("+") + 1 for line in log.read_text().splitlines() if line.startswith("begun ")]

    assert begun("crowded") == [2, 1, 1]
    assert begun("crowded", steps=2) == [2, 1, 1]
    clock[0] += FITS_SECONDS - 1
    assert begun("room-again") == [1, 1]
    clock[0] += 1
    assert begun("room-again") == [2]
    assert runner._fits == {}
