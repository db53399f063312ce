"""What every request passes on its way in: it gets an id, and its body gets a limit."""

import logging
import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.problems import Problem, problem_response

REQUEST_ID = "X-Request-Id"
_log = logging.getLogger("service")
_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestIds:
    """Puts an id in `request.state.request_id` and in the answer's X-Request-Id header.

    The client's own X-Request-Id is kept where it is 1 to 64 letters, digits, dots, dashes or underscores.
    An error that nothing expected is logged under the id and answered as Problem 500; Starlette's own
    handler would pass it on to the server, which then drops the connection.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if _SAFE_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception:
            if started:
                raise
            _log.exception("request %s failed", request_id)
            problem = Problem(500, "an error of this server; its log has more under the request id")
            await problem_response(Request(scope), problem)(scope, receive, send_with_id)


class BodyLimit:
    """Raises Problem 413 where a route reads a body of more than `max_bytes`.

    Starlette has one of its own, but that answers in plain text.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if scope["path"] == "/jobs/zip":  # a route that has a limit of its own
            return await self.app(scope, receive, send)
        announced = Headers(scope=scope).get("content-length", "")
        received = 0

        async def receive_within_limit() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if max(received, int(announced) if announced.isdecimal() else 0) > self.max_bytes:
                raise Problem(413, f"the body is larger than this server's {self.max_bytes} bytes")
            return message

        await self.app(scope, receive_within_limit, send)
