"""A network for masks comes from a hub as taggers do, in a sub-folder too, and makes masks; an exchanged one does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from security.errors import SafelightError
from tests.hubs.huggingface import COMMIT, HuggingFacePlayer
from tests.hubs.models import sha256
from tests.hubs.server import Hubs
from tests.trainer.downloading import Make
from tests.trainer.test_masks import Told, brightness_network, square_on_black
from trainer.dataset.masks import MaskMode, masks_by_network, read_mask
from trainer.dataset.studio import Studio
from trainer.models.jobfiles import DownloadState
from trainer.tagging.base import KnownFile, TaggerRow
from trainer.tagging.cutouts import find_cutout
from trainer.tagging.shelf import is_here, plan_tagger
from trainer.workspace import TAGGERS, Workspace

REPO, FILE = "someone/cutter", "onnx/model.onnx"


def test_a_network_is_fetched_proven_and_used(make: Make, hubs: Hubs, workspace: Workspace, tmp_path: Path) -> None:
    brightness_network(tmp_path / "model.onnx")
    data = (tmp_path / "model.onnx").read_bytes()
    HuggingFacePlayer(hubs, REPO, {FILE: data, "config.json": b"{}"}).publish()
    known = {FILE: KnownFile(len(data), sha256(data), "https://x")}
    row: TaggerRow = replace(find_cutout("birefnet-lite"), source=REPO, revision=COMMIT, known=known)
    downloads = make()
    job = downloads.start(plan_tagger(downloads.network, None, row), name=row.name)
    assert downloads.wait(30)
    assert downloads.get(job).state is DownloadState.DONE
    assert is_here(workspace, row)
    dataset = Studio(workspace).create("mira")
    square_on_black((64, 64), (16, 16, 48, 48)).save(dataset.path / "a.png")
    assert masks_by_network(workspace, dataset, ["a.png"], row, MaskMode.KEEP, Told()) == "1 mask written."
    mask = read_mask(dataset, "a.png")
    assert mask is not None
    levels = np.asarray(mask.convert("L"))
    assert levels[32, 32] > levels[2, 2] + 50
    stored = workspace.on_shelf(TAGGERS).models_dir / row.name / FILE
    stored.write_bytes(data[:-1] + b"\0")
    Image.new("RGB", (40, 40)).save(dataset.path / "b.png")
    with pytest.raises(SafelightError, match="has changed since it came"):
        masks_by_network(workspace, dataset, ["b.png"], row, MaskMode.KEEP, Told())
    assert dataset.masks() == {"a.png"}
