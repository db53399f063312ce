"""`POST /upscale`: an uploaded picture becomes larger. `POST /inspect`: what a picture says of how it was made."""

from __future__ import annotations

import hashlib
import secrets
from contextlib import AbstractContextManager
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from python_multipart.exceptions import MultipartParseError
from starlette.datastructures import UploadFile

from service.answers import answer, chosen_answer
from service.decoder import Decoders
from service.failures import limits_of
from service.fair import Uploads
from service.metadata import inspected
from service.openapi import IDEMPOTENCY_KEY, PICTURE_ANSWERS, PREFER, TOO_MUCH, problem_responses
from service.pictures import InvalidPicture, check_format, decode_picture
from service.problems import Problem
from service.records import Output
from service.requests import UpscaleRequest
from service.routes_generate import ERRORS
from service.schemas import UpscaleQuery
from service.security import counted
from service.settings import Settings
from service.upscale import UpscaleOptions
from sr3.images import Picture

RAW = ("image/png", "image/jpeg", "image/webp", "image/tiff", "image/bmp", "application/octet-stream")
FORM = "multipart/form-data"
_BINARY = {"type": "string", "format": "binary"}


def upload_schema(options: bool) -> dict[str, Any]:
    """OpenAPI's `requestBody` for a picture, raw or as the field `image` of a form, perhaps with options."""
    fields = UpscaleQuery.model_json_schema()["properties"] if options else {}
    form = {"type": "object", "required": ["image"], "properties": {"image": _BINARY, **fields}}
    content = {kind: {"schema": _BINARY} for kind in RAW} | {FORM: {"schema": form}}
    return {"required": True, "content": content}


def upscale_router(settings: Settings) -> APIRouter:
    """The routes, under the limits of these settings."""
    router = APIRouter(tags=["pictures"])
    parameters = [
        {"in": "query", "name": name, "required": False, "schema": schema, "description": schema.get("description", "")}
        for name, schema in UpscaleQuery.model_json_schema()["properties"].items()
    ]
    parameters += [IDEMPOTENCY_KEY, PREFER]

    @router.post(
        "/upscale",
        response_class=Response,
        responses={**PICTURE_ANSWERS, **problem_responses(ERRORS)},
        openapi_extra={"requestBody": upload_schema(options=True), "parameters": parameters},
    )
    async def upscale(request: Request, client: Annotated[str, Depends(counted)]) -> Response:
        """Enlarge a picture: PNG, JPEG, WebP, TIFF or BMP, as the body itself or as the field `image` of a form.

        Transparency is enlarged too, 16 bits and grey stay, so do colour profile and EXIF, whose orientation is
        applied. Answers as `/generate` does."""
        request.app.state.pool.info  # noqa: B018  # 503 while loading, before the body is read
        with in_hand(request, client, settings):
            data, options = await read_upload(request)
            picture = await decoded(request, data, settings)
        fingerprint = hashlib.sha256(data).digest() + options.model_dump_json().encode()
        del data
        factor = int(options.factor)
        wanted_format, own = options.format and options.format.upper(), picture.format or "PNG"
        kind, format = chosen_answer(request, wanted_format, 1, own, lambda each: _holds(picture, each, factor))
        check_result(picture, factor, format, settings)
        seed = secrets.randbelow(2**32) if options.seed is None else options.seed
        chosen = UpscaleOptions(
            factor, options.steps, options.scheduler, options.aug_level, options.consistency, options.views
        )
        check_scheduler(request, options.scheduler)
        wanted = UpscaleRequest(picture, seed, chosen.for_picture(picture))
        output = Output(format, options.quality, options.metadata == "full")
        return await answer(request, client, [wanted], output, kind, fingerprint)

    @router.post(
        "/inspect",
        response_model=dict[str, Any],
        responses=problem_responses({each: ERRORS[each] for each in (400, 408, 413, 415, 422)} | TOO_MUCH),
        openapi_extra={"requestBody": upload_schema(options=False)},
    )
    async def inspect(request: Request, client: Annotated[str, Depends(counted)]) -> Response:
        """What a picture says of how it was made: the text that this server, or AUTOMATIC1111, wrote into it, and
        `settings` as an object; as text where they are none, or longer than 65536 characters."""
        with in_hand(request, client, settings):
            data, _ = await read_upload(request)
            most = max(settings.max_input_pixels, settings.max_pixels)
            try:
                return Response(await decoders(request).run(inspected, data, most), media_type="application/json")
            except InvalidPicture as error:
                raise Problem(413 if error.too_large else 422, str(error)) from error

    return router


