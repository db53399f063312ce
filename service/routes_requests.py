"""`/requests/{id}`: where a request stands, its pictures, its events, and stopping it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse

from service.answers import event_stream, events, image_response, json_response, listed, negotiate, result_of, status_of
from service.openapi import EVENTS, PICTURE, RESULT, STATUS, problem_responses
from service.problems import Problem, problem_response
from service.records import Record, Records
from service.routes_generate import ERRORS
from service.security import authenticated

NOT_FOUND = {404: "There is no such request of yours, or no longer."}
_OUTCOME = {
    **NOT_FOUND,
    409: "It is not done, or was cancelled.",
    413: "The picture was too large for its format.",
    422: "The models refused it, or a field is out of its range.",
    **{status: ERRORS[status] for status in (500, 503, 504)},
}
Id = Annotated[str, Path(max_length=64, description="as Location said")]
Client = Annotated[str, Depends(authenticated)]


def requests_router() -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/requests", tags=["requests"])

    @router.get("/{id}", responses=STATUS | problem_responses(NOT_FOUND))
    async def state(request: Request, id: Id, client: Client) -> JSONResponse:
        """`state`: queued (with its place), running (with stage, step of steps), succeeded (with where its pictures
        are), failed or cancelled (with the error)."""
        return JSONResponse(status_of(_records(request), _found(request, id, client)))

    @router.get("/{id}/result", response_class=Response, responses=RESULT | problem_responses(_OUTCOME))
    async def result(request: Request, id: Id, client: Client) -> Response:
        """What the request would have been answered with: JSON, or the picture where Accept prefers it."""
        record = _done(request, id, client)
        if record.problem is not None:
            return problem_response(request, record.problem)
        kinds = ["application/json", *([record.pictures[0].media_type] if len(record.pictures) == 1 else [])]
        best = negotiate(listed(request, "accept"), kinds)
        as_image = best == kinds[-1] != kinds[0]
        return image_response(record, 0) if as_image else await json_response(lambda: result_of(record))

    @router.get("/{id}/pictures/{index}", response_class=Response, responses=PICTURE | problem_responses(_OUTCOME))
    async def picture(request: Request, id: Id, index: Annotated[int, Path(ge=0, le=7)], client: Client) -> Response:
        """One of its pictures."""
        record = _done(request, id, client)
        if record.problem is not None:
            return problem_response(request, record.problem)
        if index >= len(record.pictures):
            raise Problem(404, f"the request has {len(record.pictures)} pictures, counted from 0")
        return image_response(record, index)

    @router.get("/{id}/events", response_class=Response, responses=EVENTS | problem_responses(NOT_FOUND))
    async def follow(request: Request, id: Id, client: Client) -> EventSourceResponse:
        """Its life as server-sent events, from where it stands. Going away stops nothing."""
        record = _found(request, id, client)
        return event_stream(events(_records(request), record, request.state.request_id))

    @router.delete("/{id}", responses=STATUS | problem_responses(NOT_FOUND))
    async def cancel(request: Request, id: Id, client: Client) -> JSONResponse:
        """Stop it: at once where it waits, at the next block of a network where it runs. Says where it then stands."""
        record = _found(request, id, client)
        if record.ended is None:
            _records(request).cancel(record)
            await record.wait()
        return JSONResponse(status_of(_records(request), record))

    return router


def _records(request: Request) -> Records:
    records: Records = request.app.state.records
    return records


def _found(request: Request, id: str, client: str) -> Record:
    record = _records(request).find(id, client)
    if record is None:
        raise Problem(404, "there is no such request of yours, or its result is no longer kept")
    return record


def _done(request: Request, id: str, client: str) -> Record:
    record = _found(request, id, client)
    if record.ended is None:
        raise Problem(409, f"the request is {record.state}; GET /requests/{id} says how far it is")
    return record
