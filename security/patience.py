"""How long the web server waits for somebody who connects and says nothing, and how many it serves at a time."""

from __future__ import annotations

import asyncio
from typing import cast

from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

from security.policy import HEAD_SECONDS, MAX_CONNECTIONS


class TimedProtocol(H11Protocol):
    """Closes a connection on which no whole request head has come in time; uvicorn itself would wait for ever."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        self.loop.call_later(HEAD_SECONDS, self._close_unless_asked)

    def _close_unless_asked(self) -> None:
        if self.cycle is None and self.transport is not None:
            self.transport.close()


def limit_connections(config: Config) -> None:
    """Sets both for all connections from now on; Gradio has no setting for them."""
    config.limit_concurrency = MAX_CONNECTIONS
    config.http_protocol_class = TimedProtocol
