"""How long the web server waits for somebody who connects and says nothing, and how many it serves at a time."""

from __future__ import annotations

import asyncio
from typing import cast

from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from security.policy import HEAD_SECONDS, MAX_CONNECTIONS


class TimedProtocol(H11Protocol):
    """Closes a connection on which a request head has not come in time; uvicorn itself would wait for it for ever.

    Between two requests of a connection uvicorn's own time for idle ones counts, until the first byte of the second.
    """

    _timed_after: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        self.loop.call_later(HEAD_SECONDS, self._close_unless_asked_after, None)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and cycle.response_complete and self._timed_after is not cycle:
            self._timed_after = cycle
            self.loop.call_later(HEAD_SECONDS, self._close_unless_asked_after, cycle)

    def _close_unless_asked_after(self, cycle: RequestResponseCycle | None) -> None:
        """Closes, if no whole request has come after the one of `cycle`."""
        if self.cycle is cycle and not self.transport.is_closing():
            self.transport.close()


def limit_connections(config: Config) -> None:
    """Sets both for all connections from now on; Gradio has no setting for them."""
    config.limit_concurrency = MAX_CONNECTIONS
    config.http_protocol_class = TimedProtocol
