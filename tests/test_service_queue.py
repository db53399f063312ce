"""Over HTTP, who waits, who goes away, what is cancelled, and what happens when a worker dies or the server stops."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from service.pool import State
from service.settings import Settings
from tests.service_fakes import Running, problem, serving, wait_until


@pytest.fixture
def step_seconds() -> float:
    return 0.0


@pytest.fixture
def server(tmp_path: Path, step_seconds: float) -> Iterator[Running]:
    with serving(tmp_path, queue_size=6, max_batch=1, step_seconds=step_seconds) as running:
        yield running


def ask(server: Running, prompt: str, **options: object) -> httpx.Response:
    return server.client.post("/generate?upscale=1", json={"prompt": prompt, **options})


def begin(server: Running, prompt: str, **options: object) -> str:
    """Have it made in the background; where to ask for it."""
    body = {"prompt": prompt, **options}
    answer = server.client.post("/generate?upscale=1", json=body, headers={"prefer": "respond-async"})
    assert answer.status_code == 202, answer.text
    return answer.headers["location"]


def state(server: Running, location: str) -> str:
    return server.client.get(location).json()["state"]


def ended(server: Running, location: str) -> dict[str, object]:
    wait_until(lambda: state(server, location) not in ("queued", "running"))
    return server.client.get(location).json()


def test_full_queue_is_429_and_loses_nothing(server: Running) -> None:
    server.hold()
    with ThreadPoolExecutor(4) as pool:
        held = [pool.submit(ask, server, "p0", seed=0)]
        wait_until(lambda: server.begun() == ["p0"])
        held += [pool.submit(ask, server, f"p{seed}", seed=seed) for seed in (1, 2, 3)]
        wait_until(lambda: server.pool.waiting == 3)
        refused = ask(server, "p4")
        assert server.client.get("/healthz").status_code == 200
        server.go()
        answers = [each.result(60) for each in held]
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert "pictures waiting already: 3, of them yours: 3" in problem(refused).detail
    assert [answer.headers["seed"] for answer in answers] == ["0", "1", "2", "3"]
    assert sorted(server.begun()) == ["p0", "p1", "p2", "p3"]


def test_one_client_that_asks_for_all_places_leaves_some_to_others(tmp_path: Path) -> None:
    keys = {name: {"x-api-key": f"the-key-of-{name}-here", "prefer": "respond-async"} for name in ("me", "you")}
    given = ",".join(f"{name}:{head['x-api-key']}" for name, head in keys.items())
    with serving(tmp_path, max_batch=1, api_keys=given) as server:
        server.hold()
        answers = {name: [] for name in keys}
        for name, head in keys.items():
            for _ in range(Settings().queue_size):
                answer = server.client.post("/generate", json={"prompt": name}, headers=head)
                answers[name].append(answer.status_code)
                wait_until(server.begun)
        server.go()
    for status in answers.values():
        assert set(status) == {202, 429}


def test_place_in_the_queue_is_told_and_moves_on(server: Running) -> None:
    server.hold()
    running, first, second = (begin(server, name) for name in ("runs", "first", "second"))
    wait_until(lambda: server.begun())
    assert [server.client.get(each).json().get("place") for each in (running, first, second)] == [None, 0, 1]
    assert server.client.delete(first).json()["state"] == "cancelled"
    assert server.client.get(second).json()["place"] == 0
    server.go()
    assert ended(server, second)["state"] == "succeeded"
    assert "first" not in server.begun()


@contextmanager
def connection(server: Running, more: str = "", **body: object) -> Iterator[None]:
    """A client that asks for a picture, and goes away at the end of the block without having read it."""
    content = json.dumps(body).encode()
    host, port = server.url.removeprefix("http://").split(":")
    head = f"host: {host}\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n{more}\r\n"
    with socket.create_connection((host, int(port))) as client:
        client.sendall(f"POST /generate HTTP/1.1\r\n{head}".encode() + content)
        yield


def test_client_that_goes_away_stops_its_own_request_at_the_next_step(server: Running) -> None:
    server.hold()
    with connection(server, prompt="gone", steps=100):
        wait_until(server.begun)
        waits = begin(server, "next")
    wait_until(lambda: server.heard(1))
    server.go()
    assert ended(server, waits)["state"] == "succeeded"
    assert server.log() == ["begun gone", "stopped gone by Stop", "begun next", "done next"]


def test_waiting_client_that_goes_away_frees_its_place(server: Running) -> None:
    server.hold()
    running = begin(server, "runs")
    wait_until(server.begun)
    with connection(server, prompt="gone"):
        wait_until(lambda: server.pool.waiting)
    wait_until(lambda: not server.pool.waiting)
    server.go()
    assert ended(server, running)["state"] == "succeeded"
    assert server.begun() == ["runs"]


def test_cancelling_one_of_a_batch_leaves_its_mates_as_they_would_have_been(tmp_path: Path) -> None:
    with serving(tmp_path, max_batch=3) as server:
        server.change(batch_wait_ms=60_000)
        server.hold()
        mates = [begin(server, name, seed=7) for name in ("a", "b", "c")]
        wait_until(server.begun)
        assert server.begun() == ["a+b+c"]
        assert server.client.delete(mates[1]).json()["state"] == "cancelled"
        wait_until(lambda: server.heard(1))
        server.go()
        assert ended(server, mates[0])["state"] == ended(server, mates[2])["state"] == "succeeded"
        server.change(batch_wait_ms=0)
        undisturbed = ask(server, "a", seed=7).content
        assert server.client.get(mates[0] + "/pictures/0").content == undisturbed
        gone = server.client.get(mates[1] + "/result")
    assert gone.status_code == 409
    assert "cancelled" in problem(gone).detail


def test_all_of_a_batch_cancelled_ends_it_at_the_next_step(tmp_path: Path) -> None:
    with serving(tmp_path, max_batch=2) as server:
        server.change(batch_wait_ms=60_000)
        server.hold()
        mates = [begin(server, name, steps=50) for name in ("a", "b")]
        wait_until(server.begun)
        asked = time.monotonic()
        for each in mates:
            server.client.delete(each)
        wait_until(lambda: server.heard(2))
        heard = time.monotonic()
        server.go()
        going = time.monotonic()
        wait_until(lambda: not server.pool.workers[0].busy)
        idle = time.monotonic()
        figures = server.client.get("/metrics").text
    assert server.log() == ["begun a+b", "stopped a+b by Stop"]
    assert "step a+b" not in (tmp_path / "log").read_text(), "the step in hand was the last"
    assert "service_cancellations_total 2.0" in figures
    assert "service_cancel_to_idle_seconds_count 1.0" in figures
    told = next(float(line.split()[1]) for line in figures.splitlines() if "cancel_to_idle_seconds_sum" in line)
    assert going - heard <= told <= idle - asked, "from the last cancellation as the server gets it"


def test_request_is_cancelled_while_its_picture_is_written(server: Running) -> None:
    written, loop = threading.Event(), server.pool.workers[0]._loop
    for _ in range(64):  # all of the threads that write files
        loop.call_soon_threadsafe(loop.run_in_executor, None, written.wait)
    location = begin(server, "a")
    wait_until(lambda: server.log() == ["begun a", "done a"] and not server.pool.workers[0].busy)
    assert state(server, location) == "running"
    record = server.app.state.records._records[location.rpartition("/")[2]]
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.client.delete, location)
        try:
            wait_until(lambda: record.unwanted)
        finally:
            written.set()
        assert answer.result(60).json()["state"] == "cancelled"
    assert server.client.get(location + "/pictures/0").status_code == 409


def test_a_repeated_request_is_done_anew_while_the_one_before_is_being_cancelled(server: Running) -> None:
    written, loop = threading.Event(), server.pool.workers[0]._loop
    for _ in range(64):  # all of the threads that write files
        loop.call_soon_threadsafe(loop.run_in_executor, None, written.wait)
    with connection(server, "idempotency-key: k1\r\n", prompt="a", seed=7):
        wait_until(lambda: server.log() == ["begun a", "done a"] and not server.pool.workers[0].busy)
        (record,) = server.app.state.records._records.values()
    with ThreadPoolExecutor(1) as pool:
        try:
            wait_until(lambda: record.unwanted)
            head = {"idempotency-key": "k1"}
            again = pool.submit(server.client.post, "/generate", json={"prompt": "a", "seed": 7}, headers=head)
            wait_until(lambda: server.begun() == ["a", "a"] or again.done() or record.followers)
        finally:
            written.set()
        assert again.result(60).status_code == 200
    assert server.begun() == ["a", "a"]


def test_request_that_is_joined_in_the_background_goes_on_when_its_first_client_leaves(server: Running) -> None:
    server.hold()
    with connection(server, "idempotency-key: k1\r\n", prompt="a", seed=7):
        wait_until(server.begun)
        head = {"idempotency-key": "k1", "prefer": "respond-async"}
        joined = server.client.post("/generate", json={"prompt": "a", "seed": 7}, headers=head)
        assert joined.status_code == 202
        (record,) = server.app.state.records._records.values()
        assert record.followers == 1
    wait_until(lambda: record.followers == 0)
    server.go()
    assert ended(server, joined.headers["location"])["state"] == "succeeded"
    assert server.begun() == ["a"]


def test_time_that_is_up_is_504_and_stops_the_work(tmp_path: Path) -> None:
    with serving(tmp_path, request_timeout=1) as server:
        server.hold()
        answer = ask(server, "long", steps=100)
        server.change(request_timeout=60)
        server.go()
        wait_until(lambda: not server.pool.workers[0].busy)
        assert ask(server, "short", steps=1).status_code == 200
    assert answer.status_code == 504
    assert "within 1 s" in problem(answer).detail
    assert "stopped long by Stop" in server.log()


def test_worker_that_dies_fails_only_what_ran_and_is_replaced(server: Running) -> None:
    server.hold()
    runs, waits = begin(server, "runs"), begin(server, "waits")
    wait_until(server.begun)
    pid = server.pool.workers[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    server.go()
    assert ended(server, runs)["error"] == {
        "status": 503,
        "detail": "the worker process ended while it ran this request; another one starts; try again in 1 s",
    }
    assert ended(server, waits)["state"] == "succeeded"
    assert server.client.get("/readyz").status_code == 200
    assert server.pool.workers[0].pid != pid
    assert "service_worker_restarts_total 1.0" in server.client.get("/metrics").text


def test_request_that_kills_its_worker_is_503_with_the_id(server: Running) -> None:
    answer = server.client.post("/generate", json={"prompt": "crash"}, headers={"x-request-id": "id-7"})
    assert answer.status_code == 503
    assert problem(answer).request_id == "id-7"
    assert ask(server, "next").status_code == 200


def test_worker_that_is_silent_is_not_ready_and_one_that_stays_so_is_replaced(tmp_path: Path) -> None:
    with serving(tmp_path, heartbeat_seconds=1) as server:
        pid = server.pool.workers[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: server.client.get("/readyz").status_code == 503)
        assert server.client.get("/healthz").status_code == 200
        wait_until(lambda: server.client.get("/readyz").status_code == 200)
        assert server.pool.workers[0].pid != pid


def test_worker_that_makes_no_step_is_replaced(tmp_path: Path) -> None:
    with serving(tmp_path, stall_seconds=1) as server:
        server.hold()
        stuck = ask(server, "stuck")
        server.go()
        assert stuck.status_code == 503
        assert ask(server, "next").status_code == 200


def test_batch_without_room_is_halved_and_remembered(tmp_path: Path) -> None:
    with serving(tmp_path, max_batch=4) as server:
        for _ in range(2):
            images = ask(server, "crowded", num_images=4, seed=1).json()["images"]
            assert [image["seed"] for image in images] == [1, 2, 3, 4]
        large = ask(server, "large")
    name = "crowded"
    halves = ["+".join([name] * n) for n in (4, 2, 1, 1, 2, 1, 1)]
    assert server.begun()[:7] == halves
    assert server.begun()[7:-1] == [name] * 4
    assert large.status_code == 503
    assert "too little memory" in problem(large).detail


def test_many_clients_lose_nothing_and_get_equal_shares(tmp_path: Path) -> None:
    keys = {f"client{i}": f"secret-of-client-{i:04d}" for i in range(8)}
    settings = {"api_keys": ",".join(f"{name}:{key}" for name, key in keys.items())}
    with serving(tmp_path, queue_size=200, max_batch=1, **settings) as server:
        server.hold()
        with ThreadPoolExecutor(90) as pool:
            asked = []
            for name, key in keys.items():
                head = {"authorization": f"Bearer {key}"}
                count = 10 if name != "client0" else 20
                for index in range(count):
                    body = {"prompt": f"{name} {index}", "seed": index, "steps": 1}
                    asked.append(pool.submit(httpx.post, server.url + "/generate", json=body, headers=head, timeout=60))
            wait_until(lambda: server.pool.waiting + 1 >= 90)
            server.go()
            answers = [each.result(60) for each in asked]
    assert {answer.status_code for answer in answers} == {200}
    begun = server.begun()
    assert len(begun) == len(set(begun)) == 90
    shares = [sum(line.startswith(f"{name} ") for line in begun[:72]) for name in keys]
    assert max(shares) - min(shares) <= 2  # one began before the line formed


def test_one_clients_share_of_the_queue_and_rate_are_limited(tmp_path: Path) -> None:
    with serving(tmp_path, max_per_client=2, requests_per_minute=3, max_batch=1) as server:
        server.hold()
        first = begin(server, "a")
        begin(server, "b")
        crowd = ask(server, "c")
        often = ask(server, "d")
        server.go()
        ended(server, first)
    assert (crowd.status_code, often.status_code) == (429, 429)
    assert "at most 2" in problem(crowd).detail
    assert "3 times a minute" in problem(often).detail
    assert int(often.headers["retry-after"]) >= 1


def test_same_key_is_done_once_and_another_body_is_refused(server: Running) -> None:
    head = {"idempotency-key": "k1"}
    first, again = (server.client.post("/generate", json={"prompt": "once"}, headers=head) for _ in range(2))
    assert first.content == again.content
    assert server.begun() == ["once"]
    other = server.client.post("/generate", json={"prompt": "other"}, headers=head)
    assert other.status_code == 422
    assert "was used for another request" in problem(other).detail
    new = server.client.post("/generate", json={"prompt": "other"}, headers={"idempotency-key": "k2"})
    assert new.status_code == 200
    assert server.client.post("/generate", json={"prompt": "a"}, headers={"idempotency-key": ""}).status_code == 400


def test_a_failure_of_the_server_is_not_repeated_for_the_same_key(tmp_path: Path) -> None:
    with serving(tmp_path, request_timeout=0.5) as server:
        server.hold()
        head = {"idempotency-key": "k1"}
        first = server.client.post("/generate", json={"prompt": "a"}, headers=head)
        server.change(request_timeout=60)
        server.go()
        again, third = (server.client.post("/generate", json={"prompt": "a"}, headers=head) for _ in range(2))
        assert (first.status_code, again.status_code) == (504, 200)
        assert third.content == again.content
        assert server.begun() == ["a", "a"]
        head = {"idempotency-key": "k2"}
        refused = [server.client.post("/generate", json={"prompt": "refuse"}, headers=head) for _ in range(2)]
        assert [each.status_code for each in refused] == [422, 422]
        assert server.begun() == ["a", "a", "refuse"]


def test_results_are_forgotten_in_time_and_by_size(tmp_path: Path) -> None:
    with serving(tmp_path, result_bytes=1500) as server:
        kept = []
        for name in "abc":
            kept.append(begin(server, name))
            assert ended(server, kept[-1])["state"] == "succeeded"
        assert server.client.get(kept[0]).status_code == 404
        assert server.client.get(kept[2]).status_code == 200
    with serving(tmp_path, result_seconds=0.2) as server:
        location = begin(server, "a")
        wait_until(lambda: server.client.get(location).status_code == 404)
        head = {"idempotency-key": "k1"}
        server.client.post("/generate", json={"prompt": "a"}, headers=head)
        other = {"prompt": "another, under the same key"}
        wait_until(lambda: server.client.post("/generate", json=other, headers=head).status_code == 200)


def test_newest_result_is_kept_however_large_it_is(tmp_path: Path) -> None:
    with serving(tmp_path, result_bytes=0) as server:
        first, second = begin(server, "a"), begin(server, "b")
        assert ended(server, second)["state"] == "succeeded"
        assert server.client.get(second + "/pictures/0").status_code == 200
        assert server.client.get(first).status_code == 404
        head = {"idempotency-key": "k1"}
        once, again = (server.client.post("/generate", json={"prompt": "c"}, headers=head) for _ in range(2))
        assert once.content == again.content
    assert server.begun() == ["a", "b", "c"]


def test_what_is_kept_of_a_result_is_its_file_alone(server: Running) -> None:
    location = begin(server, "a")
    assert ended(server, location)["state"] == "succeeded"
    record = server.app.state.records.find(location.rsplit("/", 1)[1], "127.0.0.1")
    assert record.pictures[0].data.startswith(b"\x89PNG")
    assert record.jobs == []


def lives(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_stopping_server_finishes_what_runs_and_refuses_what_waits(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool, serving(tmp_path, max_batch=1) as server:
        server.hold()
        runs = pool.submit(ask, server, "runs")
        wait_until(server.begun)
        waits = pool.submit(ask, server, "waits")
        wait_until(lambda: server.pool.waiting)
        server.pool.workers[0]._loop.call_soon_threadsafe(server.pool.drain)
        refused = waits.result(60)
        assert server.client.get("/readyz").status_code == 503
        late = ask(server, "late")
        server.go()
        assert runs.result(60).status_code == 200
    for answer in (refused, late):
        assert answer.status_code == 503
        assert problem(answer).detail == "the server is stopping"
    assert server.pool.state is State.CLOSED


def test_what_still_runs_when_the_time_to_stop_is_up_is_503(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        with serving(tmp_path, shutdown_seconds=0, step_seconds=0.05) as server:
            body = {"prompt": "a", "steps": 100}
            answer = pool.submit(httpx.post, server.url + "/generate", json=body, timeout=60)
            wait_until(server.begun)
            pid = server.pool.workers[0].pid
        assert answer.result(60).status_code == 503
        assert problem(answer.result()).detail == "the server is stopping"
    assert pid is not None
    wait_until(lambda: not lives(pid))


@pytest.mark.parametrize("step_seconds", [0.2])
def test_events_tell_place_steps_preview_and_the_picture(server: Running) -> None:
    server.hold()
    running = begin(server, "runs")
    wait_until(server.begun)
    names, statuses = [], []
    body, head = {"prompt": "a", "seed": 7, "steps": 6}, {"accept": "text/event-stream"}
    with server.client.stream("POST", "/generate?upscale=1", json=body, headers=head) as answer:
        for line in answer.iter_lines():
            if line.startswith("event: "):
                names.append(line.removeprefix("event: "))
            elif line.startswith("data: "):
                data = json.loads(line.removeprefix("data: "))
                if names[-1] == "status":
                    statuses.append(data)
                if len(statuses) == 1 and names == ["status"]:
                    server.go()
    assert ended(server, running)["state"] == "succeeded"
    assert statuses[0]["place"] == 0
    steps = [each["progress"][0]["step"] for each in statuses]  # one that is outdated when it could be sent is not
    assert steps == sorted(steps) and 1 <= steps[-1] <= 6
    assert statuses[-1]["progress"] == [{"stage": "base", "step": steps[-1], "steps": 6}]
    assert {"status", "preview", "done"} == set(names)
    assert names[-1] == "done"
    assert data["images"][0]["seed"] == 7


def test_preview_that_fails_does_not_end_the_picture(server: Running) -> None:
    head = {"accept": "text/event-stream"}
    text = server.client.post("/generate?upscale=1", json={"prompt": "blind", "steps": 6}, headers=head).text
    assert "event: done" in text and "event: error" not in text and "event: preview" not in text


def test_events_of_a_failure_end_with_the_problem(server: Running) -> None:
    head = {"accept": "text/event-stream", "x-request-id": "id-9"}
    text = server.client.post("/generate", json={"prompt": "fail"}, headers=head).text
    last = text.strip().rsplit("\n\n", 1)[1].splitlines()
    assert last[0] == "event: error"
    assert json.loads(last[1].removeprefix("data: ")) == {
        "status": 500,
        "detail": "the models failed on this request; the server's log has more under the request id",
        "request_id": "id-9",
    }


def test_reader_of_events_that_goes_away_stops_its_request_but_not_one_in_the_background(server: Running) -> None:
    server.hold()
    background = begin(server, "background")
    wait_until(server.begun)
    with server.client.stream("GET", background + "/events") as follower:
        assert next(follower.iter_lines()) == "event: status"
    head = {"accept": "text/event-stream"}
    with server.client.stream("POST", "/generate", json={"prompt": "mine"}, headers=head) as answer:
        lines = answer.iter_lines()  # kept: httpx closes the connection with the iterator
        assert next(lines) == "event: status"
        assert server.pool.waiting == 1
    wait_until(lambda: server.pool.waiting == 0)
    server.go()
    assert ended(server, background)["state"] == "succeeded"
    assert server.begun() == ["background"]


def test_healthz_does_not_wait_for_busy_workers(server: Running) -> None:
    server.hold()
    begin(server, "a")
    threads, slowest = threading.active_count(), 0.0
    for _ in range(20):
        start = time.monotonic()
        assert server.client.get("/healthz").status_code == 200
        slowest = max(slowest, time.monotonic() - start)
    server.go()
    assert slowest < 5
    assert threading.active_count() < threads + 10  # none for each answer
