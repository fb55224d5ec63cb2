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
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from security.environment import closed_environment
from security.errors import SafelightError
from security.login import Credentials, generate_password, read_password_file
from security.output import show_to_owner
from security.policy import SHARE_HOURS
from security.privileges import refuse_root_sharing, root_warning
from security.sharing import Sharing
from trainer.jobs import Jobs
from trainer.logs import configure_logging
from trainer.workspace import Workspace
from ui.endpoints import Endpoints
from ui.signals import ending_signals

if TYPE_CHECKING:
    from gradio import Blocks

    from ui.entrance import Entrance
    from ui.services import Services

logger = logging.getLogger("safelight.server")

SHUTDOWN_SECONDS = 17.0
"""For the running step and its saving; the rest of the promised twenty seconds is for closing down."""
MAX_UPLOAD_FILE_SIZE = "512mb"


class PortTaken(SafelightError):
    """Another program listens on the port that the page should use."""


@dataclass(frozen=True)
class ServeOptions:
    """What the command line can say about serving, checked by it. `port` 0 takes any free one."""

    port: int = 7860
    listen: bool = False
    share: bool = False
    workspace: Path | None = None
    open_browser: bool = True
    password_file: Path | None = None
    host_names: tuple[str, ...] = ()
    share_hours: float = SHARE_HOURS
    allow_root: bool = False
    endpoints: Endpoints = field(default_factory=Endpoints)

    @property
    def host(self) -> str:
        return "0.0.0.0" if self.listen else "127.0.0.1"  # noqa: S104 - asked for, and behind a password


def serve(options: ServeOptions) -> int:
    """Serves the page until SIGINT, SIGTERM or SIGHUP; then the run finishes its step and is saved. Returns the exit code."""
    ended = threading.Event()
    _on_signals(ended)
    try:
        workspace = Workspace.open(options.workspace)
        refuse_root_sharing(share=options.share, allow_root=options.allow_root)
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
    entrance = _entrance(options, port, credentials) if credentials else None
    services = _services(options, workspace, jobs, entrance)
    page = _launch(options, port, services)
    _tell(options, f"http://127.0.0.1:{port}", password, entrance)
    while not ended.wait(0.5):
        if entrance is not None:
            entrance.tick()
    return _close(page, services)


def _on_signals(ended: threading.Event) -> None:
    def end(_number: int, _frame: FrameType | None) -> None:
        if ended.is_set():
            sys.stderr.write("Still saving; the run is kept up to its last checkpoint in any case.\n")
        ended.set()

    for number in ending_signals():
        signal.signal(number, end)


def _credentials(options: ServeOptions) -> tuple[str, Credentials | None]:
    """The password of a page that others can reach. Raises RefusedConfig for a password file that is no good."""
    if not (options.listen or options.share or options.host_names or options.password_file):
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


def _entrance(options: ServeOptions, port: int, credentials: Credentials) -> Entrance:
    from ui.entrance import Entrance, Reach

    return Entrance(
        credentials,
        Reach(port, options.listen, options.host_names),
        tell=_say,
        sharing=Sharing(options.share_hours) if options.share else None,
        password_is_chosen=options.password_file is not None,
    )


def _services(options: ServeOptions, workspace: Workspace, jobs: Jobs, entrance: Entrance | None) -> Services:
    from security.tokens import TokenStore
    from trainer.dataset.studio import Studio
    from trainer.models.downloads import Downloads
    from ui.machine import Machine
    from ui.services import IMPORT_FOLDER, Access, Library, Services

    access = Access(options.listen, options.share, options.host_names, entrance)
    if access.open_to_others:
        (workspace.path / IMPORT_FOLDER).mkdir(exist_ok=True)
    machine, library = Machine(workspace.path), Library(workspace)
    tokens, network = TokenStore(), options.endpoints.network()
    downloads = Downloads(workspace, network, tokens, fault=options.endpoints.fault(os.environ))
    return Services(workspace, jobs, machine, access, library, tokens, network, downloads, Studio(workspace))


def _launch(options: ServeOptions, port: int, services: Services) -> Blocks:
    """Builds and starts the page, and opens its share link if there is to be one."""
    from starlette.middleware import Middleware

    from security.patience import limit_connections
    from security.web import Door, DoorSettings
    from ui.app import build_app
    from ui.downloads import routes
    from ui.looks import theme
    from ui.studio.importing import UPLOAD_PATH
    from ui.views import FILES_PREFIX
    from ui.widgets import ASSETS_DIR, page_head

    entrance = services.access.entrance
    door = DoorSettings(
        credentials=entrance.credentials if entrance else None,
        listens=options.listen,
        sharing=entrance.sharing if entrance else None,
        host_names=options.host_names,
        file_prefixes=(f"/{FILES_PREFIX}/",),
        upload_path=UPLOAD_PATH,
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
    limit_connections(page.server.config)
    if entrance is not None and shared_url:
        entrance.begin_sharing(shared_url, lambda: _close_tunnel(port))
    return page


def _close_tunnel(port: int) -> None:
    """Ends the program that connects Gradio's share server with the page; the page itself goes on."""
    from gradio.tunneling import CURRENT_TUNNELS

    for tunnel in CURRENT_TUNNELS:
        if tunnel.local_port == port:
            tunnel.kill()


def _say(text: str) -> None:
    """Writes to the terminal, and nowhere else: here alone the key and the password are shown."""
    show_to_owner(text)


def _tell(options: ServeOptions, here: str, password: str, entrance: Entrance | None) -> None:
    """Says on the terminal where the page is and how to get in."""
    _say(f"Safelight is ready: {entrance.credentials.key_link(here) if entrance else here}")
    if entrance is not None:
        if options.share and not (entrance.sharing and entrance.sharing.url):
            _say("The share link could not be made (no network?); the page is served without it.")
        entrance.announce("" if options.password_file else password)
        _say("Anyone with a link or the password controls Safelight on this machine. Ctrl-C ends it.")
    if warning := root_warning():
        _say(f"Note: {warning}")
    if options.open_browser:
        # without the key: other users of this machine can read a browser's command line. It may take its time to start.
        threading.Thread(target=webbrowser.open, args=(here,), daemon=True).start()


def _close(page: Blocks, services: Services) -> int:
    jobs = services.jobs
    if jobs.active_run_id is not None:
        print("Stopping: the run finishes its step and is saved.", flush=True)
    services.downloads.shutdown(timeout_seconds=0)  # what has come is kept, and goes on with Continue
    services.studio.tasks.shutdown(timeout_seconds=1)  # what they have done is kept and can be undone
    in_time = jobs.shutdown(timeout_seconds=SHUTDOWN_SECONDS)
    page.close(verbose=False)
    if not in_time:
        sys.stderr.write("safelight: the run did not end in time; it goes on from its last checkpoint with Continue.\n")
    return 0 if in_time else 1
