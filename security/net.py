"""The only door to the internet: GET requests to the hubs, with redirects, tokens and waits under our own rules."""

from __future__ import annotations

import http.client
import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from security.addresses import Resolver, resolve_mirror, resolve_public, system_resolve
from security.connections import (
    CancelCheck,
    Channel,
    Dialer,
    Watch,
    ask,
    connect,
    system_dial,
    tls_context,
    told_plainly,
    waited_for,
)
from security.errors import Cancelled, FailedDownload, Interrupted, RefusedUrl
from security.policy import HOST_RULES, MAX_JSON_ANSWER_BYTES, MAX_REDIRECTS, PATIENCE, VERSION, Patience, Service
from security.statuses import login_wanted, status_error
from security.urls import Origin, SafeUrl, build, gets_token, parse_mirror, parse_redirect, parse_typed

if TYPE_CHECKING:
    from security.secrets import Secret

_REDIRECTS = (301, 302, 303, 307, 308)
_CALLER_HEADERS = frozenset({"Range", "If-Range"})
_PAGES = ("text/html", "application/xhtml+xml")
_READ_BYTES = 1024 * 1024


class Response:
    """An answer whose status and headers are fine. `length`: bytes of the body as announced, or None."""

    def __init__(self, answer: http.client.HTTPResponse, channel: Channel, url: SafeUrl) -> None:
        self.status = answer.status
        self.headers = answer.headers
        self.url = url
        if answer.headers.defects or any(re.search(r"[\r\n]", value) for value in answer.headers.values()):
            # The parser drops what follows a line that is no header, and joins lines that start with a space.
            raise FailedDownload(f"{url.host} sent malformed headers, so its answer cannot be trusted.")
        self.length = _announced_length(answer.headers, url.host)
        self._answer = answer
        self._channel = channel

    def chunks(self) -> Iterator[bytes]:
        """The body, exactly as it was sent, piece by piece.

        Raises Interrupted if it breaks off, stalls or is too slow, and Cancelled.
        """
        received = 0
        while True:
            with told_plainly(self._channel.watch, self.url.host):
                piece = self._answer.read1(_READ_BYTES)
            if not piece:
                break
            received += len(piece)
            yield piece
        if self.length is not None and received != self.length:
            raise Interrupted(f"{self.url.host} broke off after {received} of {self.length} bytes.")

    @property
    def chunked(self) -> bool:
        """True if the end of the body is marked in the body itself."""
        return self._answer.chunked

    def close(self) -> None:
        """Closes the connection."""
        self._answer.close()
        self._channel.hang_up()


class Retries:
    """Counts failed attempts in a row and waits between them, twice as long each time."""

    def __init__(self, patience: Patience, cancelled: CancelCheck | None) -> None:
        self._patience = patience
        self._cancelled = cancelled
        self._failed = 0

    def progressed(self) -> None:
        """The last attempt brought something, so the count starts anew."""
        self._failed = 0

    def wait(self, error: Interrupted) -> None:
        """Waits before the next attempt. Raises `error` if there is none, and Cancelled."""
        self._failed += 1
        if self._failed >= self._patience.attempts:
            raise error
        pause = min(self._patience.first_pause * 2 ** (self._failed - 1), self._patience.longest_pause)
        if error.retry_after is not None:
            if error.retry_after > self._patience.longest_retry_after:
                raise error
            pause = max(error.retry_after, self._patience.first_pause)
        end = time.monotonic() + pause
        while (left := end - time.monotonic()) > 0:
            if self._cancelled is not None and self._cancelled():
                raise Cancelled("The download was stopped.")
            time.sleep(min(left, self._patience.poll))


