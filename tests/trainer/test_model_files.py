"""The numbers of a model's files are looked at once for each content, before anything trains on them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from security.errors import RefusedFile
from trainer.models import files
from trainer.models.files import fingerprint


def test_a_model_with_a_broken_number_is_refused_until_it_is_replaced(tmp_path: Path) -> None:
    cache, path = tmp_path / "cache", tmp_path / "m.safetensors"
    for value in (float("nan"), float("inf")):
        save_file({"fine": torch.ones(3), "spoiled": torch.tensor([1.0, value])}, path)
        for _ in range(2):  # the first refusal records nothing
            with pytest.raises(RefusedFile, match=r"m\.safetensors holds values in the tensor spoiled"):
                fingerprint(path, cache)
    save_file({"fine": torch.ones(3)}, path)
    assert len(fingerprint(path, cache)) == 64


def test_an_unchanged_file_is_not_looked_through_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, path = tmp_path / "cache", tmp_path / "m.safetensors"
    save_file({"a": torch.ones(3)}, path)
    looked: list[Path] = []
    check = files.check_finite
    monkeypatch.setattr(files, "check_finite", lambda one: looked.append(one) or check(one))
    expected = fingerprint(path, cache)
    assert fingerprint(path, cache) == expected and looked == [path]
    os.utime(path, ns=(1, 1))
    assert fingerprint(path, cache) == expected and looked == [path, path]
