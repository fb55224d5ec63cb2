"""Real processes are killed at random moments, also while they save: nothing is lost, and the LoRA ends the same."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from tests.tiny import tiny_dataset, tiny_sd15
from tests.trainer import fault_child
from trainer import events
from trainer.checkpoints import list_checkpoints, load_checkpoint
from trainer.config.files import parse_config
from trainer.runs import RunFolder, RunReader, RunState
from trainer.workspace import Workspace

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes are forked and killed by signals here")

NUM_KILLS = 50
MOST_EVENTS = 16
"""A process is killed after so many events at most, counted from its start; preparing has about ten."""
MOST_SECONDS = 0.12
"""And so much later at most: a step, a checkpoint or a LoRA file of these models takes about as long."""

EVERYTHING: dict[str, Any] = {
    "model": {"precision": "fp32"},
    "dataset": {"resolution": 64},
    "training": {"max_train_steps": 8, "device": "cpu", "batch_size": 2},
    "save": {"every_n_steps": 3, "rescue_minutes": 1e-6, "keep_last": 2, "key_format": "kohya"},
}
RUNS: list[dict[str, Any]] = [
    {
        "model": {"base": "sd15"},
        "lora": {"rank": 2, "dropout": 0.2, "train_text_encoder": True, "text_encoder_stop_step": 5},
        "training": {"gradient_accumulation_steps": 2},
        "dataset": {"shuffle_tags": True, "caption_dropout_rate": 0.3, "flip_augmentation": True},
        "optimizer": {"schedule": "cosine", "warmup_steps": 2, "learning_rate": 1e-3},
        "save": {"key_format": "both"},
    },
    {
        "model": {"base": "sd15"},
        "lora": {"adapter": "dora", "rank": 2},
        "optimizer": {"name": "prodigy_plus_schedule_free", "learning_rate": 1.0, "text_encoder_learning_rate": 1.0},
        "sample": {"prompts": ["red circle"], "every_n_steps": 3, "width": 64, "height": 64, "num_inference_steps": 1},
        "loss": {"min_snr_gamma": 5.0},
    },
    {
        "model": {"base": "sd15"},
        "lora": {"adapter": "lokr", "rank": 2},
        "optimizer": {"name": "adamw_8bit", "learning_rate": 1e-3, "schedule": "linear"},
        "validation": {"split": 0.3, "every_n_steps": 3, "num_timesteps": 1, "train_pictures": 1},
    },
    {
        "model": {"base": "sd15"},
        "lora": {"adapter": "locon", "rank": 2, "init": "pissa", "block_learning_rates": ["up_blocks 0.5"]},
        "optimizer": {"name": "muon", "learning_rate": 1e-3},
        "embedding": {"word": "circle", "num_vectors": 2, "learning_rate": 1e-3},
        "save": {"every_n_steps": 2, "keep_last_loras": 2},
    },
    {
        "model": {"base": "sd15"},
        "lora": {"adapter": "loha", "rank": 2, "module_dropout": 0.2},
        "dataset": {"random_crops": 2},
        "optimizer": {"name": "prodigy", "learning_rate": 1.0, "text_encoder_learning_rate": 1.0},
    },
]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("faults")
    return {
        "sd15": str(tiny_sd15(folder / "sd15")),
        "set": str(tiny_dataset(folder / "set", 5, size=(110, 90))),
    }


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([fault_child.__name__])
    return context


@dataclass
class Victim:
    """One run, and the process that trains it now."""

    context: ForkServerContext
    workspace: Workspace
    folder: RunFolder

    @classmethod
    def make(cls, context: ForkServerContext, space: Path, values: dict[str, Any], places: dict[str, str]) -> Victim:
        merged = {key: {**EVERYTHING.get(key, {}), **values.get(key, {})} for key in EVERYTHING | values}
        merged["model"]["base"] = places[merged["model"]["base"]]
        merged["dataset"]["folder"] = places["set"]
        workspace = Workspace.open(space)
        return cls(context, workspace, RunFolder.create(workspace, parse_config(merged)))

    def start(self) -> Any:
        child = self.context.Process(target=fault_child.go_on, args=(self.workspace.path, self.folder.run_id))
        child.start()
        return child

    def finish(self) -> dict[str, Any]:
        """Trains to the end, if it is not there yet, and returns what the run has to show."""
        if RunReader(self.folder).progress().can_resume:
            self.start().join(120)
        reader = RunReader(self.folder)
        progress = reader.progress()
        assert progress.state is RunState.FINISHED, progress.message
        samples = {one.path: (self.folder.path / one.path).read_bytes() for one in progress.samples}
        return {
            "losses": [(done.step, done.loss, done.learning_rate) for done in reader.history.steps],
            "validations": [(one.step, one.loss, one.train_loss, one.best) for one in progress.validations],
            "samples": samples,
            "files": {path.name: tensor_bytes(path) for path in sorted(self.folder.path.glob("*.safetensors"))},
            "listed": sorted(saved.path for saved in progress.loras),
            "checkpoints": [path.name for path in list_checkpoints(self.folder.checkpoints_dir)],
        }

    def killed(self, chance: random.Random) -> bool:
        """Starts the process and kills it at a random moment. Returns False when it was done before."""
        wanted, later = chance.randint(0, MOST_EVENTS), chance.uniform(0.0, MOST_SECONDS)
        before = self.num_events()
        child = self.start()
        while child.is_alive() and self.num_events() < before + wanted:
            time.sleep(0.001)
        child.join(later)
        alive = child.is_alive()
        if alive:
            os.kill(child.pid, signal.SIGKILL)
        child.join(60)
        assert alive or child.exitcode == 0
        return alive

    def num_events(self) -> int:
        return self.folder.events_path.read_bytes().count(b"\n")

    def refuse_losses(self) -> None:
        """What was said to be saved is there, whole, whatever the moment of the kill."""
        told = [json.loads(line) for line in self.folder.events_path.read_bytes().splitlines() if line.endswith(b"}")]
        saved = [one["step"] for one in told if one["event"] == events.CheckpointSaved.__name__]
        paths = list_checkpoints(self.folder.checkpoints_dir)
        steps = [load_checkpoint(path).step for path in paths]  # raises for a damaged one
        aside = [
            path.with_suffix("") for path in self.folder.checkpoints_dir.glob("*.replaced") if path.with_suffix("").name
        ]
        assert not saved or steps or aside
        assert not saved or max([*steps, *(int(path.name[5:]) for path in aside)]) >= saved[-1]
        for path in self.folder.path.glob("*.safetensors"):
            assert tensor_bytes(path)


def tensor_bytes(path: Path) -> bytes:
    """Names, shapes and numbers of a file; the metadata beside them has times."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    with safe_open(path, "pt") as file:
        names = sorted(file.keys())
    return json.dumps(names).encode() + data[8 + length :]


def test_fifty_kills_at_random_moments_lose_nothing(places, processes, tmp_path) -> None:
    seed = int(os.environ.get("FAULT_SEED", random.SystemRandom().randrange(10**6)))
    print(f"FAULT_SEED={seed}")
    chance = random.Random(seed)
    kills = 0
    for number, values in enumerate(RUNS):
        expected = Victim.make(processes, tmp_path / f"{number}", values, places).finish()
        assert expected["files"] and len(expected["losses"]) == 8
        quota = NUM_KILLS * (number + 1) // len(RUNS)
        attempt = 0
        while kills < quota:
            attempt += 1
            victim = Victim.make(processes, tmp_path / f"{number}-{attempt}", values, places)
            while kills < quota and victim.killed(chance):
                kills += 1
                victim.refuse_losses()
            found = victim.finish()
            for what, value in expected.items():
                assert found[what] == value, f"{what} of run {number} differ with seed {seed}"
    assert kills == NUM_KILLS
