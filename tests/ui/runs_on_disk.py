"""Run folders as a trainer leaves them, without training."""

from __future__ import annotations

import hashlib
from typing import Any

from PIL import Image

from trainer import events
from trainer.config.files import parse_config
from trainer.runs import RunFolder
from trainer.workspace import Workspace


def run_folder(
    workspace: Workspace, name: str = "old", *, steps: int = 20, total: int = 20, **sections: Any
) -> RunFolder:
    """A run that was trained for `steps` of `total` steps, with samples, a LoRA file and a checkpoint at the last one."""
    config = parse_config({"name": name, "training": {"max_train_steps": total}, **sections})
    folder = RunFolder.create(workspace, config)
    folder.append(events.Preparing("loading the model"))
    folder.append(events.Started(total, 0, 30, 7.5, "sd15", "cpu", 1000))
    folder.append(events.Validated(0, 0.2))
    for step in range(1, steps + 1):
        folder.append(events.StepDone(step, 0.3 - step * 0.01, 1e-3, 0.5, step * 4, 0.1))
    folder.samples_dir.mkdir()
    for step in (0, steps):
        path = folder.samples_dir / f"step-{step:08d}-00.png"
        Image.new("RGB", (600, 400), "red").save(path)
        folder.append(events.SampleSaved(step, 0, "a cat", 1, f"samples/{path.name}"))
    lora = folder.path / f"{name}.safetensors"
    lora.write_bytes(b"weights")
    folder.append(events.LoraSaved(steps, lora.name, "kohya", 7, hashlib.sha256(b"weights").hexdigest()))
    folder.append(events.CheckpointSaved(steps, f"checkpoints/{steps}"))
    folder.append(events.Validated(steps, 0.15))
    if steps == total:
        folder.append(events.Finished(steps, stopped=False))
    return folder
