"""Uploads, keys, hosts, OpenAI's client, figures and logs, from a real server."""

import asyncio
import base64
import io
import json
import logging
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, aclosing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from fastapi.sse import KEEPALIVE_COMMENT
from openai import APIStatusError, OpenAI
from PIL import Image

from service import security
from service.answers import negotiate
from service.app import UPLOADS_IN_HAND
from service.logs import JsonLines, TextLines, request_id
from service.pictures import encode_picture
from service.problems import Problem
from service.records import Output, Record
from service.requests import ModelInfo
from service.routes_openai import sized, streamed
from service.settings import Settings
from sr3.decoding import read
from sr3.images import Picture
from tests.service_fakes import Running, problem, serving, wait_until

KEY = "a-key-for-the-tests"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    settings = {"max_input_pixels": 4000, "max_pixels": 16 * 4000, "max_upload_bytes": 100_000}
    with serving(tmp_path_factory.mktemp("fake"), **settings) as running:
        yield running


def noise(height: int = 9, width: int = 12, channels: int = 3, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (height, width, channels), dtype, endpoint=True)


def upload(server: Running, data: bytes, query: str = "", kind: str = "image/png") -> httpx.Response:
    return server.client.post(f"/upscale{query}", content=data, headers={"content-type": kind})


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_kind_depth_profile_and_exif_of_an_upload_stay(server: Running, channels: int, dtype: type) -> None:
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "a description", 6
    given = Picture(noise(channels=channels, dtype=dtype), b"a profile", exif.tobytes())
    answer = upload(server, encode_picture(given))
    large = read(answer.content)
    assert large.pixels.shape == (48, 36, channels)
    assert large.pixels.dtype == dtype
    assert large.icc == b"a profile"
    with Image.open(io.BytesIO(answer.content)) as file:
        assert (file.getexif()[0x010E], file.getexif().get(0x0112, 1)) == ("a description", 1)


@pytest.mark.parametrize(
    ("format", "query", "accept", "expected"),
    [
        ("JPEG", "", "*/*", "image/jpeg"),
        ("WEBP", "", "*/*", "image/webp"),
        ("BMP", "", "*/*", "image/png"),
        ("TIFF", "", "*/*", "image/tiff"),
        ("JPEG", "?format=webp", "*/*", "image/webp"),
        ("JPEG", "", "image/png", "image/png"),
    ],
)
def test_format_stays_or_is_what_was_asked(
    server: Running, format: str, query: str, accept: str, expected: str
) -> None:
    buffer = io.BytesIO()
    Image.fromarray(noise()).save(buffer, format)
    head = {"content-type": f"image/{format.lower()}", "accept": accept}
    answer = server.client.post("/upscale" + query, content=buffer.getvalue(), headers=head)
    assert answer.headers["content-type"] == expected
    with Image.open(io.BytesIO(answer.content)) as file:
        assert (file.get_format_mimetype(), file.size) == (expected, (48, 36))


def test_form_takes_the_same_options_and_gives_the_same_bytes(server: Running) -> None:
    data = encode_picture(Picture(noise()))
    raw = upload(server, data, "?factor=16&seed=7&steps=1")
    form = server.client.post("/upscale?factor=16", files={"image": data}, data={"seed": "7", "steps": "1"})
    assert raw.content == form.content
    assert read(raw.content).pixels.shape == (144, 192, 3)
    as_json = server.client.post(
        "/upscale?seed=7", files={"image": data}, headers={"accept": "application/json"}
    ).json()
    assert as_json["images"][0]["settings"]["seed"] == 7


