"""A cascade that draws flat pictures, and a real server on a free port, for the service's tests."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import numpy as np
import uvicorn

from service.app import CascadeFactory, create_app
from service.cascade import GenerateRequest, GenerateResult, OnStep, Progress, UsedSettings
from service.schemas import ProblemBody
from service.settings import Settings
from service.worker import State, Worker

BASE = 8


class FakeCascade:
    """Implements `Cascade`. Its picture is the seed's noise, its steps wait for `gate`."""

    def __init__(self, error: Exception | None = None, step_seconds: float = 0.0) -> None:
        self.error = error
        self.step_seconds = step_seconds
        self.gate = threading.Event()
        self.gate.set()
        self.begun: list[str] = []
        self.steps_done: list[str] = []
        self.ended: list[tuple[str, str]] = []

    def generate(self, request: GenerateRequest, on_step: OnStep | None = None) -> GenerateResult:
        self.begun.append(request.prompt)
        try:
            for step in range(request.steps or 3):
                assert self.gate.wait(20)
                time.sleep(self.step_seconds)
                if on_step is not None:
                    on_step(Progress("base", step, request.steps or 3))
                self.steps_done.append(request.prompt)
            if self.error is not None:
                raise self.error
        except Exception as error:
            self.ended.append((request.prompt, type(error).__name__))
            raise
        self.ended.append((request.prompt, "done"))
        return flat_result(request)


def flat_result(request: GenerateRequest) -> GenerateResult:
    """A picture of the size asked, made of the seed alone."""
    side = BASE * request.upscale
    picture = np.random.default_rng(request.seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    used = UsedSettings("fake", "DDIM", request.steps or 3, request.guidance_scale, (BASE, BASE), request.upscale)
    return GenerateResult(picture, request.seed, {"base": 0.25}, used)


@dataclass
class Running:
    """A server that answers at `url`, and a client for it."""

    url: str
    client: httpx.Client
    worker: Worker


@contextmanager
def serving(settings: Settings, factory: CascadeFactory, ready: bool = True) -> Iterator[Running]:
    """A uvicorn server on loopback for as long as the block runs; with `ready`, once it takes requests."""
    app = create_app(settings, factory)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = "http://{}:{}".format(*listener.getsockname())
        patience = settings.shutdown_seconds
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=patience))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            with httpx.Client(base_url=url, timeout=20) as client:
                wait_until(lambda: server.started)
                if ready:
                    wait_until(lambda: app.state.worker.state is State.READY)
                yield Running(url, client, app.state.worker)
        finally:
            server.should_exit = True
            thread.join(20)


def wait_until(condition: Callable[[], object], seconds: float = 10) -> None:
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
