"""What can go wrong with a request for pictures, as the problem that its client is told."""

from __future__ import annotations

import logging

from service.pictures import InvalidPicture
from service.pool import Cancelled, Crashed, Expired, NotReady, Pool, QueueFull, State, TooMany, WorkFailed
from service.problems import Problem, bad_fields, shown
from service.requests import InvalidRequest
from service.schemas import FieldError
from service.settings import Settings

_log = logging.getLogger("service")


def explain(pool: Pool, error: Exception) -> Problem:
    """The problem for an exception of the pool, the pictures or the models."""
    match error:
        case Problem():
            return error
        case NotReady():
            return unavailable(error.state)
        case QueueFull():
            return try_again(429, f"{error}", pool.retry_after())
        case TooMany():
            return try_again(429, f"{error}", pool.retry_after())
        case Crashed():
            return try_again(503, f"{error}", pool.retry_after())
        case Cancelled():
            return Problem(409, "the request was cancelled")
        case Expired():
            return Problem(504, f"{error}")
        case InvalidRequest():
            location = "query" if error.field in ("upscale", "factor") else "body"
            field = FieldError(location=location, field=error.field, message=str(error), got=shown(error.got))
            return bad_fields([field])
        case InvalidPicture():
            return Problem(413 if error.too_large else 422, str(error))
    if not isinstance(error, WorkFailed):  # the worker has logged its own
        _log.error("a request failed", exc_info=error)
    return Problem(500, "the models failed on this request; the server's log has more under the request id")


def try_again(status: int, detail: str, seconds: int) -> Problem:
    """A problem that goes away in so many seconds."""
    return Problem(status, f"{detail}; try again in {seconds} s", headers={"Retry-After": str(seconds)})


def unavailable(state: State) -> Problem:
    """The 503 of a server in this state."""
    details = {
        State.LOADING: "the models are still loading",
        State.FAILED: "the models could not be loaded; the server's log says why",
        State.READY: "the worker gives no sign of life, or is being replaced",
    }
    headers = None if state in (State.FAILED, State.CLOSED) else {"Retry-After": "5"}
    return Problem(503, details.get(state, "the server is stopping"), headers=headers)


def limits_of(settings: Settings) -> str:
    """The limits on pictures, in words."""
    return (
        f"this server takes pictures of at most {settings.max_input_pixels} pixels and {settings.max_upload_bytes} "
        f"bytes, and delivers at most {settings.max_pixels} pixels"
    )
