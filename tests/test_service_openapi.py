"""The OpenAPI document: complete, its references whole, its examples true; and its page needs no one else."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.openapi import in_words
from service.schemas import FieldError, ProblemBody, generate_body
from tests.service_fakes import Running, serving


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(tmp_path_factory.mktemp("fake"), max_prompt_chars=321) as running:
        yield running


@pytest.fixture(scope="module")
def document(server: Running) -> dict[str, Any]:
    return server.client.get("/openapi.json").json()


def references(node: object) -> Iterator[str]:
    """Every $ref below `node`."""
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


PICTURES = ("/generate", "/upscale")
PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemBody"}}}


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Each method, path and operation."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def test_paths_and_references_are_whole(document: dict[str, Any]) -> None:
    expected = {
        *PICTURES,
        "/inspect",
        "/v1/images/generations",
        "/v1/models",
        "/v1/models/{id}",
        "/healthz",
        "/readyz",
        "/metrics",
        "/info",
    }
    requests = {"/requests/{id}" + rest for rest in ("", "/result", "/events", "/pictures/{index}")}
    jobs = {"/jobs" + rest for rest in ("", "/zip")}
    jobs |= {"/jobs/{id}" + rest for rest in ("", "/events", "/result.zip", "/cancel", "/retry-failed")}
    assert set(document["paths"]) == expected | requests | jobs
    schemas = document["components"]["schemas"]
    named = {reference.removeprefix("#/components/schemas/") for reference in references(document)}
    assert named <= set(schemas)
    assert schemas["ProblemBody"]["properties"].keys() == ProblemBody.model_fields.keys()
    assert schemas["FieldError"]["properties"].keys() == FieldError.model_fields.keys()


@pytest.mark.parametrize("path", PICTURES)
def test_every_error_is_documented_as_a_problem(document: dict[str, Any], path: str) -> None:
    answers = document["paths"][path]["post"]["responses"]
    errors = {"400", "401", "403", "406", "408", "409", "413", "415", "421", "422", "429", "500", "503", "504"}
    assert set(answers) == {"200", "202"} | errors
    assert {"image/png", "application/json", "text/event-stream"} < set(answers["200"]["content"])
    assert set(answers["200"]["headers"]) == {"Seed", "Server-Timing", "X-Request-Id"}
    for status in errors:
        assert list(answers[status]["content"]) == ["application/problem+json"]
        assert answers[status]["description"].endswith(".")


def test_errors_are_documented_as_they_are_sent(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        answers, where = operation["responses"], f"{method} {path}"
        errors = {status for status in answers if status >= "400"}
        assert {status: answers[status]["content"] for status in errors} == dict.fromkeys(errors, PROBLEM), where
        assert "421" in errors, where
        assert ("401" in errors) == ("security" in operation), where
        assert ("403" in errors) == (method != "get"), where
        for status in errors & {"429", "503"}:
            assert answers[status]["headers"]["Retry-After"]["schema"]["type"] == "integer", where
    assert {"HTTPValidationError", "ValidationError"}.isdisjoint(document["components"]["schemas"])
    for path in ("/requests/{id}/result", "/requests/{id}/pictures/{index}"):
        assert {"409", "413", "422", "500", "503", "504"} < set(document["paths"][path]["get"]["responses"])


def test_every_answer_has_a_content(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        for status, answer in operation["responses"].items():
            contents = answer.get("content", {}).values()
            empty = not contents or not all(each.get("schema") or each.get("itemSchema") for each in contents)
            assert empty == (status == "204"), f"{method} {path} {status}"


def test_headers_that_are_heeded_are_documented(document: dict[str, Any]) -> None:
    named = {"/generate": {"Idempotency-Key", "Prefer"}, "/upscale": {"Idempotency-Key", "Prefer"}}
    named["/v1/images/generations"] = {"Idempotency-Key"}
    for _, path, operation in operations(document):
        headers = {each["name"] for each in operation.get("parameters", []) if each["in"] == "header"}
        assert headers == named.get(path, set()), path


def test_routes_that_want_a_key_are_those_that_say_so(document: dict[str, Any], tmp_path: Path) -> None:
    keyless = [operation["security"] for _, _, operation in operations(document) if "security" in operation]
    assert keyless and all({} in each for each in keyless)
    key = "a-key-for-the-tests"
    with serving(tmp_path, api_keys=f"me:{key}") as running:
        document = running.client.get("/openapi.json").json()
        schemes = document["components"]["securitySchemes"]
        given = {"bearer": {"authorization": f"Bearer {key}"}, "header": {schemes["header"]["name"]: key}}
        assert (schemes["bearer"]["type"], schemes["bearer"]["scheme"]) == ("http", "bearer")
        for method, path, operation in operations(document):
            url = re.sub(r"{\w+}", "1", path)
            assert (running.client.request(method, url).status_code == 401) == ("security" in operation), path
            for wanted in operation.get("security", []):
                (name,) = wanted
                assert running.client.request(method, url, headers=given[name]).status_code != 401, path


def test_limits_of_this_server_are_documented(document: dict[str, Any]) -> None:
    fields = document["components"]["schemas"]["GenerateBody"]["properties"]
    assert fields["prompt"]["maxLength"] == fields["negative_prompt"]["maxLength"] == 321
    assert all(field["description"] for field in fields.values())
    words = {name: in_words(document, field) for name, field in fields.items()}
    assert words["sr_steps"] == "an integer from 0 to 50 or null"
    assert words["negative_prompt"] == "text of 0 to 321 characters, none of them control characters"


def test_examples_are_accepted(document: dict[str, Any], server: Running) -> None:
    content = document["paths"]["/generate"]["post"]["requestBody"]["content"]["application/json"]
    assert len(content["examples"]) >= 3
    for example in content["examples"].values():
        generate_body(321).model_validate(example["value"])
        assert server.client.post("/generate", json=example["value"]).status_code == 200


def test_page_comes_from_this_server_alone(server: Running) -> None:
    page = server.client.get("/docs").text
    assets = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(assets) == 3
    for asset in assets:
        assert "//" not in asset
        assert server.client.get("/" + asset).status_code == 200
    assert "url: 'openapi.json'" in page
