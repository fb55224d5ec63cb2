"""A real Gradio page behind the Door, on a free port of loopback, for the tests of security.web."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import gradio as gr
import httpx
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from security.web import Door, DoorSettings, current_login


@dataclass(frozen=True)
class Page:
    """A running page. `seen_headers` are those of the last request that got through to its own route /files/seen.

    `shown_file` is a picture that Gradio would serve to everybody, `functions` are the numbers of its handlers by name,
    `asking_component` has the function `whose`, which tells the login that asks.
    """

    address: str
    port: int
    app: Any
    seen_headers: dict[str, str]
    shown_file: str
    functions: dict[str, int]
    asking_component: int

    def client(self, **options: Any) -> httpx.Client:
        """An HTTP client as a browser's user would have: with a cookie jar, without following redirects."""
        return httpx.Client(base_url=self.address, trust_env=False, timeout=30, **options)


def free_port() -> int:
    """A port of loopback that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def whose(_argument: Any = None) -> dict[str, str]:
    """What a function of the page sees of the login that calls it."""
    return {"login": current_login()}


@contextlib.contextmanager
def served_page(settings: DoorSettings, picture: Path) -> Iterator[Page]:
    """Launches a page with text boxes, a picture and an upload, and closes it at the end.

    `run_history` is on, unlike in the real page, to see that the door alone keeps its routes shut.
    """
    seen: dict[str, str] = {}

    def show_headers(request: Request) -> Response:
        seen.clear()
        seen.update({name.lower(): value for name, value in request.headers.items()})
        return PlainTextResponse("seen", headers={"cache-control": "private, no-cache"})

    with gr.Blocks(analytics_enabled=False) as blocks:
        text, upper = gr.Textbox(label="Text"), gr.Textbox(label="Upper")
        button = gr.Button("Go")
        button.click(lambda value: value.upper(), text, upper, api_visibility="private", queue=False, api_name="upper")
        queued = gr.Button("Go queued")
        queued.click(lambda value: value + "!", text, upper, api_visibility="private")
        image = gr.Image(value=str(picture), label="Picture", interactive=False)
        file = gr.File(label="File", type="filepath")
        reads = gr.Button("Read")
        reads.click(lambda path: Path(path).read_text(), file, upper, api_visibility="private")
        slow = gr.Button("Wait")
        slow.click(lambda value: time.sleep(1.0) or value, text, upper, api_visibility="private")
        asking = gr.HTML(server_functions=[whose])
    targets = {"upper": button, "queued": queued, "reads": reads, "slow": slow}
    events = {event.targets[0][0]: number for number, event in blocks.fns.items()}
    functions = {name: events[target._id] for name, target in targets.items()}
    port = free_port()
    app, _, _ = blocks.queue(api_open=False).launch(
        server_name="127.0.0.1", server_port=port, share=False, prevent_thread_lock=True, quiet=True, show_error=False,
        run_history=True, enable_monitoring=False, mcp_server=False, ssr_mode=False, footer_links=[], strict_cors=True,
        app_kwargs={
            "openapi_url": None, "docs_url": None, "redoc_url": None,
            "middleware": [Middleware(Door, settings=settings)],
            "routes": [Route("/files/{path:path}", show_headers, methods=["GET", "POST"])],
        },
    )  # fmt: skip
    try:
        yield Page(f"http://127.0.0.1:{port}", port, app, seen, image.value["path"], functions, asking._id)
    finally:
        blocks.close(verbose=False)


class Served(Protocol):
    """Anything that listens on a port of loopback."""

    @property
    def port(self) -> int: ...


def raw_request(
    page: Served, method: str, target: str, headers: dict[str, str] | list[tuple[str, str]], body: bytes = b""
) -> tuple[int, bytes]:
    """Sends a request exactly as written, past the corrections of HTTP libraries. Returns status and answer."""
    pairs = headers.items() if isinstance(headers, dict) else headers
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in pairs), "Connection: close"]
    with socket.create_connection(("127.0.0.1", page.port), timeout=20) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return int(answer.split(b" ", 2)[1]), answer


def log_in(client: httpx.Client, password: str) -> httpx.Response:
    """Types a password into the login form."""
    return client.post("/login", data={"password": password})
