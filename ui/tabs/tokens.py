"""The tokens part of the Settings tab: where each hub's token comes from, whose it is, and a field to type one.

A typed token passes through one function of this file into memory. It is never a value of a component, never in an
answer, and the script empties its field before it sends it.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from security.policy import Service
from security.tokens import TYPED, TokenState
from ui.messages import ShownError, text_of
from ui.services import Services
from ui.widgets import drawn_view

LINKS = {Service.HUGGING_FACE: "huggingface.co/settings/tokens", Service.CIVITAI: "civitai.com/user/account"}
"""Where a token is made."""
NEEDED_FOR = {
    Service.HUGGING_FACE: "Needed for models whose owner asks you to accept terms, and for private ones. Reading is enough.",
    Service.CIVITAI: "Needed for most downloads from Civitai.",
}


def tokens_tab(services: Services) -> gr.HTML:
    """Draws the part."""

    def tokens_state(_argument: Any = None) -> dict[str, Any]:
        return {
            "services": [_row(service, services.tokens.state(service)) for service in Service],
            "keyring": services.tokens.has_keyring,
            "note": _note(services),
        }

    def save_token(argument: Any = None) -> dict[str, Any]:
        service = _service(argument)
        keep = isinstance(argument, dict) and argument.get("keep") is True
        state = services.tokens.save(service, text_of(argument, "token"), services.network, keep=keep)
        return {"text": _saved(service, state, keep)}

    def check_token(argument: Any = None) -> dict[str, Any]:
        service = _service(argument)
        state = services.tokens.check(service, services.network)
        if not state.source:
            raise ShownError(f"There is no {service.value} token to check.")
        if not state.user:
            raise ShownError(state.warning)
        return {"text": f"{service.value} knows this token: {state.user}, {state.role}."}

    def forget_token(argument: Any = None) -> dict[str, Any]:
        service = _service(argument)
        services.tokens.forget(service)
        left = services.tokens.state(service)
        rest = f" Still there: {left.source}. Remove it there too." if left.source else ""
        return {"text": f"The {service.value} token is forgotten.{rest}"}

    return drawn_view("tokens", functions=[tokens_state, save_token, check_token, forget_token])


def _service(argument: Any) -> Service:
    name = text_of(argument, "service")
    try:
        return Service(name)
    except ValueError:
        raise ShownError("The page named a service that there is not. Reload the page.") from None


def _row(service: Service, state: TokenState) -> dict[str, str]:
    return {
        "name": service.value,
        "source": state.source,
        "user": state.user,
        "role": state.role,
        "warning": state.warning,
        "link": LINKS[service],
        "needed": NEEDED_FOR[service],
    }


def _saved(service: Service, state: TokenState, keep: bool) -> str:
    where = "in this machine's keyring" if keep else "in memory until Safelight ends"
    used = "" if keep or state.source == TYPED else f" But {state.source} comes first: remove it there to use this one."
    whose = f" It belongs to {state.user}." if state.user and not used else ""
    return f"The {service.value} token is kept {where}.{whose}{used}"


def _note(services: Services) -> str:
    """What to know before typing a token while others can reach the page."""
    if not services.access.open_to_others:
        return ""
    way = (
        "What you type travels readable through your network, because the page has no encryption of its own"
        if services.access.listen and not services.access.share
        else "What you type travels encrypted to the share server, whose operator could read it"
        if services.access.share
        else "What you type is as safe as the proxy in front of this page"
    )
    return (
        "This page is open to others. Everyone who is logged in counts as its owner: they can download with these tokens, "
        f"replace and forget them; nobody can read them. {way}; to avoid that, start Safelight with HF_TOKEN or "
        "CIVITAI_TOKEN in its environment."
    )
