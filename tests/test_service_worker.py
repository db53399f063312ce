"""What a worker process remembers of its device and says of its work, with a clock that the test sets."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from service.messages import Item, Stepped
from service.requests import GenerateRequest, UpscaleRequest
from service.upscale import OnStep, Progress, UpscaleOptions
from service.worker import FITS_SECONDS, STILL_SECONDS, _Runner
from sr3.images import Picture
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


class Lasting(FakeCascade):
    """After its only step it works on for a hundred seconds, telling of that step once a second."""

    clock = 1000.0

    def upscale(
        self,
        pictures: Sequence[Picture],
        seeds: Sequence[int],
        options: UpscaleOptions,
        on_step: OnStep | None = None,
    ) -> list[Picture]:
        assert on_step is not None
        for _ in range(100):
            self.clock += 1
            on_step(Progress("x4", 1, 1))
        return list(pictures)


def test_work_that_makes_no_new_step_is_heard_of_all_the_same(tmp_path: Path) -> None:
    cascade, heard = Lasting(tmp_path), list[tuple[float, Stepped]]()

    class Timing(Inbox):
        def send(self, message: object) -> None:
            if isinstance(message, Stepped):
                heard.append((cascade.clock, message))

    inbox = Timing()
    runner = _Runner(cascade, inbox, lambda: cascade.clock)  # type: ignore[arg-type]
    picture = Picture(np.zeros((8, 8, 3), np.uint8))
    runner.run([Item("a", UpscaleRequest(picture, 1, UpscaleOptions()))])
    times = [time for time, _ in heard]
    assert max(later - earlier for earlier, later in zip(times, [*times[1:], 1100], strict=True)) <= 5
    assert len(heard) < 100
    assert sum(each.new for _, each in heard) == 1


class Previewing(FakeCascade):
    """Its only preview runs a network whose three blocks take as long as a silence may last, and are looked at as all
    are: each tells again of the step that was told last."""

    clock = 1000.0
    begun = 0

    def upscale(
        self,
        pictures: Sequence[Picture],
        seeds: Sequence[int],
        options: UpscaleOptions,
        on_step: OnStep | None = None,
    ) -> list[Picture]:
        assert on_step is not None
        tell = on_step

        def preview() -> list[np.ndarray]:
            self.begun += 1
            for _ in range(3):
                self.clock += STILL_SECONDS
                if self.begun < 20:
                    tell(progress)
            return [picture.pixels for picture in pictures]

        progress = Progress("x4", 1, 4, preview)
        tell(progress)
        return list(pictures)


def test_a_preview_that_lasts_is_not_begun_within_itself(tmp_path: Path) -> None:
    cascade, inbox = Previewing(tmp_path), Inbox()
    runner = _Runner(cascade, inbox, lambda: cascade.clock)  # type: ignore[arg-type]
    picture = Picture(np.zeros((8, 8, 3), np.uint8))
    runner.run([Item("a", UpscaleRequest(picture, 1, UpscaleOptions()), watched=True)])
    assert cascade.begun == 1
    steps = [each for each in inbox.said if isinstance(each, Stepped)]
    assert len(steps) == 4  # the blocks' too, or the request would be taken for stalled
    assert [list(each.previews) for each in steps] == [[], [], [], ["a"]]
