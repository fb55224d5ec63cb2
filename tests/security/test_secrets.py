"""A Secret shows itself to nobody by accident, and what can't be a token never becomes one."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from dataclasses import asdict, dataclass

import pytest

from security.errors import RefusedConfig
from security.redaction import redact
from security.secrets import MAX_SECRET_LENGTH, Secret

TOKEN = "hf_" + "Kq8sZ2" * 5 + "aB3d"


@dataclass
class Holder:
    secret: Secret


@pytest.fixture
def secret() -> Secret:
    return Secret(TOKEN, "Hugging Face token")


def test_every_way_of_printing_gives_a_mask(secret: Secret) -> None:
    shown = [str(secret), repr(secret), f"{secret}", f"{secret:>50}", f"{secret!r:10}", " ".join(map(str, [secret]))]
    shown += [repr(Holder(secret)), str([secret]), str({"token": secret}), str(vars(Holder(secret)))]
    for text in shown:
        assert TOKEN not in text and "***" in text
    assert secret.reveal() == TOKEN
    assert not hasattr(secret, "__dict__")


def test_it_is_not_copied_pickled_or_turned_into_json(secret: Secret) -> None:
    for refuse in (pickle.dumps, copy.copy, copy.deepcopy, json.dumps, lambda one: asdict(Holder(one))):
        with pytest.raises(TypeError) as error:
            refuse(secret)  # type: ignore[operator]
        assert TOKEN not in str(error.value)


def test_equality_is_of_the_text_and_only_between_secrets(secret: Secret) -> None:
    assert secret == Secret(TOKEN, "another name")
    assert secret != Secret(TOKEN + "x", "Hugging Face token")
    assert secret != TOKEN
    assert len({secret, Secret(TOKEN, "another name")}) == 1


@pytest.mark.parametrize("text", ["", "short", "x" * (MAX_SECRET_LENGTH + 1)])
def test_a_text_of_the_wrong_length_is_no_token(text: str) -> None:
    with pytest.raises(RefusedConfig, match=r"has \d+ characters"):
        Secret(text, "token")


@pytest.mark.parametrize("sign", [" ", "\n", "\r", "\t", "\0", "\x7f", "é", "\u200b", "\u2028"])
@pytest.mark.parametrize("place", ["before", "inside", "behind"])
def test_a_sign_that_no_header_may_hold_is_refused_without_repeating_the_token(sign: str, place: str) -> None:
    text = {"before": sign + TOKEN, "inside": TOKEN[:9] + sign + TOKEN[9:], "behind": TOKEN + sign}[place]
    with pytest.raises(RefusedConfig, match="another sign that no token has") as error:
        Secret(text, "Hugging Face token")
    assert TOKEN not in str(error.value) and TOKEN[9:] not in str(error.value)


def test_it_is_masked_everywhere_from_the_moment_it_exists() -> None:
    text = "civitai0123456789secret"
    assert redact(f"got {text}") == f"got {text}"
    Secret(text, "Civitai token")
    assert redact(f"got {text}") == "got ***"


def test_also_a_refused_one_is_masked_from_then_on() -> None:
    text = "wrongly copied 7f3q9xz"
    with pytest.raises(RefusedConfig):
        Secret(text, "Civitai token")
    assert redact(f"got {text}") == "got ***"


def test_a_formatted_log_line_has_none(secret: Secret, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("safelight.test").warning("using %s for %r", secret, Holder(secret))
    assert "using ***" in caplog.text and TOKEN not in caplog.text
