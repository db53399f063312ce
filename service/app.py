"""The HTTP application: routers around one pool of workers that own the cascade."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.telemetry import TelemetryConfig
from starlette.responses import Response

from service.decoder import Decoders
from service.failures import explain
from service.fair import Uploads
from service.metrics import Metrics
from service.middleware import REQUEST_ID, BodyLimit, Gate
from service.openapi import complete_document
from service.pool import NotReady, Pool, QueueFull, TooMany
from service.problems import add_problem_handlers, problem_response
from service.records import Records
from service.routes_generate import generate_router
from service.routes_health import health_router
from service.routes_jobs import jobs_router
from service.routes_openai import openai_router
from service.routes_page import add_page
from service.routes_requests import requests_router
from service.routes_upscale import upscale_router
from service.security import Gatekeeper
from service.settings import Settings
from service.worker import CascadeFactory

UPLOADS_IN_HAND = 8
"""How many of the largest are in memory at once before they come to the queue."""
_DESCRIPTION = """A prompt becomes a picture, 1, 4 or 16 times the size that the base model draws; an uploaded picture
becomes 4 or 16 times as large.

A seed gives the same picture alone and in any batch: on a CPU the same bytes, elsewhere within about two levels of
255; with SERVICE_MAX_BATCH=1 the same bytes everywhere.

`Accept` chooses how a picture is answered: its bytes, `application/json`, or `text/event-stream` with progress and
previews. `Prefer: respond-async` answers 202 with a `Location` at once. A request sent again with the same
`Idempotency-Key` is done once, unless the server failed at it.

Errors are `application/problem+json` (RFC 9457) and carry the request's id."""


def create_app(
    settings: Settings, cascade_factory: CascadeFactory, telemetry: TelemetryConfig | None = None
) -> FastAPI:
    """The application. Its lifespan starts a worker process a device, which calls `cascade_factory(settings)`; both
    must be picklable.

    While that loads, /healthz answers and the rest says 503. The workers are at `app.state.pool`. `telemetry` is
    FastAPI's for OpenTelemetry; without it the environment decides (FASTAPI_OTEL_AUTO_CONFIGURE).
    """
    metrics = Metrics()
    pool = Pool(settings, cascade_factory, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        pool.start()
        yield
        await pool.close()
        app.state.decoders.close()

    app = FastAPI(
        title="Super-resolution cascade",
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        telemetry=telemetry,
    )
    app.state.pool, app.state.metrics, app.state.settings = pool, metrics, settings
    app.state.gatekeeper, app.state.decoders = Gatekeeper(settings), Decoders()
    app.state.uploads = Uploads(UPLOADS_IN_HAND * settings.max_upload_bytes)
    app.state.records = Records(pool, settings, partial(explain, pool))
    app.include_router(health_router(settings))
    app.include_router(generate_router(settings))
    app.include_router(upscale_router(settings))
    app.include_router(requests_router())
    app.include_router(openai_router(settings))
    app.include_router(jobs_router(settings))
    add_page(app)
    add_problem_handlers(app)
    complete_document(app, bool(settings.api_keys))
    for refusal in (NotReady, QueueFull, TooMany):
        app.add_exception_handler(refusal, _refused)
    _add_middleware(app, settings, metrics)
    return app


async def _refused(request: Request, error: Exception) -> Response:
    return problem_response(request, explain(request.app.state.pool, error))


def _add_middleware(app: FastAPI, settings: Settings, metrics: Metrics) -> None:
    uploads = dict.fromkeys(("/upscale", "/inspect"), settings.max_upload_bytes)
    uploads["/jobs/zip"] = settings.max_archive_bytes
    app.add_middleware(
        BodyLimit,
        max_bytes=settings.max_body_bytes,
        others=uploads,
        seconds=settings.request_timeout,
        paced=settings.max_upload_bytes,
    )
    if origins := settings.origins:
        exposed = ["Seed", "Server-Timing", "Location", "Request-Location", "Retry-After", "Preference-Applied"]
        exposed += ["Content-Disposition", REQUEST_ID]
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=exposed
        )
    app.add_middleware(Gate, keeper=app.state.gatekeeper, metrics=metrics)
