"""The OpenAPI document: keys, headers, answers and errors as problem documents; its fields in words for errors."""

from functools import cache
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
_PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemBody"}}}
_ID = {"description": "the request's id", "schema": {"type": "string"}}
_WAIT = {"description": "seconds until it is worth trying again", "schema": {"type": "integer", "minimum": 1}}
_RESULT_EXAMPLE = {
    "id": "0d1f…",
    "created": 1760000000,
    "images": [
        {"b64_json": "iVBORw0…", "media_type": "image/png", "width": 256, "height": 256, "seed": 7, "settings": {}}
    ],
    "timings_ms": {"queue": 0.4, "base": 812.0, "x4": 640.1, "encode": 11.9},
}
_STATUS_EXAMPLE = {
    "id": "0d1f…",
    "state": "queued",
    "created": 1760000000,
    "place": 2,
    "progress": [{"stage": "queued", "step": 0, "steps": 0}],
}
_OPENAI_EXAMPLE = {
    "created": 1760000000,
    "data": [{"b64_json": "iVBORw0…", "seed": 7}],
    "output_format": "png",
    "size": "256x256",
}


def _json(example: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": {"type": "object"}, "example": example}}


_PICTURES = {f"image/{kind}": _BINARY for kind in ("png", "jpeg", "webp", "tiff")}
_EVENTS = {"text/event-stream": {"schema": {"type": "string"}}}
_MADE = {
    "Seed": {"description": "the seed used", "schema": {"type": "integer"}},
    "Server-Timing": {"description": "milliseconds in the queue and per stage", "schema": {"type": "string"}},
    "X-Request-Id": _ID,
}
PICTURE_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The picture, or what else Accept chose. A PNG's text has `parameters`, as AUTOMATIC1111 writes "
        "it, and `settings`, JSON; JPEG, WebP and TIFF have the same in XMP and EXIF. As events: `status` (state, "
        "place, stage, step of steps), `preview` (a small picture as a data URL), and `done`, `error` or `cancelled`.",
        "content": _PICTURES | _json(_RESULT_EXAMPLE) | _EVENTS,
        "headers": _MADE,
    },
    202: {
        "description": "With `Prefer: respond-async`: where it stands; Location says where to ask again.",
        "content": _json(_STATUS_EXAMPLE),
        "headers": {"Location": {"description": "of the request", "schema": {"type": "string"}}, "X-Request-Id": _ID},
    },
}
RESULT: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The pictures, or the one as Accept prefers.",
        "content": _json(_RESULT_EXAMPLE) | _PICTURES,
        "headers": _MADE,
    }
}
PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"description": "The picture.", "content": _PICTURES, "headers": _MADE}
}
STATUS: dict[int | str, dict[str, Any]] = {200: {"description": "Where it stands.", "content": _json(_STATUS_EXAMPLE)}}
EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"description": "`status`, `preview`, and at last `done`, `error` or `cancelled`.", "content": _EVENTS}
}
OPENAI_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The pictures. With `stream`, as events: `image_generation.partial_image`, "
        "`image_generation.completed` for each picture, or `error`.",
        "content": _json(_OPENAI_EXAMPLE) | _EVENTS,
    }
}
# Accept is none: a parameter of that name is ignored (OpenAPI 3.1, section 4.8.12); the answers' content types say it.
IDEMPOTENCY_KEY = {
    "in": "header",
    "name": "Idempotency-Key",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
    "description": "what is sent again under the same key is done once, unless the server failed at it",
}
PREFER = {
    "in": "header",
    "name": "Prefer",
    "required": False,
    "schema": {"type": "string", "enum": ["respond-async"]},
    "description": "respond-async: 202 at once, and Location says where to ask for the result",
}
TOO_OFTEN = {429: "You ask too often; Retry-After says when to come back."}
TOO_MUCH = {429: "You ask too often, or too much is being uploaded; Retry-After says when to come back."}
TOO_SLOW = {408: "The body did not arrive in time."}


def problem_responses(examples: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` for these statuses, each described, answered with a problem document."""
    waits = (429, 503)
    return {
        status: {"description": text, "content": _PROBLEM}
        | ({"headers": {"Retry-After": _WAIT}} if status in waits else {})
        for status, text in examples.items()
    }


def complete_document(app: FastAPI, keys: bool) -> None:
    """Have `app.openapi` say too what holds for every route: the problem's schema, and who is sent away. Without
    `keys` none need be given."""
    make = app.openapi

    @cache
    def complete() -> dict[str, Any]:
        document = make()
        for path in document["paths"].values():
            for method, operation in path.items():
                _complete(operation, method, keys)
        schemas = document["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        for model in (ProblemBody, FieldError):
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schema.pop("$defs", None)
            schemas[model.__name__] = schema
        return document

    app.openapi = complete  # type: ignore[method-assign]  # FastAPI's documented way


def _complete(operation: dict[str, Any], method: str, keys: bool) -> None:
    sent_away = {421: "The server has another name."}
    if "security" in operation:
        sent_away[401] = "An API key is needed."
        operation["security"] += [] if keys else [{}]
    if method != "get":
        sent_away[403] = "Another site's page asks."
    answers = operation["responses"]
    if "application/json" in answers.get("422", {}).get("content", {}):  # FastAPI's own, which is never sent
        sent_away[422] = "A field is out of its range; `errors` names each, what was got and what is accepted."
    answers |= {str(status): answer for status, answer in problem_responses(sent_away).items()}
    operation["responses"] = dict(sorted(answers.items()))


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
