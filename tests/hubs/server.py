"""A real HTTPS server on loopback that answers as huggingface.co, civitai.com and their storage, well or badly.

    with loopback_hubs() as hubs:
        hubs.on("huggingface.co", "/a/b/resolve/main/x.safetensors", redirect("https://cdn-lfs.hf.co/x?sig=1"))
        hubs.on("cdn-lfs.hf.co", "/x", Reply(body=data, etag='"1"'))
        network = hubs.network()          # the product's own Network: allow-list, TLS, pinning, redirects, all real
        ...
        assert "authorization" not in hubs.seen[-1].headers

Only three things differ from the internet: names are looked up as a public address, connections to that address end
at the loopback port, and the only authority that is trusted is the server's own.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import trustme

from security.net import Network
from security.policy import Patience, Service

PUBLIC_ADDRESS = "93.184.216.34"
"""What every name is looked up as."""
NAMES = (
    *("huggingface.co", "www.huggingface.co", "hf.co", "cdn-lfs.hf.co", "cdn-lfs-us-1.hf.co", "us.aws.cdn.hf.co"),
    *("cas-bridge.xethub.hf.co", "cdn-lfs.huggingface.co", "evil.hf.space", "evil.example", "evil-huggingface.co"),
    *("civitai.com", "www.civitai.com", "civitai.red", "civitai.green", "b2.civitai.com"),
    "civitai-delivery-worker-prod.5ac0637cfd0766c97916cefa3764fbdf.r2.cloudflarestorage.com",
    "other-bucket.00000000000000000000000000000000.r2.cloudflarestorage.com",
    *("s3.us-west-004.backblazeb2.com", "mirror.example", "127.0.0.1", "localhost"),
)
"""Every name in the server's certificate. Hosts that must be refused are among them, so that only the refusal helps."""
FAST = Patience(
    connect=10.0,
    answer=10.0,
    idle=10.0,
    json_total=20.0,
    download_total=60.0,
    throughput_window=30.0,
    poll=0.02,
    first_pause=0.01,
    longest_pause=0.05,
    longest_retry_after=1.0,
)
"""The product's waits, shortened for tests, and still long enough for a busy machine."""


@dataclass(frozen=True)
class Seen:
    """One request that reached the server. `headers` have lower-case names; `tls_name` is what the client asked for."""

    host: str
    path: str
    query: str
    headers: Mapping[str, str]
    tls_name: str | None

    @property
    def token(self) -> str | None:
        """The Authorization header."""
        return self.headers.get("authorization")


@dataclass(frozen=True)
class Reply:
    """One answer, honest unless told otherwise.

    `ranges`: what happens to a Range header; "obey" also minds If-Range, "wrong" answers with another part.
    `announced`: the Content-Length ("right", any number, or None for none at all: the body ends with the connection).
    `chunked`: sends the body in chunks and no length, unless `announced` is a number too.
    `stop_after`: the connection ends after so many bytes of the body; with `reset` by a TCP reset, which may also swallow
    bytes that the client has not read yet. `pause`: seconds before each piece of `piece`
    bytes; `header_pause`: seconds before each byte of the head. `raw`: these bytes instead of all that.
    """

    status: int = 200
    body: bytes = b""
    headers: Sequence[tuple[str, str]] = ()
    content_type: str = "application/octet-stream"
    etag: str = ""
    ranges: Literal["obey", "ignore", "wrong", "refuse"] = "obey"
    announced: int | Literal["right"] | None = "right"
    chunked: bool = False
    stop_after: int | None = None
    reset: bool = False
    piece: int = 64 * 1024
    pause: float = 0.0
    header_pause: float = 0.0
    raw: bytes | None = None


Answer = Reply | Callable[[Seen], Reply]
"""A reply, or a function that looks at the request first."""


def redirect(location: str, status: int = 302, **more: Any) -> Reply:
    """Sends the client elsewhere."""
    return Reply(status, headers=[("Location", location)], **more)


def json_reply(value: Any, status: int = 200, headers: Sequence[tuple[str, str]] = ()) -> Reply:
    """An API answer."""
    return Reply(status, json.dumps(value).encode(), headers, "application/json")


