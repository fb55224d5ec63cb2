"""What protects this installation now, one row per protection, each looked at when it is asked for. Shown in Settings."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from security import output, sandbox
from security.policy import OFFLINE_VARIABLES
from security.privileges import root_warning
from security.versions import version_faults
from trainer.models.checks import AV_VARIABLE
from trainer.workspace import REPOSITORY_DIR
from ui.services import Services

INSTALL_MARKER = REPOSITORY_DIR / ".venv" / "safelight.json"
"""What launch.py writes at the end of an installation."""

State = Literal["on", "partly", "off", "not set"]
_YES = ("1", "true", "yes", "on")
"""What libraries take for a switched-on variable."""


@dataclass(frozen=True)
class Protection:
    """One row: what it is called, whether it works, and a sentence about it."""

    name: str
    state: State
    text: str


def protections(services: Services) -> list[Protection]:
    """The state of every protection that depends on the machine or on how the program was started."""
    rows: list[Callable[[Services], Protection]] = [
        _page,
        _training,
        _offline,
        _conversion,
        _downloads,
        _scanner,
        _output,
        _uploads,
        _versions,
        _packages,
        _user,
    ]
    return [row(services) for row in rows]


def _page(services: Services) -> Protection:
    access = services.access
    if access.entrance is None:
        return Protection("The page", "on", "It answers on this machine only, so it has no password.")
    count = len(access.entrance.credentials.logins())
    text = f"Password and link; {count} login{'' if count == 1 else 's'} open."
    if access.listen:
        return Protection("The page", "partly", f"{text} The connection in your network is not encrypted.")
    return Protection("The page", "on", text)


def _training(_services: Services) -> Protection:
    state = sandbox.probe()
    return Protection("Sandbox for training", "on" if state.active else "off", state.detail)


def _offline(_services: Services) -> Protection:
    # Gradio writes one of them anew, as "True".
    loose = [
        name
        for name, value in OFFLINE_VARIABLES.items()
        if (os.environ.get(name, "").lower() in _YES) is not (value in _YES)
    ]
    if loose:
        return Protection("Model libraries offline", "off", f"These variables were changed: {', '.join(loose)}.")
    return Protection(
        "Model libraries offline", "on", "They are told to open no connections and to run no code of a model."
    )


def _conversion(_services: Services) -> Protection:
    name = "Conversion of pickle checkpoints"
    if sandbox.probe().active:
        return Protection(
            name, "on", "Only on request, after a check of every byte, in a child process in the sandbox."
        )
    return Protection(name, "on", "Refused: there is no sandbox here to convert in.")


def _downloads(services: Services) -> Protection:
    if services.downloads.fault:
        return Protection("Downloads", "on", f"Nothing is fetched: {services.downloads.fault}")
    mirrors = services.network.mirrors
    if mirrors:
        named = "; ".join(f"{address} for {service}" for service, address in mirrors.items())
        tokens = "Your tokens go there too." if services.network.sends_tokens_to_mirrors else "Tokens do not go there."
        return Protection("Downloads", "partly", f"From mirrors that were named at the start: {named}. {tokens}")
    return Protection("Downloads", "on", "From Hugging Face and Civitai only, over checked connections.")


def _scanner(_services: Services) -> Protection:
    if os.environ.get(AV_VARIABLE, "").strip():
        return Protection("Virus scanner", "on", f"{AV_VARIABLE} is run on every downloaded file.")
    return Protection("Virus scanner", "not set", f"None is set. {AV_VARIABLE} can name one, such as clamscan.")


def _output(_services: Services) -> Protection:
    if output.is_installed():
        return Protection("Tokens in output", "on", "What is printed and logged is searched for tokens and passwords.")
    return Protection(
        "Tokens in output", "partly", "The log is searched for tokens; the terminal is not, because it was replaced."
    )


def _uploads(_services: Services) -> Protection:
    folder = Path(os.environ.get("GRADIO_TEMP_DIR", ""))
    if not folder.is_absolute() or not folder.is_dir():
        return Protection("Uploads", "off", "There is no private folder for them.")
    if os.name == "posix" and stat.S_IMODE(folder.stat().st_mode) & 0o077:
        return Protection("Uploads", "off", "Other users of this machine can read the folder they lie in.")
    return Protection("Uploads", "on", "In a folder of their own that is emptied at the end and at the next start.")


def _versions(_services: Services) -> Protection:
    faults = version_faults()
    if faults:
        return Protection("Package versions", "off", " ".join(faults))
    return Protection("Package versions", "on", "No package is older than the first version without a known hole.")


def _packages(_services: Services) -> Protection:
    name = "Package contents"
    if Path(sys.prefix).resolve() != INSTALL_MARKER.parent.resolve():
        return Protection(name, "off", "This Python was not set up by launch.py, so nothing compared its packages.")
    try:
        torch_hash = json.loads(INSTALL_MARKER.read_text(encoding="utf-8")).get("torch_hash")
    except (OSError, ValueError):
        return Protection(name, "off", "The record of the installation is missing. Start again to repair it.")
    if torch_hash != "checked":
        return Protection(name, "partly", "All hashes were compared at the installation, but torch's is not known.")
    return Protection(name, "on", "Every package had one of the hashes in requirements.txt when it was installed.")


def _user(_services: Services) -> Protection:
    warning = root_warning()
    return Protection("Rights", "partly" if warning else "on", warning or "The program runs as an ordinary user.")
