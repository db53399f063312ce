"""Over HTTP, from a real server with a fake cascade: pictures, seeds, state, queue, cancelling."""

import io
import json
import threading
from collections.abc import Iterator

import pytest
from PIL import Image

from service.cascade import Cascade, GenerateRequest, InvalidRequest
from service.settings import Settings
from service.worker import State
from tests.service_fakes import BASE, FakeCascade, Running, flat_result, problem, serving, wait_until


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(Settings(), lambda settings: FakeCascade()) as running:
        yield running


@pytest.mark.parametrize("upscale", [1, 4, 16])
def test_picture_has_the_size_asked(server: Running, upscale: int) -> None:
    answer = server.client.post(f"/generate?upscale={upscale}", json={"prompt": "a red apple", "seed": 7})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["seed"] == "7"
    picture = Image.open(io.BytesIO(answer.content))
    assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (BASE * upscale, BASE * upscale))
    expected = flat_result(GenerateRequest("", seed=7, upscale=upscale)).image
    assert picture.tobytes() == expected.tobytes()


def test_upscale_is_4_unless_asked_otherwise(server: Running) -> None:
    body = {"prompt": "a", "seed": 1}
    plain, four = (server.client.post("/generate" + query, json=body).content for query in ("", "?upscale=4"))
    assert plain == four


def test_same_seed_same_bytes_and_another_seed_another_picture(server: Running) -> None:
    first, again, other = (
        server.client.post("/generate", json={"prompt": "a", "seed": seed}).content for seed in (7, 7, 8)
    )
    assert first == again
    assert first != other


def test_seed_that_was_drawn_is_reported_and_makes_the_picture_again(server: Running) -> None:
    drawn = [server.client.post("/generate", json={"prompt": "a"}) for _ in range(2)]
    seeds = [int(answer.headers["seed"]) for answer in drawn]
    assert seeds[0] != seeds[1]
    assert all(0 <= seed < 2**32 for seed in seeds)
    again = server.client.post("/generate", json={"prompt": "a", "seed": seeds[0]})
    assert again.content == drawn[0].content
    text = Image.open(io.BytesIO(again.content)).info
    assert f"Seed: {seeds[0]}" in text["parameters"]
    assert json.loads(text["settings"])["seed"] == seeds[0]


@pytest.mark.parametrize("prompt", ["🍎🌳", "一个红苹果", "ünïcödé", "two\nlines", "a" * 1000, "  " * 2000 + "a"])
def test_prompts_in_any_script_work_and_are_written_down(server: Running, prompt: str) -> None:
    answer = server.client.post("/generate?upscale=1", json={"prompt": prompt, "negative_prompt": "模糊"})
    assert answer.status_code == 200
    text = Image.open(io.BytesIO(answer.content)).info
    assert json.loads(text["settings"])["prompt"] == prompt.strip()
    assert text["parameters"].startswith(prompt.strip() + "\nNegative prompt: 模糊\n")


def test_all_options_reach_the_cascade() -> None:
    seen: list[GenerateRequest] = []

    class Listening(FakeCascade):
        def generate(self, request, on_step=None):  # type: ignore[no-untyped-def]
            seen.append(request)
            return super().generate(request, on_step)

    options = {
        "prompt": "a",
        "negative_prompt": "b",
        "seed": 2**32 - 1,
        "steps": 9,
        "guidance_scale": 3,
        "sr_steps": 0,
        "aug_level": 0.5,
    }
    with serving(Settings(), lambda settings: Listening()) as server:
        assert server.client.post("/generate?upscale=1", json=options).status_code == 200
    assert seen == [GenerateRequest(upscale=1, **options)]  # type: ignore[arg-type]


def test_timings_are_reported_in_milliseconds(server: Running) -> None:
    timing = server.client.post("/generate", json={"prompt": "a"}).headers["server-timing"]
    entries = dict(entry.split(";dur=") for entry in timing.split(", "))
    assert list(entries) == ["queue", "base", "png"]
    assert entries["base"] == "250.0"
    assert float(entries["png"]) > 0


