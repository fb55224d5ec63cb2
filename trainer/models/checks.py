"""What a fetched model must pass in quarantine before it enters the library."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from security.captioners import check_captioner_folder
from security.errors import FailedCommand, RefusedConfig, RefusedFile
from security.onnx import check_onnx_bytes, read_onnx
from security.policy import CODE_SUFFIXES, PICKLE_SUFFIXES
from security.processes import run
from security.weights import check_finite
from trainer.models.detect import Detected, detect
from trainer.models.files import WEIGHT_SUFFIX, model_parts

AV_VARIABLE = "SAFELIGHT_AV_COMMAND"
"""A virus scanner of the user's own, such as `clamdscan --no-summary --fdpass`. The path of a file is put behind it."""
AV_SECONDS = 1800.0
"""Longest time one scan may take; a large model on a slow disk takes minutes."""


def check_quarantined(path: Path) -> Detected:
    """Checks a model's file or folder and says what it is. Raises RefusedFile that names the check and the fault."""
    found = detect(path)
    for part in model_parts(path):
        if part.suffix == WEIGHT_SUFFIX:
            check_finite(part)
    scan_for_viruses(model_parts(path))
    return found


def check_tagger_folder(folder: Path) -> None:
    """Checks the folder of a tagger: data only, and every network in it sound. Raises RefusedFile that names the fault."""
    parts = sorted(part for part in folder.rglob("*") if not part.is_dir())
    for part in parts:
        suffix = part.suffix.lower()
        if part.is_symlink() or suffix in CODE_SUFFIXES or suffix in PICKLE_SUFFIXES:
            raise RefusedFile(f"{part.name} in {folder.name} is a link, a program or can run code. No tagger needs it.")
        if suffix == ".onnx":
            check_onnx_bytes(read_onnx(part), part.name)
    weights = [part for part in parts if part.suffix.lower() == WEIGHT_SUFFIX]
    if weights and not any(part.suffix.lower() == ".onnx" for part in parts):  # a captioner, opened by transformers
        check_captioner_folder(folder)
        for part in weights:
            check_finite(part)
    scan_for_viruses(parts)


def scan_for_viruses(files: list[Path]) -> None:
    """Lets the user's own scanner look at each file, if one is named. Raises RefusedFile when it finds something.

    The command is split into words as a shell would, but no shell sees it.
    """
    try:
        words = shlex.split(os.environ.get(AV_VARIABLE, ""))
    except ValueError as error:
        raise RefusedConfig(f"{AV_VARIABLE} is not a command: {error}. Correct it, or remove it.") from None
    for file in files if words else ():
        try:
            done = run([*words, str(file.absolute())], timeout_seconds=AV_SECONDS)
        except FailedCommand as error:
            raise RefusedFile(
                f"The virus scan of {file.name} could not be done, so it is not used: {error} Correct {AV_VARIABLE}, or "
                "remove it."
            ) from None
        if done.returncode != 0:
            said = " ".join((done.stdout + done.stderr).split())[:200]
            raise RefusedFile(
                f"Virus scan: {words[0]} ended with {done.returncode} for {file.name} and said {said or 'nothing'!r}. The "
                "file is not used. If the scanner is wrong about it, remove " + AV_VARIABLE + " and fetch it again."
            )