def test_refusals_of_uploads_name_what_is_wrong(server: Running) -> None:
    png = encode_picture(Picture(noise()))
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "WEBP", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")])
    cases = [
        (upload(server, b""), 422, "empty (0 bytes)"),
        (upload(server, b"no picture"), 422, "not a picture in a format that is accepted: PNG"),
        (upload(server, png[:80]), 422, "damaged"),
        (upload(server, buffer.getvalue()), 422, "animated"),
        (upload(server, encode_picture(Picture(noise(7)))), 422, "at least 8 pixels"),
        (upload(server, encode_picture(Picture(noise(80, 80)))), 413, "at most 4000 pixels"),
        (upload(server, encode_picture(Picture(noise(32, 32))), "?factor=16"), 413, "would be 512×512; this server"),
        (upload(server, b"x" * 100_001), 413, "larger than the 100000 bytes that /upscale takes"),
        (upload(server, encode_picture(Picture(noise(channels=4))), "?format=jpeg"), 422, "no transparency"),
        (upload(server, png, "?factor=3"), 422, "factor: "),
        (upload(server, png, "?fator=4"), 422, "only factor, seed"),
        (upload(server, png, "?scheduler=no"), 422, "accepted: DDIM"),
        (upload(server, png, kind="text/plain"), 415, "the content type is text/plain"),
        (server.client.post("/upscale", files={"other": png}), 422, "no file in its field 'image'"),
        (server.client.post("/upscale", data={"image": "http://169.254.169.254/"}), 415, "multipart"),
    ]
    for answer, status, words in cases:
        assert answer.status_code == status, answer.text
        assert words in problem(answer).detail


def test_upload_that_kills_the_worker_is_503_and_ends_nothing(server: Running) -> None:
    assert upload(server, encode_picture(Picture(noise(8, 66)))).status_code == 503
    assert upload(server, encode_picture(Picture(noise()))).status_code == 200


def test_metadata_of_another_program_is_read_and_no_picture_refused(server: Running) -> None:
    answer = server.client.post("/inspect", content=b"x", headers={"content-type": "image/png"})
    assert answer.status_code == 422
    png = encode_picture(Picture(noise()), metadata={"parameters": "a cat\nSteps: 20", "settings": "not JSON"})
    found = server.client.post("/inspect", files={"image": png}).json()
    assert found == {"parameters": "a cat\nSteps: 20", "settings": "not JSON"}


def test_metadata_is_read_of_pictures_as_large_as_are_delivered_and_no_larger(server: Running) -> None:
    answers = {}
    for side in (252, 254):
        png = encode_picture(Picture(np.zeros((side, side, 3), np.uint8)), metadata={"parameters": "a cat"})
        answers[side] = server.client.post("/inspect", files={"image": png})
    assert answers[252].json() == {"parameters": "a cat"}
    assert answers[254].status_code == 413
    assert "254x254; at most 0.064 megapixels" in problem(answers[254]).detail


DEEP = '{"a":' * 5000 + "0" + "}" * 5000


@pytest.mark.parametrize(
    "text",
    [
        '{"a": NaN}',
        '{"a": 1e999}',
        '{"a": "\\ud800"}',
        '{"a": ' + "9" * 5000 + "}",
        "[" * 300 + "]" * 300,
        "[" * 9000 + "]" * 9000,
        DEEP,
        '{"a": "' + "x" * 65_536 + '"}',
    ],
)
def test_settings_that_are_no_object_or_cannot_be_told_are_text(server: Running, text: str) -> None:
    png = encode_picture(Picture(noise()), metadata={"settings": text})
    answer = server.client.post("/inspect", files={"image": png})
    assert answer.status_code == 200
    assert answer.json() == {"settings": text}


@pytest.mark.parametrize("text", ['{"seed": 7, "versions": {"torch": "2"}}', '{"a":' * 300 + "0" + "}" * 300])
def test_settings_are_an_object(server: Running, text: str) -> None:
    png = encode_picture(Picture(noise()), metadata={"settings": text})
    assert server.client.post("/inspect", files={"image": png}).json() == {"settings": json.loads(text)}


