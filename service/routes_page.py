"""The page at `/` and the API's description at `/docs`, from files of installed packages alone."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse
from fastapi.staticfiles import StaticFiles

from service.security import PAGE_POLICY

FOLDER = Path(__file__).parent / "page"
_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


def add_page(app: FastAPI) -> None:
    """Mount the page, its files and the API's description."""
    app.mount("/page", StaticFiles(directory=FOLDER))
    app.mount("/docs/assets", StaticFiles(packages=[("fastapi_swagger", "resources")]))
    app.include_router(_router(app.title))


def _router(title: str) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.head("/")
    @router.get("/")
    async def page() -> FileResponse:
        return FileResponse(FOLDER / "index.html", headers={"Content-Security-Policy": PAGE_POLICY})

    @router.get("/favicon.ico")
    async def icon() -> FileResponse:
        return FileResponse(FOLDER / "icon.svg")

    @router.get("/docs")
    async def docs() -> HTMLResponse:
        answer = get_swagger_ui_html(
            openapi_url="openapi.json",
            title=title,
            swagger_js_url="docs/assets/swagger-ui-bundle.js",
            swagger_css_url="docs/assets/swagger-ui.css",
            swagger_favicon_url="docs/assets/favicon-32x32.png",
        )
        hashes = [hashlib.sha256(script).digest() for script in _SCRIPT.findall(bytes(answer.body))]
        scripts = " ".join(f"'sha256-{base64.b64encode(each).decode()}'" for each in hashes)
        policy = PAGE_POLICY.replace("script-src 'self'", f"script-src 'self' {scripts}")
        answer.headers["Content-Security-Policy"] = policy.replace(
            "style-src 'self'", "style-src 'self' 'unsafe-inline'"
        )
        return answer

    return router
