"""What the user is told when something goes wrong: known errors as they are, unknown ones as an id that is in the log."""

from __future__ import annotations

import functools
import html
import logging
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from security.errors import SafelightError
from security.redaction import redact, visible_lines

logger = logging.getLogger("safelight.ui")


class ShownError(SafelightError):
    """An error whose text is fit for the page."""


@contextmanager
def known_errors() -> Iterator[None]:
    """Turns everything unforeseen into a ShownError with an id; the details go to the log only.

    The one broad `except` of the page: an error that reaches Gradio shows a bare red pill and no words.
    """
    try:
        yield
    except (SafelightError, gr.Error):
        raise
    except Exception:
        error_id = secrets.token_hex(3).upper()
        logger.exception("a handler of the page failed (id %s)", error_id)
        raise ShownError(f"Something went wrong (id {error_id}). logs/safelight.log has the details.") from None


@contextmanager
def shown_to_the_user() -> Iterator[None]:
    """For event handlers: errors become toasts. Also usable as a decorator."""
    try:
        with known_errors():
            yield
    except SafelightError as error:
        # A toast draws its text as (cleaned) HTML, so a file name with angle brackets in it has to be escaped.
        raise gr.Error(html.escape(redact(visible_lines(str(error)))), print_exception=False) from None


def answered(function: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    """For functions that the page's scripts call: errors become `{"error": text}`; the script shows them as plain text.

    Gradio calls such functions with exactly one argument, and finds it by position.
    """

    @functools.wraps(function)
    def answer(argument: Any = None) -> dict[str, Any]:
        try:
            with known_errors():
                return sendable(function(argument))
        except SafelightError as error:
            return {"error": redact(visible_lines(str(error)))}

    # gradio would read the wrapped signature and look for special arguments there
    del answer.__wrapped__
    return answer


def sendable(value: Any) -> Any:
    """The value with what UTF-8 has no form for written out: a file name of this machine may hold it, JSON may not."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {key: sendable(part) for key, part in value.items()}
    return [sendable(part) for part in value] if isinstance(value, list) else value


def outcome(work: Callable[[], str]) -> dict[str, str]:
    """For handlers whose result stays on the page: `work` returns what was done; an error is told in its place."""
    try:
        with known_errors():
            return {"text": redact(visible_lines(work())), "tone": "good"}
    except SafelightError as error:
        return {"text": redact(visible_lines(str(error))), "tone": "bad"}


def text_of(argument: Any, key: str) -> str:
    """A string out of a script's argument. Everything that comes from a browser may be anything. Raises ShownError."""
    value = argument.get(key) if isinstance(argument, dict) else None
    if not isinstance(value, str) or not value or len(value) > 1024:
        raise ShownError(f"The page sent no {key}. Reload the page.")
    return value


def number_of(argument: Any, key: str) -> int:
    """A whole number out of a script's argument, 0 when it has none."""
    value = argument.get(key) if isinstance(argument, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0
