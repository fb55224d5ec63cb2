"""One HTTP request over one connection: dialled to a checked address, TLS by name, every wait bounded.

Nothing here reads proxies, netrc, cookies or certificates from the environment, rewrites an address, follows a redirect
or decodes a body. A socket's own timeout only bounds the wait for the next byte; `Watch` bounds the whole.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import certifi

from security.errors import Cancelled, FailedDownload, Interrupted, RefusedUrl, SafelightError
from security.policy import Patience
from security.urls import SafeUrl

Dialer = Callable[[str, int, float], socket.socket]
"""Connects to (IP address, port) within some seconds. Raises OSError."""
CancelCheck = Callable[[], bool]
"""True once the user wants to stop."""
_BUFFER_BYTES = 64 * 1024


def system_dial(address: str, port: int, seconds: float) -> socket.socket:
    """A TCP connection to an IP address, and to no other. Raises OSError or RefusedUrl."""
    connection = socket.create_connection((address, port), timeout=seconds)
    peer = str(connection.getpeername()[0])
    if ipaddress.ip_address(peer) != ipaddress.ip_address(address):
        connection.close()
        raise RefusedUrl(f"A connection to {address} ended at {peer}. Nothing was sent. Is a proxy in the way?")
    return connection


def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """TLS 1.2 or newer with verified names, trusting the bundled list of authorities, or those in `ca_file` only.

    Made from parts: ssl.create_default_context reads the environment for authorities and for a file to log keys to.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.hostname_checks_common_name = False
    context.set_alpn_protocols(["http/1.1"])
    context.load_verify_locations(ca_file or certifi.where())
    return context


class _Ended(OSError):
    """Stops http.client; the fault itself is in the watch, because http.client swallows some kinds of errors."""


class Watch:
    """When the current step of a connection has to be over, and whether the user still wants it."""

    def __init__(self, patience: Patience, cancelled: CancelCheck | None) -> None:
        self.patience = patience
        self.fault: SafelightError | None = None
        self._cancelled = cancelled
        self._deadline = time.monotonic()
        self._late = ""
        self._window_bytes: int | None = None  # None while there is no body
        self._window_seconds = 0.0

    def begin(self, seconds: float, late: str) -> None:
        """Starts a step that may take `seconds`. `late` is the sentence for when it takes longer."""
        self._deadline = time.monotonic() + seconds
        self._late = late
        self._window_bytes = None

    def begin_body(self, seconds: float, host: str) -> None:
        """Starts the body, which may take `seconds`, must not pause for long, and must keep up a least speed."""
        self.begin(seconds, f"{host} did not finish within {seconds:.0f} seconds")
        self._window_bytes, self._window_seconds = 0, 0.0

    def received(self, count: int, seconds: float) -> None:
        """Counts what came, and how long it was waited for. Time that we spend on writing is not the hub's fault."""
        if self._window_bytes is not None:
            self._window_bytes += count
            self._window_seconds += seconds

    def ended(self) -> None:
        """The other side hung up. http.client would take a head that was cut off for a whole one."""
        if self._window_bytes is None:
            self.fault = Interrupted("The connection ended before the answer was there.")
            raise _Ended(str(self.fault))

    def seconds_left(self) -> float:
        """Until the step must be over; 0 or less once it should have been."""
        return self._deadline - time.monotonic()

    def connect_seconds(self) -> float:
        """How long one attempt to connect may take, over 0."""
        return max(0.001, min(self.patience.connect, self.seconds_left()))

    def look(self, waited: float = 0.0) -> float:
        """Seconds to wait until the next look, over 0. Raises OSError and sets `fault` when the step must end.

        `waited`: seconds since the last byte came, of those in which we listened.
        """
        left = self.seconds_left()
        late = self._late if left <= 0 else self._slow(waited)
        if self._cancelled is not None and self._cancelled():
            self.fault = Cancelled("The download was stopped.")
        elif late:
            self.fault = Interrupted(f"{late}.")
        if self.fault is not None:
            raise _Ended(str(self.fault))
        return max(0.001, min(self.patience.poll, left))

    def _slow(self, waited: float) -> str:
        """What is wrong with the body's speed, or ""."""
        if self._window_bytes is None:
            return ""
        if waited >= self.patience.idle:
            return f"Nothing came for {self.patience.idle:.0f} seconds"
        if self._window_seconds < self.patience.throughput_window:
            return ""
        speed = self._window_bytes / self._window_seconds
        self._window_bytes, self._window_seconds = 0, 0.0
        least = self.patience.throughput_bytes_per_second
        return f"Only {speed:.0f} bytes came per second, and {least} are the least" if speed < least else ""


