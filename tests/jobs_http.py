"""The routes of jobs in an application of their own with fake workers; a real server around it, here or as a process
(`python -m tests.jobs_http PORT`, the settings from the environment)."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.__main__ import listen
from service.openapi import complete_document
from service.problems import add_problem_handlers
from service.routes_jobs import jobs_router
from service.security import Gatekeeper
from service.settings import Settings, load_settings
from tests.service_fakes import wait_until

FAKE = [sys.executable, "-m", "tests.jobs_fakes"]


def jobs_app(settings: Settings) -> FastAPI:
    """An application that has nothing but jobs."""
    app = FastAPI()
    app.state.gatekeeper = Gatekeeper(settings)
    app.add_middleware(RequestIds)
    add_problem_handlers(app)
    complete_document(app, keys=False)
    app.include_router(jobs_router(settings, FAKE))
    return app


class RequestIds:
    """Gives every request an id, as the service's own gate does."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        scope.setdefault("state", {})["request_id"] = "test"

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = "test"
            await send(message)

        await self.app(scope, receive, send_with_id)


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """A uvicorn server on loopback for as long as the block runs; its address."""
    with listen("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_until(lambda: server.started)
            yield "http://{}:{}".format(*listener.getsockname())
        finally:
            server.should_exit = True
            thread.join(60)


if __name__ == "__main__":
    config = uvicorn.Config(jobs_app(load_settings([])), log_level="error")
    uvicorn.Server(config).run(sockets=[listen("127.0.0.1", int(sys.argv[1]))])
