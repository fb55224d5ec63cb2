"""Who can open this page, on the Settings tab: the links, the logins and ending them, and the end of the share link."""

from __future__ import annotations

from typing import Any

import gradio as gr

from security.login import Login
from security.policy import SESSION_IDLE_SECONDS, SESSION_SECONDS
from security.privileges import root_warning
from security.web import current_login
from trainer.words import duration
from ui.entrance import Entrance, clock_time
from ui.messages import ShownError, text_of
from ui.qr import picture_code
from ui.services import Services
from ui.widgets import drawn_view


def access_tab(services: Services) -> gr.HTML:
    """Draws the part of the tab."""
    entrance = services.access.entrance

    def access_state(_argument: Any = None) -> dict[str, Any]:
        return {
            "text": _reach_text(services),
            "warning": root_warning(),
            "guarded": entrance is not None,
            "others": entrance is not None and services.access.open_to_others,
            "shared": entrance is not None and _is_shared(entrance),
            "password_stays": entrance is not None and entrance.password_is_chosen,
            "logins": [_row(login) for login in entrance.credentials.logins()] if entrance else [],
            "rules": f"A login ends after {SESSION_SECONDS // 3600} hours, or {SESSION_IDLE_SECONDS // 3600} hours without use.",
        }

    def show_ways(_argument: Any = None) -> dict[str, Any]:
        ways = _guarded(services).ways_for_others()
        if not ways:
            raise ShownError("No other machine can reach this page: there is no share link, and no network.")
        return {"ways": [{"label": way.label, "link": way.link, "code": picture_code(way.link)} for way in ways]}

    def end_login(argument: Any = None) -> dict[str, Any]:
        ended = _guarded(services).credentials.end_login(text_of(argument, "login"))
        return {"text": "That login has ended." if ended else "That login had ended already."}

    def renew(_argument: Any = None) -> dict[str, Any]:
        opened = _guarded(services)
        opened.renew(keep=current_login())
        rest = "" if opened.password_is_chosen else " The new password is in the terminal."
        return {"text": f"The link is a new one, and all other logins have ended.{rest}"}

    def stop_sharing(_argument: Any = None) -> dict[str, Any]:
        _guarded(services).stop_sharing()
        return {"text": "The share link is closed. This page goes on without it."}

    return drawn_view("access", functions=[access_state, show_ways, end_login, renew, stop_sharing])


def _guarded(services: Services) -> Entrance:
    """The way in of a page with a password. Raises ShownError for one without: there is nobody to let in or out."""
    if services.access.entrance is None:
        raise ShownError("This page has no password, so there is no link to it and nobody is logged in.")
    return services.access.entrance


def _is_shared(entrance: Entrance) -> bool:
    return entrance.sharing is not None and entrance.sharing.url != ""


def _reach_text(services: Services) -> str:
    """Who can open the page, in a sentence or two."""
    access, entrance = services.access, services.access.entrance
    told = []
    if entrance is not None and entrance.sharing is not None and _is_shared(entrance):
        until = clock_time(entrance.sharing.seconds_left)
        told.append(
            f"Shared until {until}: anyone with the link or the password can control Safelight on this machine."
        )
    elif access.share:
        told.append("The share link is closed, or could not be made.")
    if access.listen:
        told.append("Open to your network: anyone there with the link or the password can control Safelight.")
    if access.host_names:
        told.append(f"Open to whoever comes by {', '.join(access.host_names)} with the link or the password.")
    if not told and entrance is not None:
        told.append("Only this machine can open the page, with the password.")
    if not told:
        told.append(
            "Only this machine can open the page. To let others in, start with --listen or --share; they then need a "
            "password."
        )
    return " ".join(told)


def _row(login: Login) -> dict[str, Any]:
    return {
        "id": login.id,
        "place": str(login.place),
        "began": _ago(login.began_seconds_ago),
        "used": _ago(login.used_seconds_ago),
        "own": login.id == current_login(),
    }


def _ago(seconds: float) -> str:
    """In steps of a minute, so that the list is not drawn anew every second."""
    return "just now" if seconds < 60 else f"{duration(60 * (seconds // 60))} ago"
