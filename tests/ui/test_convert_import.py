"""A checkpoint that can run code, brought in on the Models tab: only through the converter, and then it can be trained."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
import pytest
import torch
from safetensors.torch import load_file

from security.sandbox import probe
from tests.security.checkpoint_files import checkpoint, pickled, text
from tests.tiny import as_single_file, tiny_sd15
from trainer.models.library import find_model
from ui.services import Services
from ui.tabs.models import models_tab

pytestmark = pytest.mark.skipif(not probe().active, reason=f"no sandbox here: {probe().detail}")


def bring_in(services: Services, path: Path, name: str, *, convert: bool) -> dict[str, str]:
    with gr.Blocks() as page:
        tab = models_tab(services)
    (handler,) = [fn.fn for fn in page.fns.values() if (tab.import_button._id, "click") in fn.targets]
    return handler(str(path), name, convert)  # type: ignore[misc]


@pytest.fixture(scope="module")
def old_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion checkpoint as people saved them in 2022, with what its small vocabulary needs beside it."""
    file = as_single_file(tiny_sd15(tmp_path_factory.mktemp("old") / "tiny"))
    old = file.with_suffix(".ckpt")
    torch.save({"state_dict": load_file(file), "global_step": 840_000}, old)
    file.unlink()
    return old


def test_converted_it_is_a_model_of_the_library(services: Services, old_checkpoint: Path) -> None:
    refused = bring_in(services, old_checkpoint, "old", convert=False)
    assert refused["tone"] == "bad" and "converted in a sandbox" in refused["text"]
    told = bring_in(services, old_checkpoint, "old", convert=True)
    assert told["tone"] == "good", told
    assert "old is here: Stable Diffusion 1.x" in told["text"] and "global_step" in told["text"]
    assert find_model(services.workspace, "old").family == "sd15"
    assert old_checkpoint.exists()
    assert not [path.name for path in services.workspace.models_dir.iterdir() if path.name.startswith(".")]


def test_a_safetensors_file_is_taken_as_it_is_with_the_box_ticked(services: Services, old_checkpoint: Path) -> None:
    from trainer.demo import BASE_DIR

    assert bring_in(services, BASE_DIR, "plain", convert=True)["tone"] == "good"


def test_a_refused_checkpoint_leaves_nothing(services: Services, tmp_path: Path) -> None:
    marker, bad = tmp_path / "marker", tmp_path / "bad.ckpt"
    call = f"cos\nsystem\n(S'touch {marker}'\ntR".encode()
    bad.write_bytes(checkpoint(pickled(text("x"), call)))
    told = bring_in(services, bad, "bad", convert=True)
    assert told["tone"] == "bad" and "os.system" in told["text"]
    assert not marker.exists() and list(services.workspace.models_dir.iterdir()) == []
