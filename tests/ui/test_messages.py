"""Errors on their way to the user: known ones in words, unknown ones as an id, never as markup or details."""

from __future__ import annotations

import logging
from typing import Any

import gradio as gr
import pytest

from security.errors import SafelightError
from ui.messages import answered, number_of, outcome, shown_to_the_user, text_of


def test_known_errors_become_toasts_with_escaped_text() -> None:
    with pytest.raises(gr.Error) as shown, shown_to_the_user():
        raise SafelightError('There is no <img src="//elsewhere"> here.')
    assert "&lt;img" in shown.value.message
    assert "<img" not in shown.value.message
    assert shown.value.print_exception is False


def test_unknown_errors_become_an_id_and_keep_their_details_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(gr.Error) as shown, shown_to_the_user():
        raise RuntimeError("token hunter2 at /home/somebody")
    assert "hunter2" not in shown.value.message
    error_id = shown.value.message.split("id ")[1].split(")")[0]
    assert error_id in caplog.text
    assert "hunter2" in caplog.text


def test_functions_for_scripts_answer_with_the_error() -> None:
    @answered
    def refuse(_argument: Any = None) -> dict[str, Any]:
        raise SafelightError("It is <b>not</b> there.")

    @answered
    def break_down(_argument: Any = None) -> dict[str, Any]:
        raise KeyError("secret")

    assert refuse(None) == {"error": "It is <b>not</b> there."}
    assert "secret" not in break_down(None)["error"]


def test_names_that_are_no_utf8_can_be_sent() -> None:
    """On Linux file names are bytes; Python gives those that are no UTF-8 as halves of signs, which JSON refuses."""

    @answered
    def lists(_argument: Any = None) -> dict[str, Any]:
        return {"names": [{"name": "bad\udcff.png", "caption": "caf\xe9 \u202e"}], "sizes": [1, None, 0.5]}

    @answered
    def refuses(_argument: Any = None) -> dict[str, Any]:
        raise SafelightError("There is no \ud800.")

    found = lists(None)
    assert found == {"names": [{"name": "bad\\udcff.png", "caption": "caf\xe9 \u202e"}], "sizes": [1, None, 0.5]}
    assert refuses(None) == {"error": "There is no \\ud800."}

    def fail() -> str:
        raise SafelightError("There is no \ud800.")

    assert outcome(fail)["text"] == "There is no \\ud800."
    with pytest.raises(gr.Error) as shown, shown_to_the_user():
        fail()
    assert shown.value.message == "There is no \\ud800."


def test_outcomes_stay_on_the_page() -> None:
    def fail() -> str:
        raise SafelightError("no")

    assert outcome(lambda: "done") == {"text": "done", "tone": "good"}
    assert outcome(fail) == {"text": "no", "tone": "bad"}


@pytest.mark.parametrize("argument", [None, 1, [], {}, {"run": 1}, {"run": ""}, {"run": "x" * 2000}])
def test_whatever_a_browser_sends_is_looked_at(argument: Any) -> None:
    with pytest.raises(SafelightError):
        text_of(argument, "run")
    assert number_of(argument, "lines") == 0


def test_numbers_of_a_browser_are_whole_and_not_negative() -> None:
    assert number_of({"lines": 7}, "lines") == 7
    for wrong in (-1, 1.5, True, "7", None):
        assert number_of({"lines": wrong}, "lines") == 0
