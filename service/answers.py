"""One request, four ways to answer: the picture's bytes, JSON, server-sent events, or "come back later"."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from fastapi import Request as HttpRequest
from fastapi import Response
from fastapi.responses import JSONResponse
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event

from service.problems import Problem, problem_response
from service.records import Output, Record, Records, small_picture
from service.requests import GenerateRequest, Request

_log = logging.getLogger("service")
PING_SECONDS = 15
PICTURES = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP", "image/tiff": "TIFF"}
JSON, EVENTS = "application/json", "text/event-stream"


def negotiate(accept: str, offered: Sequence[str]) -> str | None:
    """The media type of `offered` that an Accept header (RFC 9110, section 12.5.1) likes best; earlier ones on a tie.
    None where it takes none of them."""
    if not accept.strip():
        return offered[0]
    best: tuple[float, str] | None = None
    for mine in offered:
        weight, precision = 0.0, -1
        for entry in accept.split(","):
            kind, *parameters = (part.strip().lower() for part in entry.split(";"))
            main, _, sub = kind.partition("/")
            exact = 2 if kind == mine else 1 if sub == "*" and mine.startswith(f"{main}/") else 0
            if (exact or kind == "*/*") and exact > precision:
                precision, weight = exact, _weight(parameters)
        if weight > 0 and (best is None or weight > best[0]):
            best = weight, mine
    return best[1] if best else None


def _weight(parameters: Sequence[str]) -> float:
    for each in parameters:
        if each.startswith("q="):
            try:
                return float(each[2:])
            except ValueError:
                return 0.0
    return 1.0


def listed(request: HttpRequest, name: str) -> str:
    """A header that is a list, of which each line is a part (RFC 9110, section 5.3)."""
    return ", ".join(request.headers.getlist(name))


def chosen_answer(
    request: HttpRequest,
    wanted: str | None,
    number: int,
    own: str = "PNG",
    holds: Callable[[str], bool] = lambda format: True,
) -> tuple[str, str | None]:
    """How to answer, `image`, `json` or `events`, and the picture's format. Problem 406 where nothing is accepted.

    `wanted` is the format that the request names, `own` what a picture is written in otherwise; others are offered
    where the picture goes into them, which `holds` says.
    """
    accept = listed(request, "accept")
    formats = [wanted] if wanted else [own, *(each for each in PICTURES.values() if each != own)]
    types = [kind for format in formats for kind, name in PICTURES.items() if name == format]
    offered = [*types, JSON, EVENTS] if number == 1 else [JSON, EVENTS]
    best = negotiate(accept, offered)
    while best in PICTURES and not wanted and not holds(PICTURES[best]):
        offered.remove(best)
        best = negotiate(accept, offered)
    if best is None:
        raise Problem(406, f"this picture can be answered as {', '.join(offered)}; Accept names none of them")
    if best in PICTURES:
        named = best in accept.lower()
        return "image", wanted or (PICTURES[best] if named else None)
    return ("json" if best == JSON else "events"), wanted


def wants_async(request: HttpRequest) -> bool:
    """Whether Prefer (RFC 7240) has respond-async."""
    preferences = listed(request, "prefer").lower().split(",")
    return "respond-async" in {each.split(";")[0].strip() for each in preferences}


async def answer(
    request: HttpRequest,
    client: str,
    wanted: Sequence[Request],
    output: Output,
    kind: str,
    fingerprint: bytes,
) -> Response:
    """Start the work, or join the same request sent before, and answer it as `kind` says."""
    records: Records = request.app.state.records
    record = begin(request, client, wanted, output, kind, fingerprint)
    if wants_async(request):
        record.detached = True  # also where it joins one that was not
        location = f"{request.scope.get('root_path', '')}/requests/{record.id}"
        headers = {"Location": location, "Preference-Applied": "respond-async"}
        return JSONResponse(status_of(records, record), 202, headers)
    record.followers += 1
    if kind == "events":
        return event_stream(followed(records, record, request.state.request_id))
    try:
        if not await finished_before_client_left(request, record):
            return Response(status_code=499)
    finally:
        records.leave(record)
    if record.problem is not None:
        return problem_response(request, record.problem)
    return image_response(record, 0) if kind == "image" else await json_response(lambda: result_of(record))


def begin(
    request: HttpRequest,
    client: str,
    wanted: Sequence[Request],
    output: Output,
    kind: str,
    fingerprint: bytes,
) -> Record:
    """The record of this request: of the one before with the same Idempotency-Key, or a new one."""
    records: Records = request.app.state.records
    key = request.headers.get("idempotency-key")
    print_of = hashlib.sha256(fingerprint + f"{request.url.path}?{request.url.query} {kind}".encode()).digest()
    if key is not None:
        if not 1 <= len(key) <= 255:
            raise Problem(400, f"the Idempotency-Key has {len(key)} characters; 1 to 255 are accepted")
        known = records.repeated(client, key, print_of)
        if known is not None:
            return known
    settings = request.app.state.settings
    if settings.log_prompts:
        prompts = [each.prompt for each in wanted if isinstance(each, GenerateRequest)]
        _log.info("asked for %d pictures", len(wanted), extra={"prompts": prompts})
    record = records.start(client, wanted, output, wants_async(request), kind == "events" or wants_async(request))
    if key is not None:
        records.remember(client, key, print_of, record)
    return record


async def finished_before_client_left(request: HttpRequest, record: Record) -> bool:
    """Wait for the record's end; False where the client went away first."""
    done = asyncio.create_task(record.wait())
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({done, gone}, return_when=asyncio.FIRST_COMPLETED)
        return done.done()
    except asyncio.CancelledError:  # the time to stop is up
        raise Problem(503, "the server is stopping") from None
    finally:
        gone.cancel()
        done.cancel()


