"""The thread that enlarges, and who waits for it."""

import threading
from collections.abc import Sequence
from pathlib import Path

from service.database import open_database
from service.device import Device
from service.job_worker import unhurried
from service.pictures import Picture, decode_picture
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
