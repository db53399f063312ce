"""`/healthz`, `/readyz`, `/metrics` and `/info`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import PlainTextResponse

from service.failures import unavailable
from service.metrics import CONTENT_TYPE, Metrics
from service.openapi import problem_responses
from service.pool import Pool
from service.routes_generate import most_base_pixels
from service.security import authenticated
from service.settings import Settings

Client = Annotated[str, Depends(authenticated)]


def health_router(settings: Settings) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["health"])

    @router.head("/healthz", include_in_schema=False)
    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process answers. Says nothing of the models."""
        return {"status": "ok"}

    @router.head("/readyz", include_in_schema=False)
    @router.get("/readyz", responses=problem_responses({503: "No requests are taken yet, or any more."}))
    async def readyz(request: Request) -> dict[str, str]:
        """The models are loaded, requests are taken, and a worker gave a sign of life a moment ago."""
        pool: Pool = request.app.state.pool
        if not pool.ready:
            raise unavailable(pool.state)
        return {"status": "ready"}

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics(request: Request, client: Client) -> Response:
        """Figures for Prometheus."""
        known: Metrics = request.app.state.metrics
        return Response(known.text(), headers={"Content-Type": CONTENT_TYPE})

    @router.get("/info", responses=problem_responses({503: "The models are loading."}))
    async def info(request: Request, client: Client) -> dict[str, Any]:
        """The loaded models, what they take, and this server's limits and defaults."""
        pool: Pool = request.app.state.pool
        names = ("base_steps", "sr_steps", "aug_level", "guidance_scale", "max_prompt_chars")
        limits = ("max_input_pixels", "max_upload_bytes", "max_pixels", "queue_size", "request_timeout")
        shown = {name: getattr(settings, name) for name in (*names, *limits)}
        most = {"max_images": settings.most_images, "max_base_pixels": most_base_pixels(settings, pool.info)}
        return asdict(pool.info) | {"settings": shown | most}

    return router