def in_hand(request: Request, client: str, settings: Settings) -> AbstractContextManager[None]:
    """Room for a request's body, which is in memory from then on; QueueFull where there is none."""
    uploads: Uploads = request.app.state.uploads
    announced = request.headers.get("content-length", "")
    most = settings.max_upload_bytes
    return uploads.hold(client, min(int(announced), most) if announced.isdecimal() else most)


async def read_upload(request: Request) -> tuple[bytes, UpscaleQuery]:
    """The picture's bytes and the options, from the query and the form. Problem 415, 400 or 422 for a wrong body."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    given: dict[str, Any] = dict(request.query_params)
    location = "query"
    if kind == FORM:
        data, fields = await _read_form(request)
        location = "body" if fields else "query"
        given |= fields
    elif kind in RAW:
        data = await request.body()
    else:
        hint = f"the content type is {kind[:100] or 'none'}; send a picture as {', '.join(RAW)} or {FORM}"
        raise Problem(415, hint, headers={"Accept": ", ".join((*RAW, FORM))})
    if not data:
        raise Problem(422, "the picture is empty (0 bytes)")
    try:
        return data, UpscaleQuery.model_validate(given)
    except ValidationError as error:
        wrong = [{**each, "loc": (location, *each["loc"])} for each in error.errors()]
        raise RequestValidationError(wrong) from error


async def _read_form(request: Request) -> tuple[bytes, dict[str, str]]:
    try:
        async with request.form(max_files=1, max_fields=20, max_part_size=10_000) as form:
            image = form.get("image")
            if not isinstance(image, UploadFile):
                raise Problem(422, "the form has no file in its field 'image'")
            fields = {name: value for name, value in form.items() if isinstance(value, str)}
            return await image.read(), fields
    except (MultipartParseError, UnicodeError) as error:  # the latter of names, in the charset that the form says
        raise Problem(400, f"the form cannot be read: {error}") from error


def decoders(request: Request) -> Decoders:
    """This server's."""
    own: Decoders = request.app.state.decoders
    return own


async def decoded(request: Request, data: bytes, settings: Settings) -> Picture:
    """The picture, decoded in another process. Problem 413 with the limits, or 422."""
    try:
        return await decoders(request).run(decode_picture, data, settings.max_input_pixels)
    except InvalidPicture as error:
        if error.too_large:
            raise Problem(413, f"{error}; {limits_of(settings)}") from error
        raise Problem(422, str(error)) from error


def check_result(picture: Picture, factor: int, format: str | None, settings: Settings) -> None:
    """Problem 413 or 422 where the result would be too large or does not go into its format."""
    height, width = picture.pixels.shape[:2]
    if width * height * factor**2 > settings.max_pixels:
        raise Problem(413, f"the result would be {width * factor}×{height * factor}; {limits_of(settings)}")
    if format is not None:
        try:
            check_format(picture, format, factor)
        except InvalidPicture as error:
            raise Problem(413 if error.too_large else 422, str(error)) from error


def _holds(picture: Picture, format: str, factor: int) -> bool:
    try:
        check_format(picture, format, factor)
    except InvalidPicture:
        return False
    return True


def check_scheduler(request: Request, name: str | None) -> None:
    """Problem 422 for a scheduler that the SR3 model does not take."""
    known = request.app.state.pool.info.sr_schedulers
    if name is not None and name.lower() not in {each.lower() for each in known}:
        raise Problem(422, f"scheduler: got {name[:40]!r}; accepted: {', '.join(known)}")
