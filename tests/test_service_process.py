"""A worker process that cannot be started again at once, for want of descriptors or of anything else."""

import asyncio
import os
import resource
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from service.process import State, WorkerProcess
from service.settings import Settings
from tests.service_fakes import FakeCascade, Running, serving, wait_until


class Factory:
    """Makes fakes. While there is a `place/no-start` it cannot be sent to a process, and `place/tries` grows."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __call__(self, settings: Settings) -> FakeCascade:
        return FakeCascade(self.place)

    def __getstate__(self) -> dict[str, Any]:
        if (self.place / "no-start").exists():
            with (self.place / "tries").open("a") as file:
                file.write(".")
            raise OSError(24, "Too many open files")
        return self.__dict__


def test_a_load_that_takes_too_long_is_named_and_one_that_may_download_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.process.LOAD_SECONDS", 0.2)

    async def loading(seconds: float, allow_download: bool) -> WorkerProcess:
        settings = Settings(allow_download=allow_download)
        worker = WorkerProcess(partial(_sleep, seconds), settings, lambda *_: None, lambda _: None)
        worker.start()
        async with asyncio.timeout(60):
            while worker.state is State.LOADING:
                await asyncio.sleep(0.1)
                worker.check()
        await worker.close()
        return worker

    assert (
        asyncio.run(loading(600, allow_download=False)).failure
        == "the process was killed, since it had been loading for 0 s"
    )
    assert asyncio.run(loading(1, allow_download=True)).failure == "ValueError: no model"


def _sleep(seconds: float, settings: Settings) -> FakeCascade:
    time.sleep(seconds)
    raise ValueError("no model")


def kill_worker(server: Running) -> None:
    pid = server.pool.workers[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def works_again(server: Running) -> bool:
    wait_until(lambda: server.client.get("/readyz").status_code == 200)
    return server.client.post("/generate", json={"prompt": "a"}).status_code == 200


def test_worker_whose_start_raises_is_started_again(tmp_path: Path) -> None:
    with serving(tmp_path, factory=Factory(tmp_path)) as server:
        (tmp_path / "no-start").touch()
        kill_worker(server)
        wait_until(lambda: (tmp_path / "tries").exists() and (tmp_path / "tries").stat().st_size >= 2)
        assert server.client.get("/readyz").status_code == 503
        (tmp_path / "no-start").unlink()
        assert works_again(server)


def test_worker_for_which_no_descriptor_is_free_is_started_again(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with serving(tmp_path) as server:
        worker = server.pool.workers[0]
        begun = worker._generation
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            kill_worker(server)
            wait_until(lambda: worker._generation >= begun + 2)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert works_again(server)
