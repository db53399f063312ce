"""Over HTTP, who waits, who goes away and what happens when the server stops."""

import gc
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from service.settings import Settings
from service.worker import State
from tests.service_fakes import FakeCascade, Running, problem, serving, wait_until


def test_full_queue_is_429_and_loses_nothing() -> None:
    cascade = FakeCascade()
    cascade.gate.clear()
    with serving(Settings(queue_size=2), lambda s: cascade) as server, ThreadPoolExecutor(3) as pool:

        def ask(seed: int) -> httpx.Response:
            return server.client.post("/generate?upscale=1", json={"prompt": f"p{seed}", "seed": seed})

        held = [pool.submit(ask, 0)]
        wait_until(lambda: cascade.begun == ["p0"])
        held += [pool.submit(ask, seed) for seed in (1, 2)]
        wait_until(lambda: len(server.worker._waiting) == 2)
        refused = ask(3)
        start = time.monotonic()
        assert server.client.get("/healthz").status_code == 200
        assert time.monotonic() - start < 1
        cascade.gate.set()
        answers = [each.result(20) for each in held]
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert "2 requests are waiting" in problem(refused).detail
    assert [answer.headers["seed"] for answer in answers] == ["0", "1", "2"]
    assert sorted(cascade.begun) == ["p0", "p1", "p2"]


@contextmanager
def connection(server: Running, **body: object) -> Iterator[None]:
    """A client that asks for a picture, and goes away at the end of the block without having read it."""
    content = json.dumps(body).encode()
    headers = f"host: x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(f"POST /generate HTTP/1.1\r\n{headers}".encode() + content)
        yield


def test_client_that_goes_away_stops_its_own_request_at_the_next_step(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cascade = FakeCascade()
    cascade.gate.clear()
    with serving(Settings(), lambda s: cascade) as server:
        with connection(server, prompt="gone", steps=100):
            wait_until(lambda: cascade.begun)
            job = server.worker._running
            assert job is not None
            assert not job._cancelled.is_set()
        wait_until(job._cancelled.is_set)
        cascade.gate.set()
        assert server.client.post("/generate", json={"prompt": "next"}).status_code == 200
    assert cascade.ended == [("gone", "Cancelled"), ("next", "done")]
    assert "gone" not in cascade.steps_done
    gc.collect()  # where asyncio complains of results that nobody read
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


def test_waiting_client_that_goes_away_frees_its_place_and_leaves_the_running_one_alone() -> None:
    cascade = FakeCascade()
    cascade.gate.clear()
    with serving(Settings(queue_size=1), lambda s: cascade) as server, ThreadPoolExecutor(2) as pool:
        running = pool.submit(server.client.post, "/generate", json={"prompt": "running", "seed": 1})
        wait_until(lambda: cascade.begun == ["running"])
        with connection(server, prompt="gone"):
            wait_until(lambda: server.worker._waiting)
        wait_until(lambda: not server.worker._waiting)
        later = pool.submit(server.client.post, "/generate", json={"prompt": "later", "seed": 2})
        wait_until(lambda: server.worker._waiting)
        cascade.gate.set()
        assert running.result(20).status_code == later.result(20).status_code == 200
    assert cascade.ended == [("running", "done"), ("later", "done")]


def test_what_runs_when_the_worker_closes_is_503() -> None:
    cascade = FakeCascade()
    cascade.gate.clear()
    with serving(Settings(), lambda s: cascade) as server, ThreadPoolExecutor(2) as pool:
        running, waiting = (
            pool.submit(server.client.post, "/generate", json={"prompt": name}) for name in ("runs", "waits")
        )
        wait_until(lambda: cascade.begun and server.worker._waiting)
        closer = threading.Thread(target=server.worker.close)
        closer.start()
        wait_until(lambda: server.worker.state is State.CLOSED)
        cascade.gate.set()
        closer.join(10)
        for answer in (running.result(20), waiting.result(20)):
            assert answer.status_code == 503
            assert problem(answer).detail == "the server is stopping"


def test_stopping_server_finishes_what_runs() -> None:
    cascade = FakeCascade(step_seconds=0.1)
    with ThreadPoolExecutor(1) as pool:
        with serving(Settings(), lambda s: cascade) as server:
            answer = pool.submit(httpx.post, server.url + "/generate", json={"prompt": "a", "steps": 5}, timeout=20)
            wait_until(lambda: cascade.begun)
        assert answer.result(20).status_code == 200
    assert server.worker.state is State.CLOSED


def test_what_still_runs_when_the_time_to_stop_is_up_is_503() -> None:
    cascade = FakeCascade(step_seconds=0.05)
    with ThreadPoolExecutor(1) as pool:
        with serving(Settings(shutdown_seconds=0), lambda s: cascade) as server:
            body = {"prompt": "a", "steps": 100}
            answer = pool.submit(httpx.post, server.url + "/generate", json=body, timeout=20)
            wait_until(lambda: cascade.begun)
        assert answer.result(20).status_code == 503
        assert problem(answer.result()).detail == "the server is stopping"
    assert cascade.ended == [("a", "Cancelled")]
