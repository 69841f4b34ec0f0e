"""What every request and response goes through: whose page asks, safe headers, the clock."""

from __future__ import annotations

import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from student_jax.service.limits import LOOPBACK
from student_jax.service.metrics import Metrics
from student_jax.service.replies import Reply

METHODS = frozenset({"GET", "HEAD", "POST", "DELETE"})
HEADERS = {
    # Nothing from elsewhere, nothing inline; data: is for the pictures inside style sheets.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; font-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "cache-control": "no-cache",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Gate:
    """Refuses what pages of other sites ask for, and measures the rest.

    Nobody proves who they are here, so a browser must not become anyone's hand: a request is
    refused where its Host is a name this server does not go by (DNS rebinding), or its Origin is
    another site (cross-site requests).
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, names: frozenset[str] | None) -> None:
        """Args: names that the server goes by; None for any."""
        self.app, self._metrics, self._names = app, metrics, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(raw=message["headers"])
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            refused = self._refusal(Headers(scope=scope))
            app = Reply({"detail": refused}, 403) if refused else self.app
            await app(scope, receive, send_on)
        finally:
            # Made-up addresses and methods make no new series: a route's own pattern is told.
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._metrics.requests.labels(route, method, status).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - began)

    def _refusal(self, headers: Headers) -> str | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._names is not None and name_of(host) not in self._names:
            return "host: not a name of this server; --names adds one"
        if origin is None or netloc_of(origin) == host:
            return None
        if name_of(netloc_of(origin)) in (self._names or LOOPBACK) - LOOPBACK:
            return None  # a proxy's name, where the proxy puts its own into Host
        return "origin: pages of other sites may not ask"


def name_of(host: str) -> str:
    """Returns a Host header's name without the port, in lower case; empty where there is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def netloc_of(origin: str) -> str:
    """Returns an Origin header's host and port; empty where there is none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""
