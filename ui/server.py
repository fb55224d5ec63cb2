"""How the page is served: environment, workspace, login, port, browser, and an end that saves the run.

Gradio is imported only after the environment is closed: it reads variables that widen what is served.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from security.environment import closed_environment
from security.errors import SafelightError
from security.login import Credentials, generate_password, read_password_file
from trainer.jobs import Jobs
from trainer.logs import configure_logging
from trainer.workspace import Workspace

if TYPE_CHECKING:
    from gradio import Blocks

    from ui.services import Services

logger = logging.getLogger("safelight.server")

SHUTDOWN_SECONDS = 17.0
"""For the running step and its saving; the rest of the promised twenty seconds is for closing down."""
MAX_UPLOAD_FILE_SIZE = "512mb"


class PortTaken(SafelightError):
    """Another program listens on the port that the page should use."""


@dataclass(frozen=True)
class ServeOptions:
    """What the command line can say about serving. `port` 0 takes any free one."""

    port: int = 7860
    listen: bool = False
    share: bool = False
    workspace: Path | None = None
    open_browser: bool = True
    password_file: Path | None = None

    @property
    def host(self) -> str:
        return "0.0.0.0" if self.listen else "127.0.0.1"  # noqa: S104 - asked for, and behind a password


def serve(options: ServeOptions) -> int:
    """Serves the page until SIGINT or SIGTERM; then the run finishes its step and is saved. Returns the exit code."""
    ended = threading.Event()
    _on_signals(ended)
    try:
        workspace = Workspace.open(options.workspace)
        password, credentials = _credentials(options)
        port = _free_port(options)
    except SafelightError as error:
        sys.stderr.write(f"safelight: {error}\n")
        return 2
    configure_logging(workspace)
    private = closed_environment(workspace.cache_dir / "page")
    empty = private / "empty"
    empty.mkdir(exist_ok=True)
    os.chdir(empty)  # gradio serves files of the current folder that a handler happens to name
    jobs = Jobs(workspace)
    page, shared_url = _launch(options, port, credentials, _services(options, workspace, jobs))
    _tell(options, f"http://127.0.0.1:{port}", shared_url, password, credentials)
    while not ended.wait(0.5):
        pass
    return _close(page, jobs)


def _on_signals(ended: threading.Event) -> None:
    def end(_number: int, _frame: FrameType | None) -> None:
        if ended.is_set():
            sys.stderr.write("Still saving; the run is kept up to its last checkpoint in any case.\n")
        ended.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)


def _credentials(options: ServeOptions) -> tuple[str, Credentials | None]:
    """The password of a page that others can reach. Raises RefusedConfig for a password file that is no good."""
    if not (options.listen or options.share or options.password_file):
        return "", None
    password = read_password_file(options.password_file.expanduser()) if options.password_file else generate_password()
    return password, Credentials(password)


def _free_port(options: ServeOptions) -> int:
    """The port to serve on. Raises PortTaken; looking first makes that one sentence instead of a stack of calls."""
    with socket.socket() as probe:
        if os.name != "nt":  # there it would let two programs share a port
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((options.host, options.port))
        except OSError as error:
            raise PortTaken(
                f"port {options.port} can't be used ({error.strerror}): perhaps Safelight is running already. "
                f"Open http://127.0.0.1:{options.port}, or choose another port with --port {options.port + 1}."
            ) from None
        port: int = probe.getsockname()[1]
        return port


def _services(options: ServeOptions, workspace: Workspace, jobs: Jobs) -> Services:
    from ui.machine import Machine
    from ui.services import IMPORT_FOLDER, Access, Library, Services

    access = Access(listen=options.listen, share=options.share)
    if access.open_to_others:
        (workspace.path / IMPORT_FOLDER).mkdir(exist_ok=True)
    return Services(workspace, jobs, Machine(workspace.path), access, Library(workspace))


def _launch(
    options: ServeOptions, port: int, credentials: Credentials | None, services: Services
) -> tuple[Blocks, str]:
    """Builds and starts the page. Returns it and its share link, if there is one."""
    from starlette.middleware import Middleware

    from security.web import Door, DoorSettings
    from ui.app import build_app
    from ui.downloads import routes
    from ui.looks import theme
    from ui.views import FILES_PREFIX
    from ui.widgets import ASSETS_DIR, page_head

    door = DoorSettings(
        credentials=credentials,
        listens=options.listen,
        shared=options.share,
        file_prefixes=(f"/{FILES_PREFIX}/",),
    )
    app_kwargs: dict[str, Any] = {
        "routes": routes(services),
        "middleware": [Middleware(Door, settings=door)],
        "openapi_url": None,
        "docs_url": None,
        "redoc_url": None,
    }
    page = build_app(services)
    # Every argument that widens what is served is given, so that neither a default nor the environment decides.
    _, _, shared_url = page.queue(default_concurrency_limit=4, max_size=64, api_open=False).launch(
        server_name=options.host,
        server_port=port,
        share=options.share,
        inbrowser=False,
        prevent_thread_lock=True,
        quiet=True,
        show_error=False,
        run_history=False,
        footer_links=[],
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        num_workers=0,
        strict_cors=True,
        root_path="",
        allowed_paths=[],
        max_file_size=MAX_UPLOAD_FILE_SIZE,
        state_session_capacity=50,
        favicon_path=ASSETS_DIR / "favicon.png",
        app_kwargs=app_kwargs,
        theme=theme(),
        head=page_head(),
    )
    return page, shared_url or ""


def _tell(options: ServeOptions, here: str, shared_url: str, password: str, credentials: Credentials | None) -> None:
    """Says on the terminal, and nowhere else, where the page is and how to get in."""
    address = credentials.key_link(here) if credentials else here
    print(f"Safelight is ready: {address}", flush=True)
    if credentials is not None:
        if options.listen:
            print("From other machines the same, with the address of this machine instead of 127.0.0.1.")
        if shared_url:
            print(f"Shared for some hours at: {credentials.key_link(shared_url)}")
        elif options.share:
            print("The share link could not be made (no network?); the page is served without it.")
        if options.password_file is None:
            print(f"Password: {password}")
        print("Anyone with a link or the password controls Safelight on this machine. Ctrl-C ends it.", flush=True)
    if options.open_browser:
        # without the key: other users of this machine can read a browser's command line. It may take its time to start.
        threading.Thread(target=webbrowser.open, args=(here,), daemon=True).start()


def _close(page: Blocks, jobs: Jobs) -> int:
    if jobs.active_run_id is not None:
        print("Stopping: the run finishes its step and is saved.", flush=True)
    in_time = jobs.shutdown(timeout_seconds=SHUTDOWN_SECONDS)
    page.close(verbose=False)
    if not in_time:
        sys.stderr.write("safelight: the run did not end in time; it goes on from its last checkpoint with Continue.\n")
    return 0 if in_time else 1
