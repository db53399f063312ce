"""Every error as application/problem+json (RFC 9457), saying what was got and what is accepted."""

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from service.openapi import accepted_by
from service.schemas import FieldError, ProblemBody

MEDIA_TYPE = "application/problem+json"
_UNPARSED = "There was an error parsing the body"  # FastAPI's
_GOT_CHARS = 120


class Problem(HTTPException):
    """An error answer: an HTTP status, a sentence for a person, and the fields at fault if any."""

    def __init__(
        self,
        status: int,
        detail: str,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, detail, headers)
        self.errors = list(errors)


def bad_fields(errors: Sequence[FieldError]) -> Problem:
    """The 422 for these fields; its detail is one sentence for each."""
    return Problem(422, "; ".join(_sentence(error) for error in errors), errors)


def shown(value: object) -> str:
    """What a client sent, as JSON text, shortened; safe to send whatever it is."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    if len(text) > _GOT_CHARS:
        text = f"{text[:_GOT_CHARS]}… ({len(value) if isinstance(value, str) else len(text)} characters)"
    return _utf8(text)


def add_problem_handlers(app: FastAPI) -> None:
    """Make the errors that `app` and the framework raise on purpose problem documents."""
    app.add_exception_handler(StarletteHTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    # async, though it waits for nothing: the others get a thread, and to a server that stops that is a chance to
    # cancel the answer that says so
    assert isinstance(error, StarletteHTTPException)
    problem = error if isinstance(error, Problem) else _named(request, error)
    return problem_response(request, problem)


def _named(request: Request, error: StarletteHTTPException) -> Problem:
    """One of the framework's own errors, in more words than it has."""
    headers = error.headers
    if error.status_code == 404:
        detail = f"there is nothing at {request.url.path}; /docs lists what there is"
    elif error.status_code == 405:
        allowed = (headers or {}).get("Allow", "another method")
        detail = f"{request.url.path} does not take {request.method}; it takes {allowed}"
    elif error.detail == _UNPARSED:
        detail = "the body cannot be read as JSON: it must be UTF-8, of moderate depth and with numbers of usual length"
    else:
        detail = str(error.detail)
    return Problem(error.status_code, detail, headers=headers)


def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return problem_response(request, _validation_problem(request, error.errors()))


def _validation_problem(request: Request, errors: Sequence[Mapping[str, Any]]) -> Problem:
    first = errors[0]
    if first["type"] == "json_invalid":
        return Problem(400, f"the body is not JSON: {first['ctx']['error']} at character {first['loc'][1]}")
    sent = request.headers.get("content-type", "none")
    if any(isinstance(one["input"], bytes) for one in errors):
        hint = f"the content type is {sent[:100]}; send JSON, with content-type: application/json"
        return Problem(415, hint, headers={"Accept": "application/json"})
    return bad_fields([_field_error(request, one) for one in errors])


def _field_error(request: Request, error: Mapping[str, Any]) -> FieldError:
    location, *path = (str(part) for part in error["loc"])
    missing, unsuited = error["type"] == "missing", error["type"] == "string_pattern_mismatch"
    return FieldError(
        location=location,
        field=path[0] if path else "",
        message="It has characters that are not accepted" if unsuited else error["msg"],
        got=None if missing else shown(error["input"]),
        accepted=accepted_by(request, location, path[0] if path else ""),
    )


def _sentence(error: FieldError) -> str:
    where = error.field or f"the {error.location}"
    got = "it is missing" if error.got is None else f"got {error.got}"
    accepted = f"; accepted: {error.accepted}" if error.accepted else ""
    return f"{where}: {error.message}: {got}{accepted}"


def problem_response(request: Request, problem: Problem) -> JSONResponse:
    """The problem as an answer to this request, which has an id."""
    body = ProblemBody(
        type="about:blank",
        title=HTTPStatus(problem.status_code).phrase,
        status=problem.status_code,
        detail=_utf8(str(problem.detail)),
        request_id=request.state.request_id,
        errors=problem.errors or None,
    )
    content = body.model_dump(exclude_none=True)
    if request.url.path.startswith("/v1/"):  # where OpenAI's clients look for words
        param = problem.errors[0].field if problem.errors else None
        content["error"] = {"message": body.detail, "type": body.title, "code": str(body.status), "param": param}
    return JSONResponse(
        content,
        status_code=problem.status_code,
        headers=problem.headers,
        media_type=MEDIA_TYPE,
    )


def _utf8(text: str) -> str:
    """The text with what UTF-8 cannot carry, lone surrogates, spelled out."""
    return text.encode("utf-8", "backslashreplace").decode()
