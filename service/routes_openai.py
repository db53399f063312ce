"""`POST /v1/images/generations` in OpenAI's shape, for clients that have only their base URL changed."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import secrets
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from service.answers import PING_SECONDS, begin, event_stream, finished_before_client_left, json_response
from service.openapi import IDEMPOTENCY_KEY, OPENAI_ANSWERS, problem_responses
from service.problems import Problem, bad_fields, problem_response, shown
from service.records import Delivered, Output, Record, Records, small_picture, with_seeds
from service.requests import GenerateRequest, ModelInfo
from service.routes_generate import ERRORS, check_size
from service.schemas import FieldError, OpenAIBody
from service.security import authenticated, counted
from service.settings import Settings

_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")


def openai_router(settings: Settings) -> APIRouter:
    """The routes, under the limits of these settings."""
    router = APIRouter(prefix="/v1", tags=["openai"])

    loading = {503: ERRORS[503]}
    errors = {status: text for status, text in ERRORS.items() if status != 406}

    @router.get("/models", responses=problem_responses(loading))
    async def models(request: Request, client: Annotated[str, Depends(authenticated)]) -> dict[str, Any]:
        """The one model there is."""
        return {"object": "list", "data": [_model(request)]}

    @router.get("/models/{id:path}", responses=problem_responses({**loading, 404: "The model has another name."}))
    async def model(request: Request, id: str, client: Annotated[str, Depends(authenticated)]) -> dict[str, Any]:
        """The one model there is, by its name."""
        entry = _model(request)
        if id != entry["id"]:
            raise Problem(404, f"there is no model {shown(id)}; the one model here is {entry['id']!r}")
        return entry

    @router.post(
        "/images/generations",
        response_class=Response,
        responses=OPENAI_ANSWERS | problem_responses(errors),
        openapi_extra={"parameters": [IDEMPOTENCY_KEY]},
    )
    async def generations(request: Request, client: Annotated[str, Depends(counted)], body: OpenAIBody) -> Response:
        """Make pictures of a prompt, as OpenAI's images API does. Seeds are in the answer beside the pictures."""
        info: ModelInfo = request.app.state.pool.info
        prompt = body.prompt.strip()
        if not 1 <= len(prompt) <= settings.max_prompt_chars:
            accepted = f"text of 1 to {settings.max_prompt_chars} characters"
            raise _refused("prompt", body.prompt, "it is too short or too long", accepted)
        number = body.n or 1
        if number > settings.most_images:
            raise _refused("n", number, "too many", f"1 to {settings.most_images}")
        seed = secrets.randbelow(2**32) if body.seed is None else body.seed
        wanted = sized(GenerateRequest(prompt, seed), body.size or "auto", info)
        quality = 95 if body.output_compression is None else body.output_compression
        format = (body.output_format or "png").upper()
        check_size(request, settings, wanted, format)
        output = Output(format, quality)
        kind = "events" if body.stream else "openai"
        record = begin(request, client, with_seeds(wanted, number), output, kind, body.model_dump_json().encode())
        record.followers += 1
        if body.stream:
            return event_stream(streamed(request.app.state.records, record, body.partial_images or 0))
        try:
            if not await finished_before_client_left(request, record):
                return Response(status_code=499)
        finally:
            request.app.state.records.leave(record)
        if record.problem is not None:
            return problem_response(request, record.problem)
        return await json_response(lambda: _images(record))

    return router


def _model(request: Request) -> dict[str, Any]:
    info: ModelInfo = request.app.state.pool.info
    return {"id": info.base_model, "object": "model", "created": 0, "owned_by": "this server"}


def sized(wanted: GenerateRequest, size: str, info: ModelInfo) -> GenerateRequest:
    """The request for a picture of this size: the base model's own size, or another that it takes, enlarged.

    Problem 422 where no enlargement of a size that the base model takes gives it.
    """
    from dataclasses import replace

    if size == "auto":
        return wanted
    written = _SIZE.fullmatch(size)
    width, height = (int(side) for side in written.groups()) if written else (0, 0)
    for upscale in (1, 4, 16):
        if (width, height) == (info.width * upscale, info.height * upscale):
            return replace(wanted, upscale=upscale)
    multiple = info.size_multiple
    for upscale in (4, 16, 1):
        base = width // upscale, height // upscale
        exact = (base[0] * upscale, base[1] * upscale) == (width, height)
        near = written and all(info.width / 2 <= side <= info.width * 2 for side in base)
        if multiple and exact and near and not (base[0] % multiple or base[1] % multiple):
            return replace(wanted, upscale=upscale, width=base[0], height=base[1])
    own = ", ".join(f"{info.width * scale}x{info.height * scale}" for scale in (1, 4, 16))
    raise _refused("size", size, "no enlargement of what the base model draws has it", f"auto, {own}")


def _refused(field: str, got: object, message: str, accepted: str) -> Problem:
    return bad_fields([FieldError(location="body", field=field, message=message, got=shown(got), accepted=accepted)])


def _images(record: Record) -> dict[str, Any]:
    return {
        "created": int(record.created),
        "data": [{"b64_json": base64.b64encode(each.data).decode(), "seed": each.seed} for each in record.pictures],
        "output_format": record.pictures[0].media_type.removeprefix("image/"),
        "size": f"{record.pictures[0].width}x{record.pictures[0].height}",
    }


async def streamed(
    records: Records, record: Record, partial: int, ping_seconds: float = PING_SECONDS
) -> AsyncGenerator[bytes]:
    """OpenAI's events: at most `partial` previews, then a completed event for each picture, or an error."""
    version, shown, sent = -1, None, 0
    try:
        while record.ended is None:
            try:
                await asyncio.wait_for(record.change(version), ping_seconds)
            except TimeoutError:
                yield KEEPALIVE_COMMENT
            version, preview = record.version, record.jobs[0].preview if record.jobs else shown
            if preview is not None and preview is not shown and sent < partial:
                shown = preview
                event = {"partial_image_index": sent, "b64_json": small_picture(preview).partition(",")[2]}
                sent += 1
                yield _event("image_generation.partial_image", record, event | {"output_format": "jpeg"})
        if record.problem is not None:
            error = {"message": str(record.problem.detail), "code": str(record.problem.status_code), "type": "error"}
            yield format_sse_event(event="error", data_str=json.dumps({"type": "error", "error": error}))
            return
        for each in record.pictures:
            yield await asyncio.to_thread(_completed, record, each)
    finally:
        records.leave(record)


def _completed(record: Record, picture: Delivered) -> bytes:
    event = {"b64_json": base64.b64encode(picture.data).decode(), "seed": picture.seed}
    format = picture.media_type.removeprefix("image/")
    size = {"size": f"{picture.width}x{picture.height}", "output_format": format}
    return _event("image_generation.completed", record, event | size)


def _event(kind: str, record: Record, values: dict[str, Any]) -> bytes:
    data = {"type": kind, "created_at": int(record.created), "background": "opaque", "quality": "auto", **values}
    return format_sse_event(event=kind, data_str=json.dumps(data))