async def _disconnected(request: HttpRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def image_response(record: Record, index: int) -> Response:
    """One picture's bytes, with its seed and timings in the headers."""
    picture = record.pictures[index]
    timing = ", ".join(f"{name};dur={1000 * spent:.1f}" for name, spent in record.seconds.items())
    headers = {"Seed": str(picture.seed), "Server-Timing": timing, "Request-Location": f"/requests/{record.id}"}
    return Response(picture.data, media_type=picture.media_type, headers=headers)


async def json_response(content: Callable[[], dict[str, Any]]) -> Response:
    """What `content` returns, made and written in a thread: pictures in base64 take a while."""
    data = await asyncio.to_thread(lambda: json.dumps(content()).encode())
    return Response(data, media_type=JSON)


def event_stream(stream: AsyncIterator[bytes]) -> EventSourceResponse:
    """Server-sent events, which no proxy is to keep or to hold back."""
    return EventSourceResponse(stream, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})


def result_of(record: Record) -> dict[str, Any]:
    """The pictures in base64, with seeds, timings and settings."""
    return {
        "id": record.id,
        "created": int(record.created),
        "images": [
            {
                "b64_json": base64.b64encode(each.data).decode(),
                "media_type": each.media_type,
                "width": each.width,
                "height": each.height,
                "seed": each.seed,
                "settings": each.settings,
            }
            for each in record.pictures
        ],
        "timings_ms": {name: round(1000 * spent, 1) for name, spent in record.seconds.items()},
    }


def status_of(records: Records, record: Record) -> dict[str, Any]:
    """Where a request stands, without its pictures."""
    places = [place for place in map(records.pool.place, record.jobs) if place is not None]
    status: dict[str, Any] = {"id": record.id, "state": record.state, "created": int(record.created)}
    if record.state == "queued" and places:
        status["place"] = min(places)
    if record.ended is None:
        status["progress"] = [_step(job) for job in record.jobs]
    elif record.problem is None:
        status["pictures"] = [f"/requests/{record.id}/pictures/{index}" for index in range(len(record.pictures))]
        status["timings_ms"] = {name: round(1000 * spent, 1) for name, spent in record.seconds.items()}
    else:
        status["error"] = {"status": record.problem.status_code, "detail": str(record.problem.detail)}
    return status


def _step(job: Any) -> dict[str, Any]:
    if job.step is None:
        return {"stage": "queued" if job.waited is None else "starting", "step": 0, "steps": 0}
    return {"stage": job.step.stage, "step": job.step.step, "steps": job.step.steps}


async def followed(records: Records, record: Record, request_id: str) -> AsyncIterator[bytes]:
    """`events`, counted as a follower that may go away."""
    try:
        async for event in events(records, record, request_id):
            yield event
    finally:
        records.leave(record)


async def events(records: Records, record: Record, request_id: str) -> AsyncIterator[bytes]:
    """The record's life as server-sent events: `status` whenever it changed, `preview` of a picture as far as it is,
    and at last `done`, `error` or `cancelled`. A slow reader misses what is outdated, never the end."""
    version, told, shown = -1, "", [None] * len(record.jobs)
    while True:
        if record.ended is not None:
            name = {"succeeded": "done", "failed": "error"}.get(record.state, "cancelled")
            yield await asyncio.to_thread(_ending, record, name, request_id)
            return
        version, status = record.version, json.dumps(status_of(records, record))
        if status != told:
            told = status
            yield format_sse_event(event="status", data_str=status)
        for index, job in enumerate(record.jobs):
            if job.preview is not shown[index]:
                shown[index] = job.preview
                picture = await asyncio.to_thread(small_picture, job.preview)
                yield format_sse_event(event="preview", data_str=json.dumps({"index": index, "image": picture}))
        try:
            await asyncio.wait_for(record.change(version), PING_SECONDS)
        except TimeoutError:
            yield KEEPALIVE_COMMENT


def _ending(record: Record, name: str, request_id: str) -> bytes:
    ending = result_of(record) if record.problem is None else _problem(record.problem, request_id)
    return format_sse_event(event=name, data_str=json.dumps(ending))


def _problem(problem: Problem, request_id: str) -> dict[str, Any]:
    return {"status": problem.status_code, "detail": str(problem.detail), "request_id": request_id}
