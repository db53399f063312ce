"""The OpenAPI document: complete, its references whole, its examples true; and its page needs no one else."""

import re
from collections.abc import Iterator
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


def test_paths_and_references_are_whole(document: dict[str, Any]) -> None:
    expected = {
        *PICTURES,
        "/inspect",
        "/v1/images/generations",
        "/v1/models",
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
    errors = {"400", "401", "403", "406", "408", "409", "413", "415", "422", "429", "500", "503", "504"}
    assert set(answers) == {"200", "202"} | errors
    assert {"image/png", "application/json", "text/event-stream"} < set(answers["200"]["content"])
    assert set(answers["200"]["headers"]) == {"Seed", "Server-Timing", "X-Request-Id"}
    for status in errors:
        assert list(answers[status]["content"]) == ["application/problem+json"]
        assert answers[status]["description"].endswith(".")


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