@contextmanager
def half_sent(server: Running, path: str, head: str = "", announced: int = 1000) -> Iterator[socket.socket]:
    """A client that sends the first half of a body and then nothing."""
    host, port = server.url.removeprefix("http://").split(":")
    lines = f"POST {path} HTTP/1.1\r\nhost: {host}\r\n{head}content-length: {announced}\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall(lines.encode() + b"{" * (announced // 2))
        yield client


@pytest.mark.parametrize("path", ["/upscale", "/inspect", "/generate", "/v1/images/generations", "/jobs", "/jobs/zip"])
def test_a_body_that_does_not_arrive_is_408(tmp_path: Path, path: str) -> None:
    kind = "content-type: image/png\r\n" if path in ("/upscale", "/inspect") else "content-type: application/json\r\n"
    options = {"data_dir": tmp_path, "max_archive_bytes": 2**20}
    with serving(tmp_path, request_timeout=0.3, **options) as server, half_sent(server, path, kind) as client:
        answer = b""
        while part := client.recv(4096):  # until the server closes the connection
            answer += part
        documented = server.client.get("/openapi.json").json()["paths"][path]["post"]["responses"]
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"the body did not arrive within 0.3 s; 500 bytes of it did" in answer
    assert "408" in documented


def test_one_client_does_not_fill_the_memory_with_uploads(tmp_path: Path) -> None:
    keys = {name: f"{name}-{KEY}" for name in ("me", "you")}
    given = ",".join(f"{name}:{key}" for name, key in keys.items())
    head = f"content-type: image/png\r\nx-api-key: {keys['me']}\r\n"
    png = encode_picture(Picture(noise(8, 8)))
    heads = {name: {"x-api-key": key, "content-type": "image/png"} for name, key in keys.items()}
    with serving(tmp_path, max_upload_bytes=2000, api_keys=given) as server:
        with ExitStack() as stack:
            for _ in range(UPLOADS_IN_HAND // 2):
                stack.enter_context(half_sent(server, "/upscale", head, 2000))
            wait_until(lambda: len(server.app.state.uploads) == UPLOADS_IN_HAND // 2 * 2000)
            for path in ("/upscale", "/inspect"):
                refused = server.client.post(path, content=png, headers=heads["me"])
                assert refused.status_code == 429
                assert "8000 bytes of uploads are under way already, 8000 of them yours" in problem(refused).detail
                assert int(refused.headers["retry-after"]) >= 1
                assert server.client.post(path, content=png, headers=heads["you"]).status_code == 200
        wait_until(lambda: len(server.app.state.uploads) == 0)
        assert server.client.post("/upscale", content=png, headers=heads["me"]).status_code == 200


def test_openais_own_client_works(server: Running) -> None:
    with OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0) as client:
        made = client.images.generate(prompt="a red apple", n=2, size="128x128", extra_body={"seed": 7})
        assert made.data is not None
        pictures = [base64.b64decode(each.b64_json or "") for each in made.data]
        same = server.client.post("/generate?upscale=16", json={"prompt": "a red apple", "seed": 7}).content
        assert pictures[0] == same
        assert pictures[1] != same
        events = list(client.images.generate(prompt="a", stream=True, partial_images=1, output_format="webp"))
        assert events[-1].type == "image_generation.completed"
        assert base64.b64decode(events[-1].b64_json)[8:12] == b"WEBP"
        assert [model.id for model in client.models.list()] == ["fake"]
        for wrong in ({"size": "100x100"}, {"prompt": " "}, {"prompt": "a\x07"}, {"n": 9}):
            with pytest.raises(APIStatusError, match="accepted") as refused:
                client.images.generate(**{"prompt": "a", **wrong})  # type: ignore[call-overload]
            assert refused.value.status_code == 422


def test_openais_client_finds_the_model_by_name_and_no_other(server: Running) -> None:
    with OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0) as client:
        assert client.models.retrieve("fake").id == "fake"
        with pytest.raises(APIStatusError, match="the one model here is 'fake'") as refused:
            client.models.retrieve("dall-e/3")
        assert refused.value.status_code == 404


def test_openais_compression_goes_down_to_0(server: Running) -> None:
    sizes = []
    for compression in (0, 1, 100):
        body = {"prompt": "a", "seed": 7, "output_format": "jpeg", "output_compression": compression}
        answer = server.client.post("/v1/images/generations", json=body)
        assert answer.status_code == 200, answer.text
        sizes.append(len(base64.b64decode(answer.json()["data"][0]["b64_json"])))
    assert sizes[0] <= sizes[1] < sizes[2]


def test_openais_stream_is_kept_alive_while_it_waits(server: Running) -> None:
    async def first() -> bytes:
        record = Record("me", Output(), detached=True)  # of which nothing is heard
        async with aclosing(streamed(server.app.state.records, record, 0, ping_seconds=0.01)) as stream:
            return await anext(stream)

    assert asyncio.run(first()) == KEEPALIVE_COMMENT


def test_no_proxy_is_to_hold_events_back(server: Running) -> None:
    client, body, events = server.client, {"prompt": "a"}, {"accept": "text/event-stream"}
    id = client.post("/generate", json=body, headers={"prefer": "respond-async"}).json()["id"]
    for answer in (
        client.post("/generate", json=body, headers=events),
        client.get(f"/requests/{id}/events"),
        client.post("/v1/images/generations", json=body | {"stream": True}),
    ):
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.headers["x-accel-buffering"] == "no"


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz"])
def test_probes_may_ask_for_the_head_alone(server: Running, path: str) -> None:
    answer = server.client.head(path)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(len(server.client.get(path).content))


def test_a_header_of_several_lines_is_one_list(server: Running) -> None:
    accept = [("accept", "text/plain"), ("accept", "image/webp")]
    answer = server.client.post("/generate", json={"prompt": "a"}, headers=accept)
    assert answer.headers["content-type"] == "image/webp"
    id = answer.headers["request-location"]
    answer = server.client.get(f"{id}/result", headers=[("accept", "text/plain"), ("accept", "image/*")])
    assert answer.headers["content-type"] == "image/webp"
    prefer = [("prefer", "wait=5"), ("prefer", "respond-async")]
    assert server.client.post("/generate", json={"prompt": "a"}, headers=prefer).status_code == 202


@pytest.mark.parametrize(("channels", "dtype"), [(4, np.uint8), (3, np.uint16)])
def test_a_format_that_cannot_hold_the_picture_is_left_for_another(server: Running, channels: int, dtype: type) -> None:
    data = encode_picture(Picture(noise(channels=channels, dtype=dtype)))
    for accept, best in (("image/jpeg, image/png;q=0.9", "image/png"), ("image/jpeg, */*;q=0.1", "image/png")):
        answer = server.client.post("/upscale", content=data, headers={"content-type": "image/png", "accept": accept})
        assert answer.headers["content-type"] == best, answer.text
        assert read(answer.content).pixels.shape == (36, 48, channels)
    only = server.client.post("/upscale", content=data, headers={"content-type": "image/png", "accept": "image/jpeg"})
    assert only.status_code == 406
    assert problem(only).detail.startswith("this picture can be answered as image/png, ")


def test_sizes_are_the_base_models_enlarged() -> None:
    from service.requests import GenerateRequest

    info, ask = ModelInfo(width=64, height=64, size_multiple=8), GenerateRequest("a", 1)
    for size, upscale in (("auto", 4), ("64x64", 1), ("256x256", 4), ("1024x1024", 16)):
        assert sized(ask, size, info) == GenerateRequest("a", 1, upscale)
    wide = sized(ask, "384x256", info)
    assert (wide.upscale, wide.width, wide.height) == (4, 96, 64)


def test_keys_are_wanted_everywhere_but_where_nothing_is_told(tmp_path: Path) -> None:
    with serving(tmp_path, api_keys=f"me:{KEY},other/1:{KEY}-other") as server:
        paths = {"/healthz": 200, "/readyz": 200, "/": 200, "/docs": 200, "/openapi.json": 200}
        paths |= {"/metrics": 401, "/info": 401, "/requests/1": 401, "/v1/models": 401}
        for path, status in paths.items():
            assert server.client.get(path).status_code == status, path
        answer = server.client.post("/generate", json={"prompt": "a"}, headers={"authorization": "Bearer wrong"})
        assert "not one of this server's" in problem(answer).detail
        assert answer.headers["www-authenticate"] == "Bearer"
        mine = {"authorization": f"Bearer {KEY}", "prefer": "respond-async"}
        begun = server.client.post("/generate", json={"prompt": "a"}, headers=mine)
        assert begun.status_code == 202
        for key, status in ((KEY, 200), (f"{KEY}-other", 404)):
            assert server.client.get(begun.headers["location"], headers={"x-api-key": key}).status_code == status
        for status in (200, 429):
            limited = server.client.post("/generate", json={"prompt": "a"}, headers={"x-api-key": f"{KEY}-other"})
            assert limited.status_code == status
        assert "1 times a minute" in problem(limited).detail
        head = {"x-api-key": f"{KEY}-other", "content-type": "image/png"}
        assert server.client.post("/inspect", content=b"x", headers=head).status_code == 429


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 421),
        ({"host": "localhost"}, 200),
        ({"host": "10.1.2.3:8000"}, 200),  # no name server makes an address lead elsewhere
        ({"host": "[fe80::1]:8000"}, 200),
        ({"host": "10.1.2.3.evil.example"}, 421),
        ({"host": "["}, 421),
        ({"host": ""}, 421),
        ({"origin": "http://["}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
    ],
)
def test_other_sites_pages_and_names_are_sent_away(server: Running, headers: dict[str, str], status: int) -> None:
    answer = server.client.post("/generate", json={"prompt": "a"}, headers=headers)
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers
    if status != 200:
        problem(answer)


