"""Every bad request gets a problem document that says which field, what was got and what is accepted."""

import json
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.schemas import ProblemBody
from tests.service_fakes import Running, serving

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(tmp_path_factory.mktemp("fake"), max_prompt_chars=50, max_body_bytes=16_384) as running:
        yield running


def problem(response: httpx.Response, status: int) -> ProblemBody:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = ProblemBody.model_validate_json(response.content)
    assert body.status == status
    assert body.request_id == response.headers["x-request-id"]
    return body


TEXT = "text of 1 to 50 characters, none of them control characters"
SEED = "an integer from 0 to 4294967295 or null"
STEPS = "an integer from 1 to 100 or null"
GUIDANCE = "a number from 0 to 20 or null"


@pytest.mark.parametrize(
    ("body", "field", "got", "accepted"),
    [
        ({}, "prompt", None, TEXT),
        ({"prompt": ""}, "prompt", '""', TEXT),
        ({"prompt": "   \n "}, "prompt", '"   \\n "', TEXT),
        ({"prompt": "a" * 51}, "prompt", '"' + "a" * 51 + '"', TEXT),
        ({"prompt": 7}, "prompt", "7", TEXT),
        ({"prompt": None}, "prompt", "null", TEXT),
        ({"prompt": ["a"]}, "prompt", '["a"]', TEXT),
        ({"prompt": "a\x00b"}, "prompt", '"a\\u0000b"', TEXT),
        ({"prompt": "a\ufffe"}, "prompt", '"a\ufffe"', TEXT),
        ({"prompt": "a", "negative_prompt": "b" * 51}, "negative_prompt", '"' + "b" * 51 + '"', None),
        ({"prompt": "a", "seed": -1}, "seed", "-1", SEED),
        ({"prompt": "a", "seed": 2**32}, "seed", "4294967296", SEED),
        ({"prompt": "a", "seed": "7"}, "seed", '"7"', SEED),
        ({"prompt": "a", "seed": 7.5}, "seed", "7.5", SEED),
        ({"prompt": "a", "seed": True}, "seed", "true", SEED),
        ({"prompt": "a", "steps": 0}, "steps", "0", STEPS),
        ({"prompt": "a", "steps": 101}, "steps", "101", STEPS),
        ({"prompt": "a", "sr_steps": -1}, "sr_steps", "-1", "an integer from 0 to 50 or null"),
        ({"prompt": "a", "sr_steps": 51}, "sr_steps", "51", "an integer from 0 to 50 or null"),
        ({"prompt": "a", "guidance_scale": 20.1}, "guidance_scale", "20.1", GUIDANCE),
        ({"prompt": "a", "guidance_scale": -0.1}, "guidance_scale", "-0.1", GUIDANCE),
        ({"prompt": "a", "aug_level": 1}, "aug_level", "1", "a number from 0 to below 1 or null"),
        ({"prompt": "a", "aug_level": -0.5}, "aug_level", "-0.5", "a number from 0 to below 1 or null"),
        ({"prompt": "a", "num_images": 9}, "num_images", "9", "an integer from 1 to 8"),
        ({"prompt": "a", "format": "gif"}, "format", '"gif"', "png, jpeg, webp or tiff or null"),
        ({"prompt": "a", "metadata": 1}, "metadata", "1", "full or none"),
        ({"prompt": "a", "width": 4}, "width", "4", "an integer from 8 to 4096 or null"),
    ],
)
def test_bad_field_is_named(
    server: Running, body: dict[str, object], field: str, got: str | None, accepted: str | None
) -> None:
    answer = problem(server.client.post("/generate", json=body), 422)
    (error,) = answer.errors or []
    assert (error.location, error.field, error.got) == ("body", field, got)
    assert accepted in (error.accepted, None)
    assert answer.detail.startswith(field + ": ")
    assert accepted is None or accepted in answer.detail
    assert "pattern" not in answer.detail


def test_unknown_field_is_named_with_those_that_are_known(server: Running) -> None:
    answer = problem(server.client.post("/generate", json={"prompt": "a", "promt": "b"}), 422)
    (error,) = answer.errors or []
    assert (error.field, error.got) == ("promt", '"b"')
    assert error.accepted is not None
    assert error.accepted.startswith("only prompt, negative_prompt, seed, num_images, steps, guidance_scale, ")


def test_all_bad_fields_are_named_at_once(server: Running) -> None:
    answer = problem(server.client.post("/generate?upscale=2", json={"prompt": "", "steps": 0}), 422)
    assert [error.field for error in answer.errors or []] == ["upscale", "prompt", "steps"]


@pytest.mark.parametrize("upscale", ["3", "0", "-4", "x", "", "2.5", "4x", "1,4"])
def test_upscale_takes_three_values(server: Running, upscale: str) -> None:
    answer = problem(server.client.post("/generate", params={"upscale": upscale}, json={"prompt": "a"}), 422)
    (error,) = answer.errors or []
    assert (error.location, error.field, error.got) == ("query", "upscale", json.dumps(upscale))
    assert error.accepted == "1, 4 or 16"


def test_unknown_query_is_named(server: Running) -> None:
    answer = problem(server.client.post("/generate?upscael=16", json={"prompt": "a"}), 422)
    (error,) = answer.errors or []
    assert (error.location, error.field, error.accepted) == ("query", "upscael", "only upscale")


