"""Who may ask: API keys, how often, from which pages and under which names; and the headers that protect answers."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import math
import time
from collections.abc import Mapping
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPBearer

from service.problems import Problem
from service.settings import Settings

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


_BEARER = HTTPBearer(scheme_name="bearer", auto_error=False, description="a key of SERVICE_API_KEYS")
_HEADER = APIKeyHeader(name="X-API-Key", scheme_name="header", auto_error=False, description="the same key")


class Gatekeeper:
    """Knows the keys' hashes and how often each client asked of late."""

    def __init__(self, settings: Settings) -> None:
        self._keys = settings.api_keys
        self._per_minute = settings.requests_per_minute
        self._limits = {key.name: key.per_minute for key in self._keys if key.per_minute is not None}
        self._buckets: dict[str, tuple[float, float]] = {}
        self._hosts = {name.strip().lower() for name in settings.allowed_hosts.split(",") if name.strip()}
        if not self._hosts and settings.on_loopback:
            self._hosts = {"localhost", settings.host}
        self._origins = settings.origins

    def client(self, request: Request) -> str:
        """The asking client's name: of its key, or its address where no keys are set. Problem 401 for a wrong key."""
        if not self._keys:
            return request.client.host if request.client else "unknown"
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        key = given.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
        digest = hashlib.sha256(key.encode()).digest()
        matches = [each.name for each in self._keys if hmac.compare_digest(each.digest, digest)]
        if not matches:
            what = "the API key is not one of this server's" if key else "this server wants an API key"
            detail = f"{what}; send it as Authorization: Bearer KEY"
            raise Problem(401, detail, headers={"WWW-Authenticate": "Bearer"})
        return matches[0]

    def owner(self, client: str) -> str | None:
        """Whose jobs this client makes and sees: its own; None, those of all, where no keys are set."""
        return client if self._keys else None

    def count(self, client: str) -> None:
        """Problem 429 where the client asked more often than it may (a token bucket of a minute's worth)."""
        most = self._limits.get(client, self._per_minute)
        if not most:
            return
        now, rate = time.monotonic(), most / 60
        left, at = self._buckets.get(client, (float(most), now))
        left = min(most, left + (now - at) * rate)
        if left < 1:
            wait = max(1, math.ceil((1 - left) / rate))
            detail = f"you may ask {most} times a minute; try again in {wait} s"
            raise Problem(429, detail, headers={"Retry-After": str(wait)})
        if len(self._buckets) > 10_000:  # a minute after its last request a bucket is full, and says nothing
            self._buckets = {who: (n, t) for who, (n, t) in self._buckets.items() if now - t < 60}
        self._buckets[client] = (left - 1, now)

    def refusal(self, method: str, headers: Mapping[str, str]) -> Problem | None:
        """Why this is not answered at all: a name that is not ours, as when another site's name is made to lead here,
        or another site's page that asks for more than to look. An IP address leads nowhere else, and probes ask by it.
        """
        host = _split(f"//{headers.get('host', '')}").hostname or ""
        if self._hosts and not ("*" in self._hosts or host in self._hosts or _is_address(host)):
            return Problem(421, f"this server is not called {host[:100]!r}; SERVICE_ALLOWED_HOSTS says its names")
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "same-origin")
        if method not in ("GET", "HEAD", "OPTIONS") and not {origin, "*"} & {*self._origins}:
            own = origin is None or _split(origin).netloc == headers.get("host")
            if site == "cross-site" or not own:
                return Problem(403, "pages of other sites may not ask this server; SERVICE_CORS_ORIGINS allows some")
        return None


def _split(url: str) -> SplitResult:
    """The parts of a URL; empty ones where it is none."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def authenticated(  # async, though it waits for nothing: others get a thread
    request: Request, bearer: Annotated[object, Depends(_BEARER)], header: Annotated[object, Depends(_HEADER)]
) -> str:
    """FastAPI's dependency for every route that costs something or tells something: the client's name. The schemes are
    there for the OpenAPI document."""
    keeper: Gatekeeper = request.app.state.gatekeeper
    return keeper.client(request)


async def counted(request: Request, client: Annotated[str, Depends(authenticated)]) -> str:
    """The same, counted against the client's limit of requests a minute."""
    keeper: Gatekeeper = request.app.state.gatekeeper
    keeper.count(client)
    return client


async def owner(request: Request, client: Annotated[str, Depends(authenticated)]) -> str | None:
    """The dependency of routes whose things outlive a server: see `Gatekeeper.owner`."""
    keeper: Gatekeeper = request.app.state.gatekeeper
    return keeper.owner(client)