def test_request_id_of_the_client_is_kept_and_an_unsafe_one_replaced(server: Running) -> None:
    kept = server.client.get("/healthz", headers={"X-Request-Id": "job-1.a_B"})
    replaced = server.client.get("/healthz", headers={"X-Request-Id": "a b<script>"})
    assert kept.headers["x-request-id"] == "job-1.a_B"
    assert len(replaced.headers["x-request-id"]) == 32


def test_healthz_answers_while_loading_and_the_rest_says_so() -> None:
    loaded = threading.Event()

    def slow(settings: Settings) -> Cascade:
        assert loaded.wait(20)
        return FakeCascade()

    with serving(Settings(), slow, ready=False) as server:
        assert server.client.get("/healthz").json() == {"status": "ok"}
        for answer in (server.client.get("/readyz"), server.client.post("/generate", json={"prompt": "a"})):
            assert answer.status_code == 503
            assert problem(answer).detail == "the models are still loading"
            assert int(answer.headers["retry-after"]) > 0
        loaded.set()
        wait_until(lambda: server.client.get("/readyz").status_code == 200)
        assert server.client.get("/readyz").json() == {"status": "ready"}
        assert server.client.post("/generate", json={"prompt": "a"}).status_code == 200


def test_models_that_cannot_be_loaded_are_reported_without_their_path() -> None:
    def broken(settings: Settings) -> Cascade:
        raise OSError("/secret/place is missing")

    with serving(Settings(), broken, ready=False) as server:
        wait_until(lambda: server.worker.state is State.FAILED)
        answer = server.client.post("/generate", json={"prompt": "a"})
        assert server.client.get("/healthz").status_code == 200
    assert answer.status_code == 503
    assert problem(answer).detail == "the models could not be loaded; the server's log says why"


def test_failure_of_the_models_is_500_with_the_id_and_no_trace() -> None:
    cascade = FakeCascade(RuntimeError("secret: /root/model"))
    with serving(Settings(), lambda s: cascade) as server:
        answer = server.client.post("/generate", json={"prompt": "a"}, headers={"X-Request-Id": "id-1"})
        cascade.error = None
        assert server.client.post("/generate", json={"prompt": "a"}).status_code == 200
    assert answer.status_code == 500
    assert problem(answer).request_id == "id-1"
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("error", [SystemExit(3), StopIteration()])
def test_odd_ways_to_fail_are_500_and_end_nothing(error: BaseException) -> None:
    class Odd(FakeCascade):
        def generate(self, request, on_step=None):  # type: ignore[no-untyped-def]
            raise error

    with serving(Settings(), lambda s: Odd()) as server:
        for _ in range(2):
            assert server.client.post("/generate", json={"prompt": "a"}).status_code == 500


def test_failure_outside_the_models_is_500_too() -> None:
    class NotAPicture(FakeCascade):
        def generate(self, request, on_step=None):  # type: ignore[no-untyped-def]
            result = flat_result(request)
            return type(result)(result.image[..., 0].astype(complex), result.seed, {}, result.used)

    with serving(Settings(), lambda s: NotAPicture()) as server:
        answer = server.client.post("/generate", json={"prompt": "a"})
        assert server.client.get("/readyz").status_code == 200
    assert answer.status_code == 500
    assert "complex" not in problem(answer).detail


def test_what_the_models_refuse_is_422() -> None:
    refusal = InvalidRequest("prompt", "word " * 99, "99 tokens; the base model reads at most 77")
    with serving(Settings(), lambda s: FakeCascade(refusal)) as server:
        answer = server.client.post("/generate", json={"prompt": "word " * 99})
    assert answer.status_code == 422
    (error,) = problem(answer).errors or []
    assert (error.field, error.message) == ("prompt", "99 tokens; the base model reads at most 77")
    assert (error.got or "").startswith('"word word')
