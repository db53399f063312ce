"""What a worker process remembers of its device and says of its work, with a clock that the test sets."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from service.messages import Item, Stepped
from service.requests import GenerateRequest, UpscaleRequest
from service.upscale import OnStep, Progress, UpscaleOptions
from service.worker import FITS_SECONDS, STILL_SECONDS, _Runner
from sr3.images import Picture
from tests.service_fakes import FakeCascade

PICTURE = Picture(np.zeros((8, 8, 3), np.uint8))


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


class Clocked(FakeCascade):
    """Enlarges nothing, but does what `work` says with the callback; has a clock for it to set."""

    clock = 1000.0
    work: Callable[[OnStep], None]

    def upscale(
        self,
        pictures: Sequence[Picture],
        seeds: Sequence[int],
        options: UpscaleOptions,
        on_step: OnStep | None = None,
    ) -> list[Picture]:
        assert on_step is not None
        self.work(on_step)
        return list(pictures)

    def heard(self, work: Callable[[OnStep], None], watched: bool = False) -> list[tuple[float, Stepped]]:
        """What a runner says of the steps of one request, and when."""
        self.work, told = work, list[tuple[float, Stepped]]()

        class Timing(Inbox):
            def send(_, message: object) -> None:
                if isinstance(message, Stepped):
                    told.append((self.clock, message))

        runner = _Runner(self, Timing(), lambda: self.clock)  # type: ignore[arg-type]
        runner.run([Item("a", UpscaleRequest(PICTURE, 1, UpscaleOptions()), watched)])
        return told


def test_work_that_makes_no_new_step_is_heard_of_all_the_same(tmp_path: Path) -> None:
    """After its only step it goes on for a hundred seconds, telling of that step once a second."""
    cascade = Clocked(tmp_path)

    def work(tell: OnStep) -> None:
        for _ in range(100):
            cascade.clock += 1
            tell(Progress("x4", 1, 1))

    heard = cascade.heard(work)
    times = [time for time, _ in heard]
    assert max(later - earlier for earlier, later in zip(times, [*times[1:], 1100], strict=True)) <= 5
    assert len(heard) < 100
    assert sum(each.new for _, each in heard) == 1


def test_a_preview_that_lasts_is_not_begun_within_itself(tmp_path: Path) -> None:
    """It runs a network whose three blocks take as long as a silence may last, and tell, as all do, of the last step
    again."""
    cascade, begun = Clocked(tmp_path), 0

    def work(tell: OnStep) -> None:
        def preview() -> list[np.ndarray]:
            nonlocal begun
            begun += 1
            for _ in range(3):
                cascade.clock += STILL_SECONDS
                if begun < 20:
                    tell(progress)
            return [PICTURE.pixels]

        progress = Progress("x4", 1, 4, preview)
        tell(progress)

    heard = cascade.heard(work, watched=True)
    assert begun == 1
    # the blocks are heard of too, or the request would be taken for stalled
    assert [list(each.previews) for _, each in heard] == [[], [], [], ["a"]]