def page(text: str = "<html>Please log in</html>", status: int = 200) -> Reply:
    """A web page where a file should be."""
    return Reply(status, text.encode(), content_type="text/html; charset=utf-8")


def only_with_token(token: str, reply: Reply, otherwise: Reply) -> Answer:
    """`reply` to requests that carry this bearer token."""
    return lambda seen: reply if seen.token == f"Bearer {token}" else otherwise


def only_with_query(text: str, reply: Reply, otherwise: Reply) -> Answer:
    """`reply` if `text` is in the query: a signed address that has run out when it is not."""
    return lambda seen: reply if text in seen.query else otherwise


@dataclass
class Hubs:
    """The server, what it was asked, and a Network that reaches it. `tls` is False for a plain mirror on loopback."""

    tls: bool
    ca_file: Path
    seen: list[Seen] = field(default_factory=list)
    lookups: list[str] = field(default_factory=list)
    dials: list[tuple[str, int]] = field(default_factory=list)
    port: int = 0
    _routes: dict[tuple[str, str], list[Answer]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def origin(self) -> str:
        """The server's real address, as a mirror is given on the command line."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def on(self, host: str, path: str, *answers: Answer) -> None:
        """Answers to `path` (without query) of `host` ("*": of any). Each is given once, the last one for ever."""
        with self._lock:
            self._routes[host, path] = list(answers)

    def clear(self) -> None:
        """Forgets all answers and requests."""
        with self._lock:
            self._routes.clear()
            for record in (self.seen, self.lookups, self.dials):
                record.clear()

    def requests_to(self, host: str) -> list[Seen]:
        """What one host was asked."""
        return [seen for seen in self.seen if seen.host == host]

    def network(
        self,
        patience: Patience = FAST,
        *,
        mirrors: Mapping[Service, str] | None = None,
        send_tokens_to_mirrors: bool = False,
        resolve: Callable[[str], Sequence[str]] | None = None,
        ca_file: Path | None = None,
    ) -> Network:
        """The product's Network, with this server as its internet."""
        return Network(
            mirrors=mirrors,
            send_tokens_to_mirrors=send_tokens_to_mirrors,
            resolve=resolve or self.resolve,
            dial=self.dial,
            ca_file=ca_file or self.ca_file,
            patience=patience,
        )

    def resolve(self, host: str) -> list[str]:
        """Looks any name up as the one public address."""
        self.lookups.append(host)
        return [PUBLIC_ADDRESS]

    def dial(self, address: str, port: int, seconds: float) -> socket.socket:
        """Connects the public address to this server; what is on this machine stays where it is."""
        self.dials.append((address, port))
        return dial_to(self.port, address, port, seconds)

    def answer_to(self, seen: Seen) -> Reply:
        """Records a request and takes the next answer for it."""
        with self._lock:
            self.seen.append(seen)
            answers = self._routes.get((seen.host, seen.path)) or self._routes.get(("*", seen.path))
            answer: Answer = Reply(404) if not answers else answers.pop(0) if len(answers) > 1 else answers[0]
        return answer(seen) if callable(answer) else answer


def dial_to(server_port: int, address: str, port: int, seconds: float) -> socket.socket:
    """A connection to the server in place of the public address."""
    if address == PUBLIC_ADDRESS:
        return socket.create_connection(("127.0.0.1", server_port), timeout=seconds)
    return socket.create_connection((address, port), timeout=seconds)


@contextlib.contextmanager
def loopback_hubs(*, tls: bool = True) -> Iterator[Hubs]:
    """Runs the server on a free port of 127.0.0.1 until the end of the block."""
    with tempfile.TemporaryDirectory() as folder:
        authority = trustme.CA()
        ca_file = Path(folder) / "authority.pem"
        authority.cert_pem.write_to_path(str(ca_file))
        hubs = Hubs(tls, ca_file)
        server = _Server(hubs, _server_context(authority) if tls else None)
        hubs.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield hubs
        finally:
            server.stopping.set()
            server.shutdown()
            server.server_close()
            thread.join()


def _server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*NAMES).configure_cert(context)

    def note_name(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        connection.asked_name = name  # type: ignore[attr-defined]

    context.sni_callback = note_name
    return context


class _Server(ThreadingHTTPServer):
    """One thread for each connection; they end with the server."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, hubs: Hubs, context: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hubs = hubs
        self.context = context
        self.stopping = threading.Event()

    def handle_error(self, *_: Any) -> None:
        """Clients that hang up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    """Reads one request and writes one reply."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        if self.server.context is not None:
            self.request = self.server.context.wrap_socket(self.request, server_side=True)
        super().setup()

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        """Any GET request."""
        path, _, query = self.path.partition("?")
        headers = {name.lower(): ", ".join(self.headers.get_all(name, [])) for name in self.headers}
        host = headers.get("host", "")
        tls_name = getattr(self.request, "asked_name", None)
        reply = self.server.hubs.answer_to(Seen(host, path, query, headers, tls_name))
        self.close_connection = True
        if reply.raw is not None:
            self._send(reply.raw, reply.header_pause, 1 if reply.header_pause else len(reply.raw))
            return
        status, body, lines = _ranged(reply, headers)
        self._send(_head(reply, status, body, lines), reply.header_pause, 1 if reply.header_pause else 65536)
        sent = body if reply.stop_after is None else body[: reply.stop_after]
        for start in range(0, len(sent), reply.piece):
            part = sent[start : start + reply.piece]
            self._send(b"%x\r\n%s\r\n" % (len(part), part) if reply.chunked else part, reply.pause, len(part) + 32)
        if reply.reset:
            self._reset()
        elif reply.chunked and reply.stop_after is None:
            self._send(b"0\r\n\r\n", 0, 16)

    def _send(self, data: bytes, pause: float, piece: int) -> None:
        """Writes data in pieces, with a pause before each, until the client or the server goes."""
        for start in range(0, len(data), max(1, piece)):
            if pause and self.server.stopping.wait(pause):
                raise ConnectionAbortedError
            self.wfile.write(data[start : start + piece])

    def _reset(self) -> None:
        """Ends the connection with a TCP reset instead of a goodbye."""
        descriptor = self.request.detach()
        with socket.socket(fileno=descriptor) as bare:
            bare.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def finish(self) -> None:
        """As usual; a connection that is gone already is fine."""
        with contextlib.suppress(OSError, ValueError):
            super().finish()


def _ranged(reply: Reply, headers: Mapping[str, str]) -> tuple[int, bytes, list[tuple[str, str]]]:
    """Status, body and extra headers of a reply, as its `ranges` has it."""
    match = re.fullmatch(r"bytes=(\d+)-", headers.get("range", ""))
    if reply.status != 200 or match is None or reply.ranges == "ignore":
        return reply.status, reply.body, []
    start, size = int(match[1]), len(reply.body)
    if reply.ranges == "refuse" or start >= size:
        return 416, b"", [("Content-Range", f"bytes */{size}")]
    if reply.ranges == "obey" and headers.get("if-range", reply.etag) != reply.etag:
        return 200, reply.body, []
    if reply.ranges == "wrong":
        start = start // 2
    return 206, reply.body[start:], [("Content-Range", f"bytes {start}-{size - 1}/{size}")]


def _head(reply: Reply, status: int, body: bytes, extra: list[tuple[str, str]]) -> bytes:
    """The status line and headers."""
    lines = [("Content-Type", reply.content_type), ("Connection", "close"), *reply.headers, *extra]
    if reply.etag:
        lines.append(("ETag", reply.etag))
    if reply.chunked:
        lines.append(("Transfer-Encoding", "chunked"))
    if isinstance(reply.announced, int) or (reply.announced == "right" and not reply.chunked):
        lines.append(("Content-Length", str(len(body) if reply.announced == "right" else reply.announced)))
    known = [int(known) for known in HTTPStatus]
    phrase = HTTPStatus(status).phrase if status in known else "Unknown"
    return "".join([f"HTTP/1.1 {status} {phrase}\r\n", *(f"{n}: {v}\r\n" for n, v in lines), "\r\n"]).encode("latin-1")
