"""Over HTTP, from a real server with a fake cascade: pictures, seeds, state, queue, cancelling."""

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from PIL import Image

from service.app import create_app
from service.pool import State
from service.requests import GenerateRequest, ModelInfo
from service.routes_generate import most_base_pixels
from service.settings import Settings
from tests.service_fakes import BASE, Running, fake, flat_result, problem, serving, wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(tmp_path_factory.mktemp("fake")) as running:
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


def test_timings_are_reported_in_milliseconds(server: Running) -> None:
    timing = server.client.post("/generate", json={"prompt": "a"}).headers["server-timing"]
    entries = dict(entry.split(";dur=") for entry in timing.split(", "))
    assert list(entries) == ["queue", "base", "encode"]
    assert entries["base"] == "250.0"
    assert float(entries["encode"]) > 0


def test_request_id_of_the_client_is_kept_and_an_unsafe_one_replaced(server: Running) -> None:
    kept = server.client.get("/healthz", headers={"X-Request-Id": "job-1.a_B"})
    replaced = server.client.get("/healthz", headers={"X-Request-Id": "a b<script>"})
    assert kept.headers["x-request-id"] == "job-1.a_B"
    assert len(replaced.headers["x-request-id"]) == 32


def test_several_pictures_take_the_seeds_that_follow_and_share_a_batch(server: Running) -> None:
    body = {"prompt": "several", "seed": 2**32 - 1, "num_images": 3}
    answer = server.client.post("/generate?upscale=1", json=body)
    assert answer.headers["content-type"] == "application/json"
    images = answer.json()["images"]
    assert [image["seed"] for image in images] == [2**32 - 1, 0, 1]
    alone = server.client.post("/generate?upscale=1", json={"prompt": "several", "seed": 1}).content
    assert base64.b64decode(images[2]["b64_json"]) == alone
    assert images[2]["settings"]["seed"] == 1
    assert "several+several+several" in server.begun()


@pytest.mark.parametrize(
    ("accept", "format", "kind"),
    [
        ("*/*", None, "image/png"),
        ("image/webp", None, "image/webp"),
        ("image/png;q=0.5, image/jpeg", None, "image/jpeg"),
        ("image/*", "jpeg", "image/jpeg"),
        ("*/*", "webp", "image/webp"),
        ("application/json, image/png;q=0.9", None, "application/json"),
        ("text/html, text/event-stream", None, "text/event-stream; charset=utf-8"),
    ],
)
def test_accept_and_format_choose_the_answer(server: Running, accept: str, format: str | None, kind: str) -> None:
    body = {"prompt": "a", "seed": 7} | ({"format": format} if format else {})
    answer = server.client.post("/generate?upscale=1", json=body, headers={"accept": accept})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == kind
    if kind.startswith("image/"):
        assert Image.open(io.BytesIO(answer.content)).get_format_mimetype() == kind


@pytest.mark.parametrize(("accept", "body"), [("text/html", {}), ("image/png", {"num_images": 2})])
def test_nothing_acceptable_is_406_with_what_there_is(server: Running, accept: str, body: dict[str, int]) -> None:
    answer = server.client.post("/generate", json={"prompt": "a", **body}, headers={"accept": accept})
    assert answer.status_code == 406
    assert "application/json, text/event-stream" in problem(answer).detail


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_file_says_how_it_was_made_unless_told_not_to(server: Running, format: str) -> None:
    body = {"prompt": "红苹果, a", "negative_prompt": "b", "seed": 7, "format": format}
    kind = {"content-type": f"image/{format}"}
    told = server.client.post("/generate", json=body).content
    read = server.client.post("/inspect", content=told, headers=kind).json()
    assert read["settings"]["prompt"] == "红苹果, a"
    assert (read["settings"]["seed"], read["settings"]["sampler"]) == (7, "DDIM")
    assert read["parameters"].startswith("红苹果, a\nNegative prompt: b\nSteps: 3, Sampler: DDIM, Seed: 7, ")
    silent = server.client.post("/generate", json={**body, "metadata": "none"}).content
    assert server.client.post("/inspect", content=silent, headers=kind).json() == {}
    assert "红".encode() not in silent


def test_unknown_scheduler_and_size_are_refused_before_they_wait(server: Running) -> None:
    for field, value in (("scheduler", "no"), ("sr_scheduler", "no"), ("width", 12), ("height", 9)):
        answer = server.client.post("/generate", json={"prompt": "refused", field: value})
        assert answer.status_code == 422
        (error,) = problem(answer).errors or []
        assert (error.field, error.got) == (field, json.dumps(value))
    assert server.client.post("/generate", json={"prompt": "a", "scheduler": "ddim", "width": 8}).status_code == 200
    assert "refused" not in server.begun()


def test_picture_that_would_be_too_large_is_413(tmp_path: Path) -> None:
    with serving(tmp_path, max_pixels=32 * 32) as server:
        assert server.client.post("/generate?upscale=4", json={"prompt": "a"}).status_code == 200
        answer = server.client.post("/generate?upscale=16", json={"prompt": "a"})
    assert answer.status_code == 413
    assert "128×128; at most 1024 pixels" in problem(answer).detail