def test_origin_that_is_allowed_may_ask(tmp_path: Path) -> None:
    with serving(tmp_path, cors_origins="https://good.example") as server:
        head = {"origin": "https://good.example", "sec-fetch-site": "cross-site"}
        answer = server.client.post("/generate", json={"prompt": "a"}, headers=head)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://good.example"


def test_all_origins_may_be_allowed(tmp_path: Path) -> None:
    with serving(tmp_path, cors_origins="*") as server:
        head = {"origin": "https://any.example", "sec-fetch-site": "cross-site"}
        answer = server.client.post("/generate", json={"prompt": "a"}, headers=head)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "*")
    assert "Request-Location" in answer.headers["access-control-expose-headers"]


def test_no_more_pictures_are_taken_at_a_time_than_may_wait(tmp_path: Path) -> None:
    with serving(tmp_path, queue_size=2) as server:
        for path, body in (("/generate", {"num_images": 3}), ("/v1/images/generations", {"n": 3})):
            answer = server.client.post(path, json={"prompt": "a", **body})
            assert answer.status_code == 422 and "1 to 2" in problem(answer).detail
        assert server.client.get("/info").json()["settings"]["max_images"] == 2


def test_a_minutes_limit_says_how_long_to_wait_and_no_less(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(security, "time", SimpleNamespace(monotonic=lambda: now))
    gatekeeper = security.Gatekeeper(Settings(requests_per_minute=35))
    for _ in range(35):
        gatekeeper.count("somebody")
    with pytest.raises(Problem, match="35 times a minute; try again in 2 s") as refused:  # 60/35 s, which is 1.7
        gatekeeper.count("somebody")
    assert refused.value.headers == {"Retry-After": "2"}
    now = 1.7
    with pytest.raises(Problem, match="try again in 1 s"):
        gatekeeper.count("somebody")
    now = 2.0
    gatekeeper.count("somebody")
    with pytest.raises(Problem):
        gatekeeper.count("somebody")


def test_answers_are_protected_and_the_page_runs_nothing_but_its_own(server: Running) -> None:
    for path in ("/", "/docs", "/healthz", "/page/app.js", "/nowhere"):
        answer = server.client.get(path)
        assert answer.headers["x-content-type-options"] == "nosniff"
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe-inline" not in policy.partition("style-src")[0]
    page = server.client.get("/").text
    assert "<script>" not in page and " onclick" not in page and " style=" not in page
    assert "http://" not in page and "https://" not in page


def test_figures_count_what_happened(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        for prompt in ("a", "b", "refuse"):
            server.client.post("/generate", json={"prompt": prompt})
        text = server.client.get("/metrics").text
    for line in (
        'service_requests_total{route="/generate",status="200"} 2.0',
        'service_requests_total{route="/generate",status="422"} 1.0',
        "service_pictures_total 2.0",
        "service_batch_size_count 3.0",
        'service_stage_seconds_count{stage="base"} 2.0',
        'service_steps_total{stage="base"} 9.0',
        "service_queue_depth 0.0",
        "service_worker_restarts_total 0.0",
        "service_ready 1.0",
    ):
        assert line in text, line
    assert "service_worker_memory_bytes" in text


def test_a_batch_is_timed_once_and_not_for_each_of_its_pictures(tmp_path: Path) -> None:
    with serving(tmp_path, max_batch=4, batch_wait_ms=1000) as server:
        server.client.post("/generate", json={"prompt": "a", "num_images": 4})
        text = server.client.get("/metrics").text
    assert server.begun() == ["a+a+a+a"]
    assert "service_pictures_total 4.0" in text
    assert 'service_stage_seconds_count{stage="base"} 1.0' in text
    assert 'service_stage_seconds_sum{stage="base"} 0.25' in text


@pytest.mark.parametrize(
    ("path", "kind"), [("/upscale", "image/png"), ("/inspect", "image/png"), ("/jobs/zip", "application/zip")]
)
def test_client_that_leaves_while_it_sends_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, path: str, kind: str
) -> None:
    with caplog.at_level(logging.INFO, "service"), serving(tmp_path, data_dir=tmp_path) as server:
        with half_sent(server, path, f"content-type: {kind}\r\n"):
            pass
        wait_until(lambda: f'service_requests_total{{route="{path}"' in server.client.get("/metrics").text)
        text = server.client.get("/metrics").text
    assert f'service_requests_total{{route="{path}",status="499"}} 1.0' in text
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_log_has_ids_and_no_prompts_unless_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for asked in (False, True):
        caplog.clear()
        with caplog.at_level(logging.INFO, "service"), serving(tmp_path, log_prompts=asked) as server:
            server.client.post("/generate", json={"prompt": "a secret wish"}, headers={"x-request-id": "id-1"})
        token = request_id.set("id-1")
        lines = [json.loads(JsonLines().format(record)) for record in caplog.records]
        request_id.reset(token)
        access = next(line for line in lines if line["logger"] == "service.access" and line["path"] == "/generate")
        assert (access["status"], access["method"], access["request_id"]) == (200, "POST", "id-1")
        assert ("a secret wish" in json.dumps(lines)) is asked


def test_a_path_that_is_no_url_is_logged_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "service"), serving(tmp_path) as server:
        assert server.client.get("/%2f[").status_code == 404
    assert "GET //[ 404" in [record.getMessage() for record in caplog.records if record.name == "service.access"]


