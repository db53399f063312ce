"""What every request passes on its way in and out: an id, the gate, protecting headers, the log and the figures."""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.logs import request_id as current_id
from service.metrics import Metrics
from service.problems import Problem, problem_response
from service.security import HEADERS, Gatekeeper

REQUEST_ID = "X-Request-Id"
_log = logging.getLogger("service.access")
_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Gate:
    """Puts an id in `request.state.request_id` and in the answer's X-Request-Id header, and sends away who may not ask.

    The client's own X-Request-Id is kept where it is 1 to 64 letters, digits, dots, dashes or underscores.
    An error that nothing expected is logged under the id and answered as Problem 500; Starlette's own
    handler would pass it on to the server, which then drops the connection.
    """

    def __init__(self, app: ASGIApp, keeper: Gatekeeper, metrics: Metrics) -> None:
        self.app, self.keeper, self.metrics = app, keeper, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        given = headers.get(REQUEST_ID, "")
        request_id = given if _SAFE_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        token = current_id.set(request_id)
        status, started = 0, time.perf_counter()

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(scope=message)
                answer[REQUEST_ID] = request_id
                for name, value in HEADERS.items():
                    answer.setdefault(name, value)
            await send(message)

        try:
            refusal = self.keeper.refusal(scope["method"], headers)
            if refusal is not None:
                await problem_response(Request(scope), refusal)(scope, receive, send_with_headers)
            else:
                await self.app(scope, receive, send_with_headers)
        except ClientDisconnect:
            status = status or 499
        except Exception:
            if status:
                raise
            logging.getLogger("service").exception("request %s failed", request_id)
            problem = Problem(500, "an error of this server; its log has more under the request id")
            await problem_response(Request(scope), problem)(scope, receive, send_with_headers)
        finally:
            self._note(scope, status, time.perf_counter() - started)
            current_id.reset(token)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self.metrics.requests.labels(route, status).inc()
        self.metrics.request_seconds.labels(route).observe(seconds)
        path = scope["path"]
        what = {"method": scope["method"], "path": path, "status": status, "ms": round(1000 * seconds, 1)}
        _log.info("%s %s %s", scope["method"], path, status, extra=what)


class BodyLimit:
    """Raises Problem 413 where a route reads a body of more than `max_bytes`, or what `others` says of its path, and
    408 where it does not arrive: in `seconds` for each `paced` bytes that its path takes, and for fewer.

    Starlette and FastAPI have a limit of their own, but that answers in plain text.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, others: Mapping[str, int], seconds: float, paced: int) -> None:
        self.app, self.max_bytes, self.others, self.seconds, self.paced = app, max_bytes, others, seconds, paced

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        limit = self.others.get(scope["path"], self.max_bytes)
        headers = Headers(scope=scope)
        announced, coding = headers.get("content-length", ""), headers.get("content-encoding", "identity")
        seconds = self.seconds * max(1.0, limit / self.paced)
        deadline = asyncio.get_running_loop().time() + seconds
        received, whole = 0, False

        async def receive_within_limit() -> Message:
            nonlocal received, whole
            if coding.lower() not in ("", "identity"):
                detail = f"the body is encoded as {coding[:100]}; it is taken as it is alone"
                raise Problem(415, detail, headers={"Accept-Encoding": "identity"})
            try:
                async with asyncio.timeout_at(None if whole else deadline):  # what comes then is that the client goes
                    message = await receive()
            except TimeoutError:
                detail = f"the body did not arrive within {seconds:g} s; {received} bytes of it did"
                raise Problem(408, detail, headers={"Connection": "close"}) from None
            whole = not message.get("more_body", False)
            received += len(message.get("body", b""))
            if max(received, int(announced) if announced.isdecimal() else 0) > limit:
                raise Problem(413, f"the body is larger than the {limit} bytes that {scope['path']} takes")
            return message

        await self.app(scope, receive_within_limit, send)
