"""The thread that enlarges, and who waits for it."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from service.database import open_database
from service.device import Device
from service.job_worker import unhurried
from service.pictures import Picture, decode_picture
from service.requests import OutOfMemory
from service.upscale import UpscaleOptions
from tests.jobs_fakes import FakeUpscaler, picture_bytes


def test_what_can_wait_uses_the_database_while_nothing_is_enlarged(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path / 'jobs.sqlite'}")
    said: list[str] = []

    class Slow(FakeUpscaler):
        def upscale(self, pictures: Sequence[Picture], seeds: Sequence[int], options: UpscaleOptions) -> list[Picture]:
            assert not device.wait_for_pause(0)
            with database.connect():  # what cannot wait does not
                other.start()
            other.join(0.5)
            said.append("enlarged")
            return super().upscale(pictures, seeds, options)

    def look() -> None:
        with unhurried(database, device, 60).connect():
            said.append("looked")

    device, other = Device(Slow), threading.Thread(target=look)
    device.enlarge(decode_picture(picture_bytes(1), 2**20), 0, UpscaleOptions(steps=0))
    other.join(20)
    assert said == ["enlarged", "looked"]
    assert device.wait_for_pause(0)
    with unhurried(database, device, 60).connect():  # in a pause at once
        database.dispose()


def test_pictures_for_which_there_is_no_room_together_are_enlarged_one_by_one() -> None:
    together = threading.Barrier(4)
    sizes: list[int] = []

    class Small(FakeUpscaler):
        def upscale(self, pictures: Sequence[Picture], seeds: Sequence[int], options: UpscaleOptions) -> list[Picture]:
            sizes.append(len(pictures))
            if len(pictures) > 1 or seeds[0] == 2:
                raise OutOfMemory("no room")
            return super().upscale(pictures, seeds, options)

    device = Device(Small, batch=4)
    picture = decode_picture(picture_bytes(1), 2**20)
    free = threading.Event()

    def enlarge(seed: int) -> str:
        together.wait()
        try:
            return f"{device.enlarge(picture, seed, UpscaleOptions(steps=0))[0].pixels.shape}"
        except OutOfMemory as error:
            return str(error)

    with ThreadPoolExecutor(5) as threads:
        held = threads.submit(device.run, free.wait)
        answers = [threads.submit(enlarge, seed) for seed in range(4)]
        while len(device._waiting) < 4:
            threading.Event().wait(0.01)
        free.set()
        made = [each.result() for each in answers]
        held.result()
    assert sizes == [4, 1, 1, 1, 1]
    assert made[2] == "no room" and len({made[0], made[1], made[3]}) == 1 and made[0] != "no room"
