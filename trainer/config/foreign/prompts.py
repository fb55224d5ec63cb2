"""Sample prompts as kohya's programs write them: a line each, with options behind two dashes."""

from __future__ import annotations

import re
from typing import Any

from trainer.config.foreign.taking import Taking, WrongValueError, as_number, as_text, as_whole

OPTIONS: dict[str, tuple[str, type]] = {
    "w": ("sample.width", int),
    "h": ("sample.height", int),
    "s": ("sample.num_inference_steps", int),
    "l": ("sample.guidance_scale", float),
    "d": ("sample.seed", int),
    "n": ("sample.negative_prompt", str),
}
"""Option of a line -> our setting, which holds for all prompts."""
_PATH = re.compile(r"^[^\n]{1,1024}\.(txt|toml|json)$", re.IGNORECASE)


def take_prompts(taking: Taking, key: str, value: Any) -> None:
    """Prompts given as text. Their options hold for one line each, ours for all: the first that is given is taken."""
    given = as_text(value).strip()
    if _PATH.match(given):
        taking.refuse(key, "is the name of a file; import that file together with this one")
        return
    lines = [line.strip() for line in given.splitlines() if line.strip() and not line.strip().startswith("#")]
    prompts = [re.split(r"\s--", f" {line}")[0].strip() for line in lines]
    options = [_options(taking, key, line) for line in lines]
    taking.take(key, "sample.prompts", [prompt for prompt in prompts if prompt])
    for ours, first in {name: value for one in reversed(options) for name, value in one.items()}.items():
        is_common = all(one.get(ours) == first for one in options)
        reason = "" if is_common else "the lines there differ in it; here one value holds for all prompts"
        taking.take(f"{key}: {ours.rpartition('.')[2]}", ours, first, reason, given=first)


def _options(taking: Taking, key: str, line: str) -> dict[str, Any]:
    """What one line says of our settings; options that can't be taken are told."""
    found: dict[str, Any] = {}
    for name, argument in re.findall(r"\s--(\w+)\s*((?:(?!\s--).)*)", line):
        label = f"{key}: --{name}"
        if name not in OPTIONS:
            if not taking.is_done(label):
                taking.refuse(label, "this option of a prompt is not offered")
            continue
        ours, kind = OPTIONS[name]
        try:
            found[ours] = {int: as_whole, float: as_number, str: as_text}[kind](argument.strip())
        except WrongValueError as error:
            taking.refuse(label, f"{error}, so it can't be read")
    return found


def prompts(taking: Taking) -> None:
    """The finish for `sample_prompts`."""
    if taking.value("sample_prompts") is None or taking.is_done("sample_prompts"):
        return
    try:
        take_prompts(taking, "sample_prompts", taking.given["sample_prompts"])
    except WrongValueError as error:
        taking.refuse("sample_prompts", f"{error}, so it can't be read")