@contextmanager
def told_plainly(watch: Watch, host: str) -> Iterator[None]:
    """Turns what the network's libraries raise into Interrupted, FailedDownload or the watch's own fault."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise FailedDownload(
            f"{host} could not prove that it is {host}: {error.verify_message}. Nothing was sent. A filter that reads "
            "encrypted connections, or a wrong clock, may be the cause."
        ) from None
    except (OSError, http.client.HTTPException) as error:
        if watch.fault is not None:
            raise watch.fault from None
        if isinstance(error, TimeoutError):
            raise Interrupted(f"{host} did not answer in time.") from None
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise Interrupted(f"The connection to {host} broke: {reason}.") from None


def waited_for(action: Callable[[], Sequence[str]], watch: Watch) -> Sequence[str]:
    """The result of a name look-up, which the system does not let us interrupt: it runs on a thread of its own.

    When the watch ends the wait, the thread is left behind until the system is done, in half a minute or so.
    """
    results: queue.SimpleQueue[Sequence[str] | SafelightError] = queue.SimpleQueue()

    def run() -> None:
        try:
            results.put(action())
        except SafelightError as error:
            results.put(error)

    threading.Thread(target=run, name="look-up", daemon=True).start()
    while True:
        try:
            result = results.get(timeout=watch.look())
        except queue.Empty:
            continue
        if isinstance(result, SafelightError):
            raise result
        return result


class Channel:
    """A connected socket as http.client uses it, with each wait cut into looks at the watch."""

    def __init__(self, connection: socket.socket, watch: Watch) -> None:
        self.connection = connection
        self.watch = watch

    def sendall(self, data: bytes) -> None:
        """Sends a request's head, which fits into the socket's buffer."""
        self.watch.look()
        self.connection.settimeout(self.watch.patience.connect)
        self.connection.sendall(data)

    def makefile(self, *_: object) -> io.BufferedReader:
        """The reader for http.client."""
        return io.BufferedReader(_Incoming(self), _BUFFER_BYTES)

    def receive_into(self, buffer: memoryview) -> int:
        """Waits for bytes, as long as the watch allows."""
        start = time.monotonic()
        while True:
            self.connection.settimeout(self.watch.look(time.monotonic() - start))
            try:
                count = self.connection.recv_into(buffer)
            except TimeoutError:
                continue
            self.watch.received(count, time.monotonic() - start)
            if count == 0:
                self.watch.ended()
            return count

    def close(self) -> None:
        """http.client closes its socket while the body is still being read; `hang_up` is the real end."""

    def hang_up(self) -> None:
        """Closes the connection."""
        self.connection.close()


class _Incoming(io.RawIOBase):
    """What comes over a channel, as a raw stream."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._channel.receive_into(memoryview(buffer))


def connect(url: SafeUrl, addresses: Sequence[str], dial: Dialer, tls: ssl.SSLContext, watch: Watch) -> Channel:
    """A connection to the first of the checked `addresses` that answers, encrypted unless the scheme is http."""
    for number, address in enumerate(addresses, start=1):
        try:
            watch.look()
            connection = dial(address, url.port, watch.connect_seconds())
        except OSError:
            if watch.fault is not None or number == len(addresses):
                raise
            continue
        try:
            watch.look()
            connection.settimeout(watch.connect_seconds())
            if url.scheme == "https":
                connection = tls.wrap_socket(connection, server_hostname=url.host)
        except BaseException:
            connection.close()
            raise
        return Channel(connection, watch)
    raise Interrupted(f"{url.host} has no address. Is the network up?")


def ask(channel: Channel, url: SafeUrl, headers: Mapping[str, str]) -> http.client.HTTPResponse:
    """Sends a GET request with exactly these headers and reads the answer up to its body."""
    connection = http.client.HTTPConnection(url.host, url.port)
    connection.auto_open = 0  # it must never dial by itself
    connection.sock = cast(socket.socket, channel)
    connection.putrequest("GET", url.target, skip_host=True, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    return connection.getresponse()