class Network:
    """Requests to the hubs. One object serves all threads; it keeps no connection, cookie or token."""

    def __init__(
        self,
        *,
        mirrors: Mapping[Service, str] | None = None,
        send_tokens_to_mirrors: bool = False,
        resolve: Resolver = system_resolve,
        dial: Dialer = system_dial,
        ca_file: Path | None = None,
        patience: Patience = PATIENCE,
    ) -> None:
        """`mirrors`: addresses that the user named on the command line; raises RefusedUrl for bad ones.

        `resolve`, `dial` and `ca_file` (the only authorities to trust) stand in for the internet in tests.
        """
        self.patience = patience
        self._mirrors = {service: parse_mirror(text, service) for service, text in (mirrors or {}).items()}
        self._send_tokens_to_mirrors = send_tokens_to_mirrors
        self._resolve = resolve
        self._dial = dial
        self._tls = tls_context(ca_file)

    @property
    def mirrors(self) -> dict[Service, str]:
        """The addresses that stand in for hubs, by hub."""
        return {service: str(address) for service, address in self._mirrors.items()}

    @property
    def sends_tokens_to_mirrors(self) -> bool:
        """Whether the user's tokens go to those addresses."""
        return self._send_tokens_to_mirrors

    def url(
        self, service: Service, path: str, query: Mapping[str, str] | None = None, *, host: str | None = None
    ) -> SafeUrl:
        """An address on the hub's API host or its mirror. `path` starts with "/" and is quoted here.

        `host`: another of the hub's own hosts, such as civitai.red; a mirror goes before it. Raises RefusedUrl.
        """
        rule = HOST_RULES[service]
        if host is not None and host not in rule.credentials:
            raise RefusedUrl(f"{host} is not a host of {service}. Known are {', '.join(sorted(rule.credentials))}.")
        origin = self._mirrors.get(service) or Origin("https", host or rule.api, 443)
        return build(origin, service, path, query, self._mirrors)

    def parse(self, text: str) -> SafeUrl:
        """Checks an address that a user typed. Raises RefusedUrl with the reason."""
        return parse_typed(text, self._mirrors)

    def get_json(
        self,
        url: SafeUrl,
        *,
        token: Secret | None = None,
        max_bytes: int = MAX_JSON_ANSWER_BYTES,
        cancelled: CancelCheck | None = None,
    ) -> Any:
        """The JSON value of an API answer. Tries again while the network or the hub is at fault.

        Raises NeedsLogin, FailedDownload (its subclass Interrupted once the tries are used up), RefusedUrl, Cancelled.
        """
        retries = Retries(self.patience, cancelled)
        while True:
            try:
                with self.open(
                    url, token=token, cancelled=cancelled, total_seconds=self.patience.json_total
                ) as response:
                    return _parse_json(_read_whole(response, max_bytes), url)
            except Interrupted as error:
                retries.wait(error)

    @contextmanager
    def open(
        self,
        url: SafeUrl,
        *,
        token: Secret | None = None,
        headers: Mapping[str, str] | None = None,
        cancelled: CancelCheck | None = None,
        total_seconds: float | None = None,
    ) -> Iterator[Response]:
        """One GET request, redirects followed. Gives an answer with status 200, or 206 and 416 to a Range header.

        `headers`: Range and If-Range only. `total_seconds`: for the body, PATIENCE.download_total if None.
        Raises NeedsLogin, Interrupted, FailedDownload, RefusedUrl, Cancelled; nothing is tried twice.
        """
        extra = dict(headers or {})
        assert extra.keys() <= _CALLER_HEADERS, f"not a caller's header: {extra}"
        watch = Watch(self.patience, cancelled)
        response = self._follow(url, extra, token, watch)
        try:
            _check_headers(response, ranged="Range" in extra)
            seconds = self.patience.download_total if total_seconds is None else total_seconds
            watch.begin_body(seconds, response.url.host)
            yield response
        finally:
            response.close()

    def _follow(self, url: SafeUrl, extra: Mapping[str, str], token: Secret | None, watch: Watch) -> Response:
        """The first answer that is no redirect. Raises for error statuses."""
        seen: set[str] = set()
        for _ in range(MAX_REDIRECTS + 1):
            if str(url) in seen:
                raise FailedDownload(f"{url.host} redirects in a circle, so the download was given up.")
            seen.add(str(url))
            response = self._request(url, extra, token, watch)
            if response.status in (200, 206, 416):
                return response
            response.close()
            had_token = token is not None and self._sends_token(url)
            if response.status not in _REDIRECTS:
                raise status_error(
                    response.status, response.headers, url, at_hub=self._is_hub(url), had_token=had_token
                )
            locations = response.headers.get_all("Location", [])
            if len(locations) != 1:
                raise FailedDownload(f"{url.host} redirects to {len(locations)} addresses at once.")
            url = parse_redirect(locations[0], url, self._mirrors)
            if self._is_hub(url) and url.path == "/login":
                raise login_wanted(url, had_token=had_token)
        raise FailedDownload(f"{url.host}: over {MAX_REDIRECTS} redirects in a row, so the download was given up.")

    def _is_mirror(self, url: SafeUrl) -> bool:
        return url.origin == self._mirrors.get(url.service)

    def _sends_token(self, url: SafeUrl) -> bool:
        return gets_token(url) or (self._is_mirror(url) and self._send_tokens_to_mirrors)

    def _is_hub(self, url: SafeUrl) -> bool:
        """True for the hub itself or its mirror, False for the storage behind it."""
        return self._is_mirror(url) or url.host in HOST_RULES[url.service].typed

    def _addresses(self, url: SafeUrl) -> list[str]:
        """The checked addresses of a host, looked up once."""
        if self._is_mirror(url):
            return resolve_mirror(url.host, self._resolve, loopback_only=url.scheme == "http")
        return resolve_public(url.host, self._resolve)

    def _request(self, url: SafeUrl, extra: Mapping[str, str], token: Secret | None, watch: Watch) -> Response:
        """One request to one host, after all checks of its address."""
        if parse_redirect(str(url), url, self._mirrors) != url:
            raise RefusedUrl(f"The address {url.shown!r} is refused: it was not made by the program's own checks.")
        watch.begin(self.patience.answer, f"{url.host} did not answer within {self.patience.answer:.0f} seconds")
        headers = {
            "Host": url.origin.authority,
            "User-Agent": f"Safelight/{VERSION}",
            "Accept": "*/*",
            "Accept-Encoding": "identity",
            "Connection": "close",
            **extra,
        }
        if token is not None and self._sends_token(url):
            headers["Authorization"] = f"Bearer {token.reveal()}"
        with told_plainly(watch, url.host):
            addresses = waited_for(lambda: self._addresses(url), watch)
            channel = connect(url, addresses, self._dial, self._tls, watch)
            try:
                return Response(ask(channel, url, headers), channel, url)
            except BaseException:
                channel.hang_up()
                raise