@pytest.mark.parametrize("body", ["[]", '"a"', "7", "null", ""])
def test_body_that_is_no_object(server: Running, body: str) -> None:
    answer = problem(server.client.post("/generate", content=body, headers=JSON), 422)
    (error,) = answer.errors or []
    assert (error.location, error.field) == ("body", "")
    assert "a JSON object with prompt" in answer.detail


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": "a"',
        b"{'prompt': 'a'}",
        b"prompt=a",
        b'{"prompt": "a",}',
        b"\xff\xfe\xff",
        b'{"prompt": "\xff"}',
        b"[" * 16_000,
        b'{"prompt": "a", "seed": ' + b"9" * 10_000 + b"}",
    ],
)
def test_body_that_is_not_json_is_400(server: Running, body: bytes) -> None:
    problem(server.client.post("/generate", content=body, headers=JSON), 400)


def test_place_of_the_fault_in_bad_json_is_named(server: Running) -> None:
    answer = problem(server.client.post("/generate", content=b'{"prompt": }', headers=JSON), 400)
    assert answer.detail == "the body is not JSON: Expecting value at character 11"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ('{"prompt": "a", "guidance_scale": NaN}', 422),
        ('{"prompt": "a", "aug_level": Infinity}', 422),
        ('{"prompt": "\\ud800"}', 422),
        ('{"prompt": "a", "\\ud800": 1}', 422),
        ('{"prompt": "a", "seed": 1e400}', 422),
        ('{"prompt": "a", "seed": ' + "9" * 300 + "}", 422),
        ('{"prompt": "a", "prompt": "b"}', 200),
    ],
)
def test_odd_json(server: Running, body: str, status: int) -> None:
    answer = server.client.post("/generate", content=body, headers=JSON)
    if status == 200:
        assert answer.status_code == 200
    else:
        problem(answer, status)


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "image/png", None])
def test_content_type_that_is_not_json_is_415(server: Running, kind: str | None) -> None:
    headers = {"content-type": kind} if kind else {}
    answer = server.client.post("/generate", content=b'{"prompt": "a"}', headers=headers)
    assert "content-type: application/json" in problem(answer, 415).detail
    assert answer.headers["accept"] == "application/json"


def test_uploaded_file_is_415(server: Running) -> None:
    answer = server.client.post("/generate", files={"prompt": b"a"})
    assert "multipart/form-data" in problem(answer, 415).detail


def test_an_encoded_body_is_415(server: Running) -> None:
    for path, kind in (("/generate", "application/json"), ("/upscale", "image/png")):
        headers = {"content-encoding": "gzip", "content-type": kind}
        answer = server.client.post(path, content=b"\x1f\x8b", headers=headers)
        assert "encoded as gzip" in problem(answer, 415).detail
        assert answer.headers["accept-encoding"] == "identity"


def test_what_cannot_be_parsed_says_what_is_wanted(server: Running) -> None:
    for body in (b'{"prompt": "\xff\xfe"}', b"[" * 15_000, b'{"seed": ' + b"9" * 5000 + b"}"):
        answer = server.client.post("/generate", content=body, headers={"content-type": "application/json"})
        assert "it must be UTF-8, of moderate depth" in problem(answer, 400).detail


def test_a_long_text_is_counted_without_its_quotes(server: Running) -> None:
    answer = server.client.post("/generate", json={"prompt": '"' * 1001})
    assert "(1001 characters)" in problem(answer, 422).detail


def test_the_model_that_takes_no_scheduler_is_named(server: Running) -> None:
    answer = server.client.post("/generate", json={"prompt": "a", "sr_scheduler": "Karras"})
    assert "the super-resolution model does not take it" in problem(answer, 422).detail


def test_openais_size_and_prompt_say_what_is_taken(server: Running) -> None:
    for body, accepted in (
        ({"prompt": "a", "size": "1024x1024x"}, "auto, "),
        ({"prompt": "a", "size": "x" * 50}, "auto, "),
        ({"prompt": ""}, "accepted: text of 1 to 50 characters"),
    ):
        answer = server.client.post("/v1/images/generations", json=body)
        assert answer.status_code == 422 and accepted in answer.json()["error"]["message"]


@pytest.mark.parametrize("chunked", [False, True])
def test_body_over_the_limit_is_413(server: Running, chunked: bool) -> None:
    body = json.dumps({"prompt": "a" * 20_000}).encode()
    content = iter([body[:9000], body[9000:]]) if chunked else body
    answer = server.client.post("/generate", content=content, headers=JSON)
    assert problem(answer, 413).detail == "the body is larger than the 16384 bytes that /generate takes"


def test_body_just_within_the_limit_is_read(server: Running) -> None:
    body = json.dumps({"prompt": "a"}).encode().ljust(16_384)
    assert server.client.post("/generate", content=body, headers=JSON).status_code == 200


def test_unknown_path_and_method(server: Running) -> None:
    assert "/nowhere" in problem(server.client.get("/nowhere"), 404).detail
    wrong = server.client.get("/generate")
    assert "does not take GET; it takes POST" in problem(wrong, 405).detail
    assert wrong.headers["allow"] == "POST"


@given(
    body=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[])),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["prompt", "seed", "steps", "guidance_scale", "sr_steps"]) | st.text(), inner
            )
        ),
        max_leaves=6,
    ),
    upscale=st.sampled_from([1, 4, 16]) | st.text(max_size=5),
)
@settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_any_json_is_a_picture_or_a_client_error(server: Running, body: object, upscale: object) -> None:
    answer = server.client.post("/generate", params={"upscale": str(upscale)}, content=json.dumps(body), headers=JSON)
    if answer.status_code != 200:
        problem(answer, answer.status_code)
        assert answer.status_code in (400, 413, 422)
