"""The HTTP application: routes around one worker that owns the cascade."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Body, FastAPI, Query, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles

from service.cascade import Cascade, GenerateRequest, GenerateResult, InvalidRequest
from service.middleware import BodyLimit, RequestIds
from service.openapi import add_problem_schema, problem_responses
from service.png import encode_png
from service.problems import Problem, add_problem_handlers, bad_fields, shown
from service.routes_jobs import jobs_router
from service.schemas import EXAMPLES, FieldError, GenerateQuery, generate_body
from service.settings import Settings
from service.worker import Cancelled, Job, NotReady, QueueFull, State, Worker

CascadeFactory = Callable[[Settings], Cascade]
_log = logging.getLogger("service")

_DESCRIPTION = """A prompt becomes a picture, 1, 4 or 16 times the size that the base model draws.

Errors are `application/problem+json` (RFC 9457) and carry the request's id."""

_PICTURE: dict[str, Any] = {
    "description": "The picture. PNG text: `parameters`, as AUTOMATIC1111 writes it, and `settings`, JSON.",
    "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
    "headers": {
        "Seed": {"description": "the seed used", "schema": {"type": "integer"}},
        "Server-Timing": {
            "description": "milliseconds in the queue and per stage",
            "schema": {"type": "string"},
        },
        "X-Request-Id": {"description": "the request's id", "schema": {"type": "string"}},
    },
}
_GENERATE_ERRORS = {
    400: "The body is not JSON.",
    413: "The body is too large.",
    415: "The content type is not JSON.",
    422: "A field is unknown or out of its range; `errors` names each, what was got and what is accepted.",
    429: "The queue is full; Retry-After says when to come back.",
    500: "The models failed; the server's log has more under the request's id.",
    503: "The models are still loading, or could not be loaded, or the server is stopping.",
}


def create_app(settings: Settings, cascade_factory: CascadeFactory) -> FastAPI:
    """The application. Its lifespan starts a worker thread that calls `cascade_factory(settings)`.

    While that loads, /healthz answers and the rest says 503. The worker is at `app.state.worker`.
    """
    worker = Worker(partial(cascade_factory, settings), settings.queue_size)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        await asyncio.to_thread(worker.close)

    app = FastAPI(
        title="Super-resolution cascade",
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.worker = worker
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(RequestIds)
    add_problem_handlers(app)
    add_problem_schema(app)
    _add_health(app, worker)
    _add_generate(app, worker, settings)
    app.include_router(jobs_router(settings))
    _add_docs(app)
    return app


def _add_health(app: FastAPI, worker: Worker) -> None:
    @app.get("/healthz", tags=["health"])
    async def healthz() -> dict[str, str]:
        """The process answers. Says nothing of the models."""
        return {"status": "ok"}

    @app.get(
        "/readyz",
        tags=["health"],
        responses=problem_responses({503: "No requests are taken yet, or any more."}),
    )
    async def readyz() -> dict[str, str]:
        """The models are loaded and requests are taken."""
        if worker.state is not State.READY:
            raise _unavailable(worker.state)
        return {"status": worker.state}


def _add_generate(app: FastAPI, worker: Worker, settings: Settings) -> None:
    if TYPE_CHECKING:
        from service.schemas import GenerateBody as LimitedBody
    else:
        LimitedBody = generate_body(settings.max_prompt_chars)

    @app.post(
        "/generate",
        tags=["pictures"],
        response_class=Response,
        responses={200: _PICTURE, **problem_responses(_GENERATE_ERRORS)},
    )
    async def generate(
        request: Request,
        body: Annotated[LimitedBody, Body(openapi_examples=EXAMPLES)],
        query: Annotated[GenerateQuery, Query()],
    ) -> Response:
        """Make a picture of a prompt. A client that goes away ends the work at its next step."""
        seed = secrets.randbelow(2**32) if body.seed is None else body.seed
        wanted = GenerateRequest(**{**body.model_dump(), "seed": seed, "upscale": int(query.upscale)})
        job = _submit(worker, wanted)
        result = await _result_unless_gone(request, worker, job)
        if result is None:
            _log.info("request %s: the client went away", request.state.request_id)
            return Response(status_code=499)
        start = time.perf_counter()
        png = await asyncio.to_thread(encode_png, wanted, result)
        timings = {"queue": job.waited, **result.seconds, "png": time.perf_counter() - start}
        headers = {
            "Seed": str(result.seed),
            "Server-Timing": ", ".join(f"{name};dur={1000 * spent:.1f}" for name, spent in timings.items()),
        }
        return Response(png, media_type="image/png", headers=headers)


def _submit(worker: Worker, wanted: GenerateRequest) -> Job:
    try:
        return worker.submit(wanted)
    except NotReady as error:
        raise _unavailable(error.state) from error
    except QueueFull as error:
        headers = {"Retry-After": str(error.retry_after)}
        raise Problem(429, f"{error}; try again in {error.retry_after} s", headers=headers) from error


async def _result_unless_gone(request: Request, worker: Worker, job: Job) -> GenerateResult | None:
    """The job's result; None where the client went away first. Leaving this early cancels the job."""
    result = asyncio.wrap_future(job.future)
    gone = asyncio.create_task(_disconnected(request))
    either: set[asyncio.Future[Any]] = {result, gone}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return await result if result.done() else None
    except (NotReady, Cancelled, asyncio.CancelledError) as error:  # the last: the time to stop is up
        raise _unavailable(State.CLOSED) from error
    except InvalidRequest as error:
        raise bad_fields([_invalid(error)]) from error
    except Exception as error:
        _log.exception("request %s failed", request.state.request_id)
        detail = "the models failed on this request; the server's log has more under the request id"
        raise Problem(500, detail) from error
    finally:
        gone.cancel()
        if not result.done():
            worker.cancel(job)
            result.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _invalid(error: InvalidRequest) -> FieldError:
    location = "query" if error.field in GenerateQuery.model_fields else "body"
    return FieldError(
        location=location,
        field=error.field,
        message=str(error),
        got=shown(error.got),
    )


def _unavailable(state: State) -> Problem:
    details = {
        State.LOADING: "the models are still loading",
        State.FAILED: "the models could not be loaded; the server's log says why",
    }
    headers = {"Retry-After": "5"} if state is State.LOADING else None
    return Problem(503, details.get(state, "the server is stopping"), headers=headers)


def _add_docs(app: FastAPI) -> None:
    """The OpenAPI page, from files of an installed package rather than somebody else's server."""
    app.mount("/docs/assets", StaticFiles(packages=[("fastapi_swagger", "resources")]))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title=app.title,
            swagger_js_url="docs/assets/swagger-ui-bundle.js",
            swagger_css_url="docs/assets/swagger-ui.css",
            swagger_favicon_url="docs/assets/favicon-32x32.png",
        )

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("docs")
