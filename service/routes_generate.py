"""`POST /generate`: a prompt becomes one picture or several."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Body, Depends, Query, Request, Response

from service.answers import answer, chosen_answer
from service.openapi import IDEMPOTENCY_KEY, PICTURE_ANSWERS, PREFER, TOO_SLOW, problem_responses
from service.problems import Problem, bad_fields, shown
from service.records import Output, with_seeds
from service.requests import GenerateRequest, ModelInfo
from service.schemas import EXAMPLES, FieldError, GenerateQuery, generate_body
from service.security import counted
from service.settings import Settings
from sr3.encoding import LONGEST_SIDE

SMALL_BASE = 256 * 256
"""Pixels that any base model may draw."""
ERRORS = {
    400: "The body is not JSON, or a form that cannot be read.",
    406: "Accept names nothing that this can be answered as.",
    **TOO_SLOW,
    409: "It was cancelled.",
    413: "The body, or the picture asked for, is too large.",
    415: "The content type is not one that this takes.",
    422: "A field is unknown or out of its range; `errors` names each, what was got and what is accepted.",
    429: "The queue is full, or you have your share of it, or ask too often; Retry-After says when to come back.",
    500: "The models failed; the server's log has more under the request's id.",
    503: "The models are loading or could not be loaded, the worker was lost, or the server is stopping.",
    504: "It was not done in time.",
}


def generate_router(settings: Settings) -> APIRouter:
    """The route, with the limits of these settings in its schema."""
    router = APIRouter(tags=["pictures"])
    if TYPE_CHECKING:
        from service.schemas import GenerateBody as LimitedBody
    else:
        LimitedBody = generate_body(settings.max_prompt_chars, settings.most_images)

    async def generate(
        request: Request,
        client: Annotated[str, Depends(counted)],
        body: LimitedBody,
        query: Annotated[GenerateQuery, Query()],
    ) -> Response:
        """Make pictures of a prompt. `Accept` chooses the answer: a picture's bytes, `application/json` with all
        pictures in base64, or `text/event-stream` with progress and previews. `Prefer: respond-async` answers 202 at
        once. A client that goes away ends the work at the next block of a network."""
        seed = secrets.randbelow(2**32) if body.seed is None else body.seed
        fields = set(GenerateRequest.__dataclass_fields__) - {"seed", "upscale"}
        wanted = GenerateRequest(seed=seed, upscale=int(query.upscale), **body.model_dump(include=fields))
        format = body.format and body.format.upper()
        kind, written = chosen_answer(request, format, body.num_images)
        output = Output(written or "PNG", body.quality, body.metadata == "full")
        check_size(request, settings, wanted, written or "PNG")
        fingerprint = body.model_dump_json().encode()
        return await answer(request, client, with_seeds(wanted, body.num_images), output, kind, fingerprint)

    # Not as strings: what the annotations name is local to this function.
    generate.__annotations__ |= {
        "request": Request,
        "client": Annotated[str, Depends(counted)],
        "body": Annotated[LimitedBody, Body(openapi_examples=EXAMPLES)],
        "query": Annotated[GenerateQuery, Query()],
        "return": Response,
    }
    responses: dict[int | str, dict[str, Any]] = {**PICTURE_ANSWERS, **problem_responses(ERRORS)}
    headers = {"parameters": [IDEMPOTENCY_KEY, PREFER]}
    router.post("/generate", response_class=Response, responses=responses, openapi_extra=headers)(generate)
    return router


def check_size(request: Request, settings: Settings, wanted: GenerateRequest, format: str) -> None:
    """Refuse, before it waits in the queue, what would be too large or that the models do not take."""
    info = request.app.state.pool.info
    width, height = wanted.width or info.width, wanted.height or info.height
    most = most_base_pixels(settings, info)
    if width * height > most:
        detail = f"the base picture would be {width}×{height}; at most {most} pixels are drawn before they are enlarged"
        raise Problem(413, f"{detail}, and SERVICE_MAX_BASE_PIXELS={width * height} would let it pass")
    pixels = width * height * wanted.upscale**2
    if pixels > settings.max_pixels:
        large = f"{width * wanted.upscale}×{height * wanted.upscale}"
        raise Problem(413, f"the picture would be {large}; at most {settings.max_pixels} pixels are delivered")
    if max(width, height) * wanted.upscale > (longest := LONGEST_SIDE.get(format, 2**31)):
        raise Problem(413, f"{format} holds sides of at most {longest} pixels; ask for PNG")
    for field, known in (("scheduler", info.schedulers), ("sr_scheduler", info.sr_schedulers)):
        name = getattr(wanted, field)
        if name is not None and name.lower() not in {each.lower() for each in known}:
            raise _refused(field, name, ", ".join(known) or "null")
    for field in ("width", "height"):
        side = getattr(wanted, field)
        if side is not None and (not info.size_multiple or side % info.size_multiple):
            raise _refused(field, side, f"multiples of {info.size_multiple}" if info.size_multiple else "null")


def most_base_pixels(settings: Settings, info: ModelInfo) -> int:
    """Of what the base model draws: attention takes time by the square of it, and is not interrupted."""
    return settings.max_base_pixels or max(4 * info.width * info.height, SMALL_BASE)


def _refused(field: str, got: object, accepted: str) -> Problem:
    message = f"the {'super-resolution' if field.startswith('sr_') else 'base'} model does not take it"
    return bad_fields([FieldError(location="body", field=field, message=message, got=shown(got), accepted=accepted)])