def _announced_length(headers: http.client.HTTPMessage, host: str) -> int | None:
    """Content-Length as a number. Raises FailedDownload where two parts of an answer disagree about its length."""
    values = {value.strip() for value in headers.get_all("Content-Length", [])}
    codings = [value.strip().lower() for value in headers.get_all("Transfer-Encoding", [])]
    if len(values) > 1 or any(not re.fullmatch("[0-9]{1,15}", value) for value in values):
        raise FailedDownload(f"{host} announces its answer's length as {sorted(values)[:3]}, so it cannot be trusted.")
    if codings and (values or codings != ["chunked"]):
        raise FailedDownload(f"{host} announces its answer's length in two ways, so it cannot be trusted.")
    return int(values.pop()) if values else None


def _check_headers(response: Response, *, ranged: bool) -> None:
    """Refuses answers whose body is not the bare file."""
    host = response.url.host
    if response.status != 200 and not ranged:
        raise FailedDownload(f"{host} answered with a part (status {response.status}) though the whole was asked for.")
    for coding in response.headers.get_all("Content-Encoding", []):
        if coding.strip().lower() not in ("", "identity"):
            raise FailedDownload(f"{host} sent a packed answer ({coding[:40]!r}) though the bare file was asked for.")
    kind = response.headers.get_content_type()
    if kind in _PAGES and response.status != 416:
        raise FailedDownload(f"{host} answered with a web page instead of the file: {response.url.shown}.")


def _read_whole(response: Response, max_bytes: int) -> bytes:
    """A short body. Raises FailedDownload if it is announced to be, or gets, longer than `max_bytes`."""
    body = bytearray()
    too_long = f"The answer of {response.url.host} is longer than {max_bytes} bytes, so it was not read."
    if response.length is not None and response.length > max_bytes:
        raise FailedDownload(too_long)
    for piece in response.chunks():
        body += piece
        if len(body) > max_bytes:
            raise FailedDownload(too_long)
    return bytes(body)


def _parse_json(body: bytes, url: SafeUrl) -> Any:
    try:
        return json.loads(body.decode())
    except (ValueError, RecursionError):
        raise FailedDownload(f"{url.host} answered with something that is not JSON: {url.shown}.") from None
