"""What a hub means by an error status, in plain sentences. No sentence holds a query or a token."""

from __future__ import annotations

import email.utils
import re
import time
from http.client import HTTPMessage

from security.errors import FailedDownload, Interrupted, NeedsLogin
from security.policy import HOST_RULES, Service
from security.urls import SafeUrl

TOKEN_PAGES = {
    Service.HUGGING_FACE: "https://huggingface.co/settings/tokens",
    Service.CIVITAI: "https://civitai.com/user/account",
}
"""Where a user makes a token."""
_REPOSITORY = re.compile(r"/(?:api/models/)?([\w.-]{1,96}/[\w.-]{1,96})(?:/|$)")
_MISSING = {
    "RepoNotFound": "model",
    "RevisionNotFound": "version of this model",
    "EntryNotFound": "file in this model",
}


def status_error(status: int, headers: HTTPMessage, url: SafeUrl, *, at_hub: bool, had_token: bool) -> FailedDownload:
    """The error to raise for a status that is neither success nor redirect.

    `at_hub`: the hub itself, or its mirror, answered, not the storage behind it.
    Interrupted for what may pass (429, 5xx, a signed address that ran out), NeedsLogin for 401 and 403 of the hub.
    """
    hub = url.service
    code = headers.get("X-Error-Code", "")
    if status in (408, 425, 429) or status >= 500:
        return _busy(status, headers, url)
    if not at_hub and status in (400, 401, 403, 404, 410):
        # Signed addresses run out after minutes to hours; storage answers then with any of these.
        return Interrupted(f"{url.host} no longer gives out the file (status {status}); its address may have run out.")
    if "cf-mitigated" in headers:  # Cloudflare stands in front of Civitai; a token would not help
        return FailedDownload(f"{url.host} took this program for a robot (status {status}). Try again later.")
    if status in (401, 403):
        return login_wanted(url, status, code, had_token=had_token)
    if status in (404, 410):
        return FailedDownload(f"{hub} has no such {_MISSING.get(code, 'file or model')}: {url.shown}. Check the name.")
    if status == 451:
        return FailedDownload(f"{hub} does not give out {url.shown} where you are, for legal reasons.")
    return FailedDownload(f"{url.host} answered with status {status} for {url.shown}.")


def _busy(status: int, headers: HTTPMessage, url: SafeUrl) -> Interrupted:
    wait = retry_after(headers.get("Retry-After", ""))
    if status == 429:
        when = "in a while" if wait is None or wait > 24 * 3600 else f"in {wait:.0f} seconds"
        return Interrupted(f"{url.service} has had too many requests from here. Try again {when}.", wait)
    return Interrupted(f"{url.host} has a fault of its own (status {status}). Try again later.", wait)


def login_wanted(url: SafeUrl, status: int = 401, code: str = "", *, had_token: bool) -> NeedsLogin:
    """The error for 401 and 403 from the hub itself, and for a redirect to its login page. `code`: X-Error-Code."""
    hub, tokens = url.service, TOKEN_PAGES[url.service]
    match = _REPOSITORY.match(url.path) if hub is Service.HUGGING_FACE else None
    name = match[1] if match else ""
    page = f"https://{HOST_RULES[hub].api}/{name}" if name else tokens
    shown = name or url.shown
    if code == "GatedRepo":
        then = "" if had_token else f", then make a token at {tokens} and give it in Settings"
        return NeedsLogin(
            f"The owner of {shown} asks you to accept terms first. Open {page} and accept them{then}.", page
        )
    if not had_token:
        maybe = (
            f"{shown} does not exist or is private" if code == "RepoNotFound" else f"{hub} wants a token for {shown}"
        )
        return NeedsLogin(f"{maybe}. Check the name, or make a token at {tokens} and give it in Settings.", tokens)
    if status == 401 and code != "RepoNotFound":
        return NeedsLogin(f"{hub} does not know your token any more. Make a new one at {tokens}.", tokens)
    return NeedsLogin(f"Your token does not open {shown}: no such model, or no permission. See {page}.", page)


def retry_after(text: str) -> float | None:
    """Seconds to wait by a Retry-After header: a number or a date. None if it says neither."""
    text = text.strip()
    if re.fullmatch("[0-9]{1,9}", text):
        return float(text)
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, moment.timestamp() - time.time())
