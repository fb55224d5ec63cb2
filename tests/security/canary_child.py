"""Drives tokens through every way in which programs lose them. Run as a program of its own by test_canaries.py.

Standard input has JSON, a list of orders: which layers of the redactor to put in place, the tokens by path and shape,
and a folder. Each order is carried out in a process of its own, forked off before any layer is in place.
"""

from __future__ import annotations

import asyncio
import base64
import ctypes
import html
import http.server
import json
import logging
import multiprocessing
import os
import pickle
import pprint
import subprocess
import sys
import threading
import time
import traceback
import urllib.parse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests

from security import output
from security.errors import SafelightError
from security.redaction import register
from security.secrets import Secret
from trainer import events
from trainer.config import files
from trainer.config.schema import TrainConfig
from trainer.logs import configure_logging
from trainer.metadata import refuse_secret_entries
from trainer.runs import RunFolder
from trainer.workspace import Workspace
from ui import messages

Drive = Callable[[str], object]
logger = logging.getLogger("safelight.canary")
library_logger = logging.getLogger("some.library")
workspace: Workspace
server: http.server.ThreadingHTTPServer


class Server(http.server.BaseHTTPRequestHandler):
    """Answers as a hub in a bad mood; its own log goes to standard error, as http.server has it."""

    def do_GET(self) -> None:
        status = int(self.path.split("/")[1].split("?")[0])
        if status == 408:
            time.sleep(0.2)
        self.send_response(status)
        self.send_header("Location", f"/302?{urllib.parse.urlsplit(self.path).query}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_request(self, code: object = "-", size: object = "-") -> None:
        if self.path.startswith("/203"):
            super().log_request(code, size)  # type: ignore[arg-type]


def address(status: int, token: str) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/{status}?token={urllib.parse.quote(token, safe='')}"


def caught(work: Callable[[], object]) -> None:
    """As libraries do it: the traceback is printed, and the program goes on."""
    try:
        work()
    except Exception:  # noqa: BLE001 - whatever the path raises
        traceback.print_exc()


def in_pieces(write: Callable[[bytes], object], token: str, pause: float) -> None:
    data = f"half {token} half\n".encode()
    for start in range(0, len(data), 7):
        write(data[start : start + 7])
        time.sleep(pause)


def in_thread(token: str) -> None:
    def work() -> None:
        raise ValueError(f"thread with {token}")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def in_asyncio(token: str) -> None:
    async def forgotten() -> None:
        raise ValueError(f"task with {token}")

    async def main() -> None:
        task = asyncio.create_task(forgotten())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        del task

    asyncio.run(main())


def in_del(token: str) -> None:
    class Unlucky:
        def __del__(self) -> None:
            raise ValueError(f"while removing with {token}")

    Unlucky()


def with_locals(token: str) -> None:
    try:
        raise ValueError("locals are shown")
    except ValueError as error:
        lines = traceback.TracebackException.from_exception(error, capture_locals=True).format()
        sys.stderr.write("".join(lines))


def logged_exception(token: str) -> None:
    try:
        try:
            raise KeyError(token)
        except KeyError as error:
            raise RuntimeError(f"using {token}") from error
    except RuntimeError:
        logger.exception("a request failed")


def child(token: str, program: str) -> None:
    subprocess.run([sys.executable, "-I", "-S", "-c", program], input=token.encode(), check=False)


def libc(token: str) -> None:
    library = ctypes.CDLL(None)
    library.puts(f"from C {token}".encode())
    library.dprintf(2, b"from C %s\n", token.encode())
    library.fflush(None)


def c_pieces(token: str) -> None:
    library = ctypes.CDLL(None)
    in_pieces(lambda piece: library.write(1, piece, len(piece)), token, 0.0)


def write_config(token: str) -> None:
    config = TrainConfig.model_validate({"name": "canary", "sample": {"prompts": [f"a cat, {token}"]}})
    RunFolder.create(workspace, config)


def write_metadata(token: str) -> None:
    entries = {"ss_tag_frequency": json.dumps({token: 1})}
    refuse_secret_entries(entries, "canary.safetensors")
    (workspace.runs_dir / "canary.json").write_text(json.dumps(entries))


def run_folder() -> RunFolder:
    folder = RunFolder(workspace.runs_dir / "canary-events")
    folder.path.mkdir(exist_ok=True)
    return folder


def keep_answer(text: str) -> None:
    with (workspace.cache_dir / "answers").open("a") as file:
        file.write(text + "\n")


def answered_error(token: str) -> None:
    @messages.answered
    def handler(_argument: object) -> dict[str, object]:
        raise SafelightError(f"the hub refused {token}")

    keep_answer(json.dumps(handler(None)))


def toast(token: str) -> None:
    try:
        with messages.shown_to_the_user():
            raise SafelightError(f"the hub refused {token}")
    except Exception as error:  # noqa: BLE001 - gr.Error, without importing gradio here
        keep_answer(html.unescape(str(error)))


def outcome(token: str) -> None:
    def fail() -> str:
        raise SafelightError(f"the hub refused {token}")

    keep_answer(json.dumps(messages.outcome(fail)))


def unforeseen(token: str) -> None:
    def fail() -> str:
        raise KeyError(token)

    keep_answer(json.dumps(messages.outcome(fail)))


READ = "import sys; t = sys.stdin.read()\n"
DESCRIPTORS, TEXT, RECORDS, HOOKS, WRITERS, PAGE = (
    "descriptors",
    "text streams",
    "log records",
    "hooks",
    "writers",
    "page",
)
PATHS: dict[str, tuple[Drive, tuple[str, ...]]] = {
    "print": (lambda t: print("token", t), (TEXT, DESCRIPTORS)),
    "print of a dict": (lambda t: print({"Authorization": f"Bearer {t}"}), (TEXT, DESCRIPTORS)),
    "pprint": (lambda t: pprint.pprint({"headers": {"x": t}}), (TEXT, DESCRIPTORS)),
    "print of JSON": (lambda t: print(json.dumps({"value": t})), (TEXT, DESCRIPTORS)),
    "print in base64": (lambda t: print(base64.b64encode(f"user:{t}".encode()).decode()), (TEXT, DESCRIPTORS)),
    "print percent-encoded": (lambda t: print(urllib.parse.urlencode({"a": t})), (TEXT, DESCRIPTORS)),
    "print without its ends": (lambda t: print(t[1:-1]), (TEXT, DESCRIPTORS)),
    "print to sys.__stderr__": (lambda t: print(t, file=sys.__stderr__), (DESCRIPTORS,)),
    "sys.stdout.buffer": (lambda t: sys.stdout.buffer.write(t.encode() + b"\n"), (DESCRIPTORS,)),
    "split prints": (lambda t: [print(c, end="", flush=True) for c in (t[:5], t[5:9], t[9:], "\n")], (DESCRIPTORS,)),
    "os.write(1)": (lambda t: os.write(1, t.encode() + b"\n"), (DESCRIPTORS,)),
    "os.write(2)": (lambda t: os.write(2, t.encode() + b"\n"), (DESCRIPTORS,)),
    "split os.write": (lambda t: in_pieces(lambda piece: os.write(2, piece), t, 0.0), (DESCRIPTORS,)),
    "split os.write with pauses": (lambda t: in_pieces(lambda piece: os.write(2, piece), t, 0.04), (DESCRIPTORS,)),
    "C library": (libc, (DESCRIPTORS,)),
    "split writes of the C library": (c_pieces, (DESCRIPTORS,)),
    "child prints": (lambda t: child(t, READ + "print(t)"), (DESCRIPTORS,)),
    "child traceback": (lambda t: child(t, READ + "raise ValueError(t)"), (DESCRIPTORS,)),
    "forked child": (lambda t: _forked(t), (DESCRIPTORS,)),
    "thread exception": (in_thread, (HOOKS, TEXT, DESCRIPTORS)),
    "asyncio exception": (in_asyncio, (RECORDS,)),
    "unraisable exception": (in_del, (HOOKS, TEXT, DESCRIPTORS)),
    "warning": (lambda t: warnings.warn(f"deprecated {t}", stacklevel=1), (HOOKS, TEXT, DESCRIPTORS)),
    "printed traceback": (lambda t: caught(lambda: _raise(ValueError(t))), (TEXT, DESCRIPTORS)),
    "traceback with locals": (with_locals, (TEXT, DESCRIPTORS)),
    "failed subprocess": (lambda t: caught(lambda: _called(t)), (TEXT, DESCRIPTORS)),
    "encoding error": (lambda t: caught(lambda: _encode(t)), (TEXT, DESCRIPTORS)),
    "bad header": (
        lambda t: caught(
            lambda: requests.get(address(200, "x"), headers={"Authorization": f"Bearer {t}\n"}, timeout=9)
        ),
        (TEXT, DESCRIPTORS),
    ),
    "401": (lambda t: caught(lambda: _get(401, t)), (TEXT, DESCRIPTORS)),
    "404": (lambda t: caught(lambda: _get(404, t)), (TEXT, DESCRIPTORS)),
    "timeout": (lambda t: caught(lambda: _time_out(t)), (TEXT, DESCRIPTORS)),
    "redirect": (lambda t: caught(lambda: _get(302, t)), (TEXT, DESCRIPTORS)),
    "log of an HTTP server": (lambda t: requests.get(address(203, t), timeout=9), (TEXT, DESCRIPTORS)),
    "refused connection": (
        lambda t: caught(lambda: requests.get(f"http://127.0.0.1:1/?x={urllib.parse.quote(t, safe='')}", timeout=9)),
        (TEXT, DESCRIPTORS),
    ),
    "log message": (lambda t: logger.warning(f"token {t}"), (RECORDS,)),
    "log argument": (lambda t: logger.warning("token %s", t), (RECORDS,)),
    "log argument in pieces": (lambda t: logger.warning("token %s%s", t[:7], t[7:]), (RECORDS,)),
    "log of an error": (lambda t: logger.error("failed: %s", ValueError(t)), (RECORDS,)),
    "log with exc_info": (logged_exception, (RECORDS,)),
    "log of a library at DEBUG": (lambda t: library_logger.debug("GET %s", address(200, t)), (RECORDS,)),
    "log of urllib3 at DEBUG": (lambda t: requests.get(address(200, t), timeout=9), (RECORDS,)),
    "settings of a run": (lambda t: caught(lambda: write_config(t)), (WRITERS,)),
    "metadata of a LoRA": (lambda t: caught(lambda: write_metadata(t)), (WRITERS,)),
    "event: an error": (lambda t: run_folder().append(events.Failed(f"refused {t}", 1)), (WRITERS,)),
    "event: a prompt": (
        lambda t: caught(lambda: run_folder().append(events.SampleSaved(1, 0, f"a cat {t}", 1, "a.png"))),
        (WRITERS,),
    ),
    "answer to a script": (answered_error, (PAGE,)),
    "gr.Error": (toast, (PAGE,)),
    "outcome on the page": (outcome, (PAGE,)),
    "unforeseen error of a handler": (unforeseen, (RECORDS,)),
}
"""Every path with the layers that mask it by themselves. A path that ends in a file has none of the streams' layers."""

HARMLESS: dict[str, Drive] = {
    "Secret in a format": lambda t: print(Secret(t, "x"), f"{Secret(t, 'x')!r:>30}", [Secret(t, "x")]),
    "Secret pickled": lambda t: caught(lambda: pickle.dumps(Secret(t, "x"))),
    "Secret in JSON": lambda t: caught(lambda: json.dumps({"x": Secret(t, "x")})),
    "Secret refused": lambda t: caught(lambda: Secret(t + "\n", "x")),
}
"""Paths that give nothing away even without the redactor."""


def _raise(error: Exception) -> None:
    raise error


def _encode(token: str) -> None:
    try:
        f"é{token}".encode("ascii")
    except UnicodeEncodeError as error:
        raise RuntimeError(repr(error.args)) from error


def _called(token: str) -> None:
    raise subprocess.CalledProcessError(128, ["git", "clone", f"https://{token}@example.com/x"])


def _get(status: int, token: str) -> None:
    requests.get(address(status, token), timeout=9).raise_for_status()


def _time_out(token: str) -> None:
    try:
        requests.get(address(408, token), timeout=0.05)
    except requests.Timeout as error:
        assert error.request is not None
        raise RuntimeError(f"no answer from {error.request.url}") from error


def _forked(token: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of forking with threads
        process = multiprocessing.get_context("fork").Process(target=os.write, args=(1, f"fork {token}\n".encode()))
        process.start()
    process.join()


def put_in_place(layers: list[str]) -> None:
    """Installs these layers only; all of them as the product does it."""
    if set(layers) >= set(output.LAYERS):
        output.install()
    else:
        for name in layers:
            if name in output.LAYERS:
                output.LAYERS[name]()
    if WRITERS not in layers:
        for module in (files, sys.modules["trainer.runs"], sys.modules["trainer.metadata"]):
            module.refuse_secrets = lambda text, where: None  # type: ignore[attr-defined]
        sys.modules["trainer.runs"].redact = lambda text: text  # type: ignore[attr-defined]
    if PAGE not in layers:
        messages.redact = lambda text: text


def log_everything(layers: list[str], folder: Path) -> None:
    """The product's log file; and one as a library sets it up, with a formatter of its own."""
    root = logging.getLogger()
    if "log file" in layers:
        configure_logging(workspace)
    library = logging.FileHandler(folder / "library.log")
    library.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    root.addHandler(library)
    root.setLevel(logging.DEBUG)


def main() -> None:
    """Carries out the orders one after the other; prints their exit codes as JSON."""
    orders = json.load(sys.stdin)
    codes = []
    for order in orders:
        sys.stdout.flush()
        process_id = os.fork()
        if process_id == 0:
            carry_out(order)
            return  # and ends as a program does: flushing, running what waits for the end
        codes.append(os.waitstatus_to_exitcode(os.waitpid(process_id, 0)[1]))
    print(json.dumps(codes))


def carry_out(order: dict[str, Any]) -> None:
    global workspace, server
    folder = Path(order["folder"])
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.environ["TMPDIR"] = str(folder / "tmp")
    workspace = Workspace.open(folder / "workspace")
    put_in_place(order["layers"])
    for shapes in order["tokens"].values():
        for token in shapes.values():
            register(token, "canary")
    log_everything(order["layers"], folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        for path, shapes in order["tokens"].items():
            drive = ENDINGS.get(path) or HARMLESS.get(path) or PATHS[path][0]
            if path in ENDINGS:
                snapshot(folder / "processes.bin")
            for token in shapes.values():
                drive(token)
                sys.stdout.flush()
    snapshot(folder / "processes.bin")


def snapshot(target: Path) -> None:
    """What the system shows of this process and of a child to every program of this user."""
    child_process = subprocess.Popen(["sleep", "30"])
    data = b""
    for process_id in (os.getpid(), child_process.pid):
        data += Path(f"/proc/{process_id}/cmdline").read_bytes() + Path(f"/proc/{process_id}/environ").read_bytes()
    child_process.kill()
    child_process.wait()
    target.write_bytes(data)


def _exit_at_once(token: str) -> None:
    print("token", token)
    output.drain()
    os._exit(3)


ENDINGS: dict[str, Drive] = {
    "uncaught exception": lambda t: _raise(ValueError(t)),
    "sys.exit with a text": lambda t: sys.exit(f"cannot use {t}"),
    "os._exit": _exit_at_once,
    "killed by itself": lambda t: (print("token", t, flush=True), output.drain(), os.abort()),
}
"""Ways for the process to end; each needs one of its own."""

if __name__ == "__main__":
    main()
