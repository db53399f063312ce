"""A cascade that draws noise, told by files and prompts what to do, and a real server on a free port."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn

from service.__main__ import listen
from service.app import create_app
from service.pool import Pool
from service.requests import (
    GenerateRequest,
    GenerateResult,
    InvalidRequest,
    ModelInfo,
    OutOfMemory,
    UpscaleRequest,
    UsedSettings,
)
from service.schemas import ProblemBody
from service.settings import Settings
from service.upscale import OnStep, Progress, UpscaleOptions
from service.worker import CascadeFactory
from sr3.images import Picture, with_pixels

BASE = 8


@dataclass
class FakeCascade:
    """Implements `Cascade`. Its picture is the seed's noise.

    `place/log` gets a line for each event, a step lasts as long as there is a `place/hold`, and a prompt that begins
    with one of the words of `_obey` does what that says. So does the width of an uploaded picture, 66. While a step is
    held, what is cancelled meanwhile is logged too.
    """

    place: Path
    step_seconds: float = 0.0

    def info(self) -> ModelInfo:
        return ModelInfo(
            "fake", "fake", "0123456789", "9876543210", BASE, BASE, 8, "DDIM", "DDIM", ("DDIM",), ("DDIM",)
        )

    def generate(
        self,
        requests: Sequence[GenerateRequest],
        on_step: OnStep | None = None,
        wanted: Callable[[int], bool] = lambda index: True,
    ) -> list[GenerateResult | Exception]:
        prompts = "+".join(request.prompt for request in requests)
        steps = requests[0].steps or 3
        shown = [np.full((4, 4, 3), request.seed % 256, np.uint8) for request in requests]
        self._work("base", prompts, steps, on_step, shown, lambda: [i for i in range(len(requests)) if not wanted(i)])
        return [self._obey(request, len(requests)) for request in requests]

    def upscale(
        self,
        pictures: Sequence[Picture],
        seeds: Sequence[int],
        options: UpscaleOptions,
        on_step: OnStep | None = None,
    ) -> list[Picture]:
        if pictures[0].pixels.shape[1] == 66:
            os.kill(os.getpid(), signal.SIGKILL)
        self._work(f"x{options.factor}", f"picture {seeds}", options.steps or 2, on_step, [])
        large = [p.pixels.repeat(options.factor, axis=0).repeat(options.factor, axis=1) for p in pictures]
        return [with_pixels(picture, pixels) for picture, pixels in zip(pictures, large, strict=True)]

    def used(self, request: UpscaleRequest) -> UsedSettings:
        height, width = request.picture.pixels.shape[:2]
        return UsedSettings(None, None, None, None, (width, height), request.options.factor, "fake", "DDIM", 2, 0.0)

    def log(self, line: str) -> None:
        with (self.place / "log").open("a") as file:
            file.write(line + "\n")

    def _work(
        self,
        stage: str,
        name: str,
        steps: int,
        on_step: OnStep | None,
        shown: list[np.ndarray],
        unwanted: Callable[[], list[int]] = list,
    ) -> None:
        self.log(f"begun {name}")
        told = 0
        try:
            for step in range(steps):
                while (self.place / "hold").exists():
                    if len(unwanted()) > told:
                        told = len(unwanted())
                        self.log(f"step heard of {told} cancelled")
                    time.sleep(0.002)
                time.sleep(self.step_seconds)
                if on_step is not None:
                    pictures = shown[1:] if name.startswith("blind") else shown  # one too few
                    on_step(Progress(stage, step + 1, steps, (lambda pictures=pictures: pictures) if shown else None))
                self.log(f"step {name}")
        except BaseException as error:
            self.log(f"stopped {name} by {type(error).__name__}")
            raise
        self.log(f"done {name}")

    def _obey(self, request: GenerateRequest, together: int) -> GenerateResult | Exception:
        match request.prompt.split()[0]:
            case "crash":
                os.kill(os.getpid(), signal.SIGKILL)
            case "fail":
                raise RuntimeError("secret: /root/model")
            case "fail-alone":
                return RuntimeError("secret: /root/model")
            case "exit":
                raise SystemExit(3)
            case "crowded" if together > 1:
                raise OutOfMemory("no room")
            case "large":
                raise OutOfMemory("no room")
            case "refuse":
                return InvalidRequest("prompt", request.prompt, "99 tokens; the base model reads at most 77")
            case "nothing":
                return GenerateResult(np.zeros((2, 2), complex), request.seed, {}, flat_result(request).used)
        return flat_result(request)


def flat_result(request: GenerateRequest) -> GenerateResult:
    """A picture of the size asked, made of the seed alone."""
    side = BASE * request.upscale
    picture = np.random.default_rng(request.seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    used = UsedSettings("fake", "DDIM", request.steps or 3, request.guidance_scale, (BASE, BASE), request.upscale)
    return GenerateResult(picture, request.seed, {"base": 0.25}, used)


def load_fake(place: Path, step_seconds: float, settings: Settings) -> FakeCascade:
    """A cascade factory, where `place` and `step_seconds` are given; waits for `place/hold-load` to go away."""
    while (place / "hold-load").exists():
        time.sleep(0.002)
    if (place / "broken").exists():
        raise OSError("/secret/place is missing\n  indeed")
    return FakeCascade(place, step_seconds)


def fake(place: Path, step_seconds: float = 0.0) -> CascadeFactory:
    """A factory of fakes that a worker process can be told of."""
    return partial(load_fake, place, step_seconds)


@dataclass
class Running:
    """A server that answers at `url`, a client for it, and the directory through which its cascade is told."""

    url: str
    client: httpx.Client
    pool: Pool
    place: Path
    app: Any = field(repr=False, default=None)

    def change(self, **settings: Any) -> None:
        """Have what comes from now on waited for by other settings."""
        for part in (self.pool, self.app.state.records):
            part._settings = part._settings.model_copy(update=settings)

    def hold(self) -> None:
        """Have every step wait until `go`."""
        (self.place / "hold").touch()

    def go(self) -> None:
        """End `hold`."""
        (self.place / "hold").unlink()

    def log(self) -> list[str]:
        """What the cascade did, but for single steps."""
        path = self.place / "log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if not line.startswith("step ")]

    def heard(self, cancelled: int) -> bool:
        """Whether the held batch knows that so many of its pictures are cancelled."""
        return f"step heard of {cancelled} cancelled" in (self.place / "log").read_text()

    def begun(self) -> list[str]:
        """The batches that were begun."""
        return [line.removeprefix("begun ") for line in self.log() if line.startswith("begun ")]


@contextmanager
def serving(
    place: Path,
    ready: bool = True,
    step_seconds: float = 0.0,
    factory: CascadeFactory | None = None,
    **options: Any,
) -> Iterator[Running]:
    """A uvicorn server on loopback for as long as the block runs; with `ready`, once it takes requests."""
    settings = Settings(**{"batch_wait_ms": 0, "log_level": "error", **options})
    multiprocessing.get_context("forkserver").set_forkserver_preload(["tests.service_fakes"])  # starts are quick then
    app = create_app(settings, factory or fake(place, step_seconds))
    with listen("127.0.0.1", 0) as listener:
        url = "http://{}:{}".format(*listener.getsockname())
        patience = settings.shutdown_seconds
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=patience))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            with httpx.Client(base_url=url, timeout=60) as client:
                wait_until(lambda: server.started)
                if ready:
                    wait_until(lambda: app.state.pool.ready)
                yield Running(url, client, app.state.pool, place, app)
        finally:
            server.should_exit = True
            thread.join(60)


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Return as soon as `condition()` holds; AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.005)


def problem(response: httpx.Response) -> ProblemBody:
    """The response's problem document, checked for what all have in common."""
    assert response.headers["content-type"] == "application/problem+json"
    body = ProblemBody.model_validate_json(response.content)
    assert body.status == response.status_code
    assert body.request_id == response.headers["x-request-id"]
    return body