def test_picture_that_its_format_cannot_hold_is_413_before_it_is_drawn(server: Running) -> None:
    sides = {"prompt": "long", "width": 4096, "height": 16}
    for upscale, format, accepted in ((4, "webp", False), (4, "png", True), (1, "webp", True)):
        answer = server.client.post(f"/generate?upscale={upscale}", json=sides | {"format": format, "seed": 1})
        assert answer.status_code == (200 if accepted else 413), answer.text
        if not accepted:
            assert problem(answer).detail == "WEBP holds sides of at most 16383 pixels; ask for PNG"
            assert "long" not in server.begun()


def test_base_picture_that_would_hold_the_device_for_long_is_413(server: Running, tmp_path: Path) -> None:
    for width, height in ((4096, 4096), (24, 4096), (264, 256)):
        answer = server.client.post("/generate?upscale=1", json={"prompt": "a", "width": width, "height": height})
        assert answer.status_code == 413, answer.text
        assert f"{width}×{height}; at most 65536 pixels" in problem(answer).detail
    answer = server.client.post("/generate?upscale=1", json={"prompt": "a", "width": 256, "height": 256})
    assert answer.status_code == 200
    with serving(tmp_path, max_base_pixels=16 * 16) as strict:
        assert strict.client.get("/info").json()["settings"]["max_base_pixels"] == 256
        answers = [strict.client.post("/generate", json={"prompt": "a", "width": side}) for side in (32, 40)]
        as_openai = strict.client.post("/v1/images/generations", json={"prompt": "a", "size": "64x64"})
    assert [answer.status_code for answer in answers] == [200, 413]
    assert "40×8; at most 256 pixels" in problem(answers[1]).detail
    assert "SERVICE_MAX_BASE_PIXELS=320 would let it pass" in problem(answers[1]).detail
    assert as_openai.status_code == 200


@pytest.mark.parametrize(
    ("own", "asked", "fits"),
    [
        (64, (256, 256), True),
        (64, (512, 512), False),
        (512, (1024, 1024), True),
        (1024, (1344, 768), True),
        (1024, (1920, 1088), True),
        (1024, (2048, 2048), True),
        (1024, (4096, 4096), False),
    ],
)
def test_base_models_draw_what_people_ask_of_them(own: int, asked: tuple[int, int], fits: bool) -> None:
    info = ModelInfo(width=own, height=own)
    assert (asked[0] * asked[1] <= most_base_pixels(Settings(), info)) is fits


def test_healthz_answers_while_loading_and_the_rest_says_so(tmp_path: Path) -> None:
    (tmp_path / "hold-load").touch()
    with serving(tmp_path, ready=False) as server:
        assert server.client.get("/healthz").json() == {"status": "ok"}
        for answer in (server.client.get("/readyz"), server.client.post("/generate", json={"prompt": "a"})):
            assert answer.status_code == 503
            assert problem(answer).detail == "the models are still loading"
            assert int(answer.headers["retry-after"]) > 0
        (tmp_path / "hold-load").unlink()
        wait_until(lambda: server.client.get("/readyz").status_code == 200)
        assert server.client.get("/readyz").json() == {"status": "ready"}
        assert server.client.post("/generate", json={"prompt": "a"}).status_code == 200


def test_models_that_cannot_be_loaded_are_reported_without_their_path(tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    with serving(tmp_path, ready=False) as server:
        wait_until(lambda: server.pool.state is State.FAILED)
        answer = server.client.post("/generate", json={"prompt": "a"})
        assert server.client.get("/healthz").status_code == 200
    assert answer.status_code == 503
    assert problem(answer).detail == "the models could not be loaded; the server's log says why"


@pytest.mark.parametrize("how", ["fail", "fail-alone", "exit", "nothing"])
def test_failure_is_500_with_the_id_and_no_trace_and_ends_nothing(server: Running, how: str) -> None:
    answer = server.client.post("/generate", json={"prompt": how}, headers={"X-Request-Id": "id-1"})
    assert answer.status_code == 500
    assert problem(answer).request_id == "id-1"
    for word in ("secret", "Traceback", "complex"):
        assert word not in answer.text
    assert server.client.post("/generate", json={"prompt": "a"}).status_code == 200


def test_what_the_models_refuse_is_422(server: Running) -> None:
    answer = server.client.post("/generate", json={"prompt": "refuse " * 99})
    assert answer.status_code == 422
    (error,) = problem(answer).errors or []
    assert (error.field, error.message) == ("prompt", "99 tokens; the base model reads at most 77")
    assert (error.got or "").startswith('"refuse refuse')


def test_requests_are_traced_without_prompts(tmp_path: Path) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = create_app(Settings(), fake(tmp_path), {"tracer_provider": provider})
    trace = "0af7651916cd43dd8448eb211c80319c"

    async def ask() -> httpx.Response:
        head = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return await client.post("/generate", json={"prompt": "a secret", "steps": 0}, headers=head)

    assert asyncio.run(ask()).status_code == 422
    spans = exporter.get_finished_spans()
    (request,) = [each for each in spans if each.kind is SpanKind.SERVER]
    assert request.name == "POST /generate" and request.attributes["http.response.status_code"] == 422
    assert f"{request.context.trace_id:032x}" == trace
    assert not any("secret" in each.to_json() for each in spans)
