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
    """Prompts given as text. Their options hold for one line each, ours for all: the first line's are taken."""
    given = as_text(value).strip()
    if _PATH.match(given):
        taking.refuse(key, "is the name of a file; import that file together with this one")
        return
    lines = [line.strip() for line in given.splitlines() if line.strip() and not line.strip().startswith("#")]
    prompts = [re.split(r"\s--", f" {line}")[0].strip() for line in lines]
    found: dict[str, Any] = {}
    differing: list[str] = []
    for line in lines:
        for name, argument in re.findall(r"\s--(\w+)\s*((?:(?!\s--).)*)", line):
            _option(taking, f"{key}: --{name}", name, argument.strip(), found, differing)
    taking.take(key, "sample.prompts", [prompt for prompt in prompts if prompt])
    for ours, number in found.items():
        taking.take(f"{key}: {ours.rpartition('.')[2]}", ours, number, given=number)
    for name in dict.fromkeys(differing):
        taking.refuse(name, "holds for one prompt there; here all prompts share it, so the first one's is taken")


def _option(taking: Taking, key: str, name: str, argument: str, found: dict[str, Any], differing: list[str]) -> None:
    if name not in OPTIONS:
        if not taking.is_done(key):
            taking.refuse(key, "this option of a prompt is not offered")
        return
    ours, kind = OPTIONS[name]
    try:
        number = {int: as_whole, float: as_number, str: as_text}[kind](argument)
    except WrongValueError as error:
        taking.refuse(key, f"{error}, so it can't be read")
        return
    if found.setdefault(ours, number) != number:
        differing.append(key)


def prompts(taking: Taking) -> None:
    """The finish for `sample_prompts`."""
    if taking.value("sample_prompts") is None or taking.is_done("sample_prompts"):
        return
    try:
        take_prompts(taking, "sample_prompts", taking.given["sample_prompts"])
    except WrongValueError as error:
        taking.refuse("sample_prompts", f"{error}, so it can't be read")
