"""Sends a folder to Hugging Face as a dataset: in a child process of its own, with a token that it gets on its stdin.

The child has an environment without anything of ours (upload_child.py), so that huggingface_hub finds no other token and
no other address than the ones it is given. Nothing is published before everything has arrived: one commit, or none.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from security.configs import parse_json
from security.errors import Cancelled, FailedDownload, NeedsLogin, RefusedConfig, RefusedName, SafelightError
from security.net import Network
from security.policy import HOST_RULES, Service
from security.processes import converse
from security.redaction import redact, visible
from security.secrets import Secret
from security.token_rights import TOKENS_PAGE

IDLE_SECONDS = 900.0
"""Twenty large pictures over a slow line take minutes; after this long without a word the child is taken for dead."""
MAX_TOLD = 300
CHILD_SETTINGS: dict[str, str] = {
    "HF_HUB_DISABLE_XET": "1",  # its uploader is compiled code with connections of its own, beyond our check of hosts
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "DO_NOT_TRACK": "1",
}
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


@dataclass(frozen=True, slots=True)
class UploadOrder:
    """Where a folder goes. `replace`: a repository that is there may get it as its new version."""

    repo: str
    private: bool
    replace: bool
    message: str

    def __post_init__(self) -> None:
        """Raises RefusedName for what cannot be a repository's name."""
        bad = ("..", "--", ".git")
        if not _REPO.fullmatch(self.repo) or any(sign in self.repo for sign in bad) or self.repo.endswith((".", "-")):
            raise RefusedName(
                f"{self.repo[:100]!r} is no name for a dataset on Hugging Face. Give OWNER/NAME, your user name or an "
                "organisation of yours first, with letters, digits, dots, dashes and underscores."
            )


@dataclass(frozen=True, slots=True)
class Uploaded:
    """What came of it: the dataset's page, and the commit (40 hexadecimal digits)."""

    page: str
    commit: str


def upload_endpoint(network: Network) -> str:
    """Where uploads go: the hub itself, or the mirror that the user named and that may have the tokens.

    Raises RefusedConfig while there is a mirror that may not have them.
    """
    mirror = network.mirrors.get(Service.HUGGING_FACE)
    if mirror is None:
        return f"https://{HOST_RULES[Service.HUGGING_FACE].api}"
    if not network.sends_tokens_to_mirrors:
        raise RefusedConfig(
            f"Safelight was started with the mirror {mirror}, which gets no tokens, and nothing is published without "
            "one. Start without the mirror, or with --send-tokens-to-mirror if you trust it."
        )
    return mirror.rstrip("/")


def upload_folder(
    folder: Path,
    order: UploadOrder,
    token: Secret,
    endpoint: str,
    *,
    progress: Callable[[int, int], None],
    cancelled: Callable[[], bool],
) -> Uploaded:
    """Publishes the files of a folder as a dataset and returns its page. `progress` gets files sent and files in all.

    Raises NeedsLogin for a token that may not do it, Cancelled, and FailedDownload for everything else that went wrong;
    then nothing was published.
    """
    result: dict[str, Any] = {}

    def hear(line: str) -> None:
        told = _told(line)
        if "sent" in told and "total" in told:
            progress(int(told["sent"]), int(told["total"]))
        else:
            result.update(told)

    spoken = json.dumps(
        {
            "token": token.reveal(),
            "endpoint": endpoint,
            "folder": str(folder),
            "repo": order.repo,
            "private": order.private,
            "replace": order.replace,
            "message": order.message,
        }
    )
    child = Path(__file__).resolve().with_name("upload_child.py")
    with tempfile.TemporaryDirectory(prefix="safelight-upload-") as home:
        places = dict.fromkeys(("HOME", "HF_HOME", "TMPDIR", "TEMP", "TMP", "USERPROFILE"), home)
        try:
            done = converse(
                [sys.executable, "-I", "-B", str(child)],
                spoken=spoken.encode(),
                hear=hear,
                cancelled=cancelled,
                idle_seconds=IDLE_SECONDS,
                env={**CHILD_SETTINGS, **places},
                folder=Path(home),
            )
        except Cancelled:
            raise Cancelled("Cancelled: nothing was published.") from None
    if "done" in result:
        page, commit = str(result["done"].get("page", "")), str(result["done"].get("commit", ""))
        return Uploaded(page, visible(commit)[:40])
    raise _fault(
        result or {"fault": f"the program that uploads ended with {done.returncode}: {done.stderr[-200:]}"}, order
    )


def _told(line: str) -> Mapping[str, Any]:
    try:
        return parse_json(line, "What the uploading program said")
    except RefusedConfig:
        return {"fault": f"the program that uploads said {line[:100]!r}"}


def _fault(told: Mapping[str, Any], order: UploadOrder) -> SafelightError:
    """The error for what the child told. Its words may come from the hub, so they are shown as such and cut."""
    said = redact(visible(str(told.get("fault", ""))))[:MAX_TOLD]
    if told.get("refused"):
        return FailedDownload(f"Nothing was published. {said}")
    status = told.get("status")
    if status == 401:
        return NeedsLogin(
            f"Nothing was published: Hugging Face does not accept this token. Copy it again, or make one at {TOKENS_PAGE}.",
            f"https://{TOKENS_PAGE}",
        )
    if status == 403:
        return NeedsLogin(
            f"Nothing was published: this token may not write to {order.repo}. Make a fine-grained one with write access "
            f"to it at {TOKENS_PAGE}. Hugging Face said: {said}",
            f"https://{TOKENS_PAGE}",
        )
    if status == 412:
        return FailedDownload(
            f"Nothing was published: somebody changed {order.repo} meanwhile. Look at it, then try again."
        )
    if isinstance(status, int) and status >= 400:
        return FailedDownload(
            f"Nothing was published: Hugging Face answered {status} and said {said!r}. Try again later."
        )
    return FailedDownload(f"Nothing was published: {said}. Check the connection, then try again.")
