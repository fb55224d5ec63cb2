"""One request as the door sees it: host, cookie, query, and where it comes from."""

from __future__ import annotations

import time
from urllib.parse import parse_qs, parse_qsl, urlencode

from starlette.datastructures import Headers
from starlette.types import Scope

from security.errors import RefusedRequest
from security.hosts import LOOPBACK_NAMES, host_name
from security.login import Place
from security.policy import RATE_WINDOW_SECONDS

_PROXY_HEADERS = (
    "forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-forwarded-prefix", "x-forwarded-context",
    "x-forwarded-server", "x-forwarded-port", "x-real-ip", "x-proxycontextpath", "x-original-host", "via",
    "cf-connecting-ip", "true-client-ip",
)  # fmt: skip
"""What proxies add. A request of a browser on this machine has none of them."""


class Visit:
    """The parts of a request that the door looks at."""

    def __init__(self, scope: Scope, share_host: str) -> None:
        """`share_host` is the name of the share link while it is open, else ""."""
        self.headers = Headers(scope=scope)
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self._query_text: str = scope["query_string"].decode("latin-1")
        self.query: dict[str, list[str]] = parse_qs(self._query_text, keep_blank_values=True)
        hosts = self.headers.getlist("host")
        self.host = hosts[0].lower() if len(hosts) == 1 else ""
        self.host_name = host_name(self.host)
        """The host without its port; "" if the header is missing, there twice, or not a host."""
        self.is_shared = share_host != "" and self.host_name == share_host
        # A share link is https up to the tunnel's end, whatever this end of it says.
        self.is_https = scope["scheme"] == "https" or self.is_shared
        # Cookies do not tell ports apart, so two programs on one machine need two names. With "__Host-" a browser takes
        # the cookie from this host alone, never from a neighbour below the same domain.
        port = (scope.get("server") or ("", 0))[1]
        self.cookie_name = f"__Host-safelight-{port}" if self.is_https else f"safelight-{port}"
        self.token = self._cookie()

    def _cookie(self) -> str:
        """The token that the browser sent, or ""."""
        # Browsers send the cookies of all programs on this machine, whatever their port; a reader that gives up at one
        # with odd signs in it would never find ours.
        for cookie in "; ".join(self.headers.getlist("cookie")).split(";"):
            name, _, value = cookie.partition("=")
            if name.strip() == self.cookie_name:
                return value.strip().strip('"')
        return ""

    @property
    def place(self) -> Place:
        """Where the visitor comes from, by the address that he uses."""
        if self.is_shared:
            return Place.SHARE
        return Place.HERE if self.host_name in LOOPBACK_NAMES else Place.NETWORK

    @property
    def came_by_proxy(self) -> bool:
        """Whether a proxy has passed the request on and says so."""
        return any(name in self.headers for name in _PROXY_HEADERS)

    @property
    def comes_from_elsewhere(self) -> bool:
        """Whether a page of another site, or a script, frame or picture in it, makes the browser ask."""
        return self.headers.get("sec-fetch-site", "none") not in ("same-origin", "none")

    @property
    def follows_a_link(self) -> bool:
        """Whether the browser opens the front page as a whole, as after a click on a link."""
        navigates = self.headers.get("sec-fetch-mode") == "navigate"
        on_top = self.headers.get("sec-fetch-dest") == "document"
        return navigates and on_top and self.path == "/" and self.method == "GET"

    def only(self, name: str) -> str:
        """The value of a query parameter. Raises RefusedRequest (400) unless it is there exactly once."""
        values = self.query.get(name, [])
        if len(values) != 1:
            raise RefusedRequest(f"The address needs one {name}.", 400)
        return values[0]

    def address_without(self, name: str) -> str:
        """The front page with all query parameters but one; relative, for a proxy may serve it below a path."""
        rest = [(key, value) for key, value in parse_qsl(self._query_text) if key != name]
        return "./" + ("?" + urlencode(rest) if rest else "")


class RateLimit:
    """Counts requests per visitor in windows of RATE_WINDOW_SECONDS."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._window_end = 0.0

    def count(self, visitor: str, limit: int) -> None:
        """Counts one request. Raises RefusedRequest (429) beyond `limit`."""
        now = time.monotonic()
        if now >= self._window_end:
            self._counts.clear()
            self._window_end = now + RATE_WINDOW_SECONDS
        self._counts[visitor] = self._counts.get(visitor, 0) + 1
        if self._counts[visitor] > limit:
            raise RefusedRequest("Too many requests. Wait a few seconds.", 429)