@pytest.mark.parametrize("breaks", ["\n", "\r\n", "\x1b[2K\r", "\x85", "\u2028"])
def test_nobody_writes_lines_of_their_own_into_the_log(breaks: str) -> None:
    path = f"/x{breaks}2026-01-01 ERROR service: forged"
    record = logging.makeLogRecord({"msg": "%s %s", "args": ("GET", path), "name": "service.access"})
    (line,) = TextLines().format(record).splitlines()
    assert "GET /x" in line and "forged" in line
    assert "\x1b" not in line


def test_a_trace_keeps_its_lines() -> None:
    try:
        raise ValueError("why")
    except ValueError:
        record = logging.makeLogRecord({"msg": "failed", "exc_info": sys.exc_info()})
    assert TextLines().format(record).splitlines()[-1] == "ValueError: why"


@pytest.mark.parametrize(
    ("accept", "best"),
    [
        ("", "image/png"),
        ("*/*", "image/png"),
        ("application/*", "application/json"),
        ("image/png;q=0.1, application/json;q=0.2", "application/json"),
        ("image/*;q=0", None),
        ("image/png;q=0, */*", "application/json"),
        ("image/png;q=x", None),
        (",;,q=", None),
    ],
)
def test_accept_is_read_as_the_standard_says(accept: str, best: str | None) -> None:
    assert negotiate(accept, ["image/png", "application/json"]) == best
