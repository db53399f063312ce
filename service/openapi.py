"""The OpenAPI document: error answers as problem documents, and its fields put into words for errors."""

from typing import Any

from fastapi import FastAPI, Request

from service.schemas import FieldError, ProblemBody

_WORDS = {
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "object": "a JSON object",
}

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_ID = {"description": "the request's id", "schema": {"type": "string"}}
_RESULT_EXAMPLE = {
    "id": "0d1f…",
    "created": 1760000000,
    "images": [
        {"b64_json": "iVBORw0…", "media_type": "image/png", "width": 256, "height": 256, "seed": 7, "settings": {}}
    ],
    "timings_ms": {"queue": 0.4, "base": 812.0, "x4": 640.1, "encode": 11.9},
}
_STATUS_EXAMPLE = {"id": "0d1f…", "state": "queued", "created": 1760000000, "place": 2, "progress": []}
PICTURE_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The picture, or what else Accept chose. A PNG's text has `parameters`, as AUTOMATIC1111 writes "
        "it, and `settings`, JSON; JPEG, WebP and TIFF have the same in XMP and EXIF. As events: `status` (state, "
        "place, stage, step of steps), `preview` (a small picture as a data URL), and `done`, `error` or `cancelled`.",
        "content": {
            "image/png": _BINARY,
            "image/jpeg": _BINARY,
            "image/webp": _BINARY,
            "image/tiff": _BINARY,
            "application/json": {"schema": {"type": "object"}, "example": _RESULT_EXAMPLE},
            "text/event-stream": {"schema": {"type": "string"}},
        },
        "headers": {
            "Seed": {"description": "the seed used", "schema": {"type": "integer"}},
            "Server-Timing": {"description": "milliseconds in the queue and per stage", "schema": {"type": "string"}},
            "X-Request-Id": _ID,
        },
    },
    202: {
        "description": "With `Prefer: respond-async`: where it stands; Location says where to ask again.",
        "content": {"application/json": {"schema": {"type": "object"}, "example": _STATUS_EXAMPLE}},
        "headers": {"Location": {"description": "of the request", "schema": {"type": "string"}}, "X-Request-Id": _ID},
    },
}
TOO_OFTEN = {429: "You ask too often; Retry-After says when to come back."}
TOO_MUCH = {429: "You ask too often, or too much is being uploaded; Retry-After says when to come back."}
TOO_SLOW = {408: "The body did not arrive in time."}


def problem_responses(examples: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` for these statuses, each described, answered with a problem document."""
    schema = {"$ref": "#/components/schemas/ProblemBody"}
    return {
        status: {"description": text, "content": {"application/problem+json": {"schema": schema}}}
        for status, text in examples.items()
    }


def add_problem_schema(app: FastAPI) -> None:
    """Add the schema that `problem_responses` refers to, to the document that `app.openapi` makes."""
    make = app.openapi

    def with_problem() -> dict[str, Any]:
        document = make()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for model in (ProblemBody, FieldError):
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schema.pop("$defs", None)
            schemas.setdefault(model.__name__, schema)
        return document

    app.openapi = with_problem  # type: ignore[method-assign]  # FastAPI's documented way


def accepted_by(request: Request, location: str, field: str) -> str | None:
    """What the OpenAPI document accepts for a field of this request's route, in words.

    For the empty field: what the body itself may be. For a field that is not known: those that are.
    """
    document = request.app.openapi()
    operation = document["paths"][request.scope["route"].path][request.method.lower()]
    if location != "body":
        mine = [each for each in operation.get("parameters", []) if each["in"] == location]
        fields = {each["name"]: each["schema"] for each in mine}
    else:
        contents = operation["requestBody"]["content"].values()
        schemas = [_resolved(document, content["schema"]) for content in contents]
        fields = next((schema["properties"] for schema in schemas if "properties" in schema), {})
    if not field:
        return f"a JSON object with {', '.join(fields)}"
    if field not in fields:
        return f"only {', '.join(fields)}"
    return in_words(document, fields[field])


def in_words(document: dict[str, Any], schema: dict[str, Any]) -> str:
    """A field's JSON schema in words: "an integer from 1 to 100 or null"."""
    schema = _resolved(document, schema)
    if "anyOf" in schema:
        return " or ".join(in_words(document, each) for each in schema["anyOf"])
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        *most, last = map(str, schema["enum"])
        return f"{', '.join(most)} or {last}"
    if schema["type"] == "string" and "maxLength" in schema:
        words = f"text of {schema.get('minLength', 0)} to {schema['maxLength']} characters"
        return f"{words}, none of them control characters" if "pattern" in schema else words
    if "minimum" in schema:
        top = f"to {schema['maximum']:.10g}" if "maximum" in schema else f"to below {schema['exclusiveMaximum']:.10g}"
        return f"{_WORDS[schema['type']]} from {schema['minimum']:.10g} {top}"
    return _WORDS.get(schema["type"], schema["type"])


def _resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").removeprefix("#/components/schemas/")
    return document["components"]["schemas"][name] if name else schema
