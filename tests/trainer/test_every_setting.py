"""No dead settings: changing any one of them changes what a run computes, writes or shows."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors import safe_open

from tests.tiny import tiny_dataset, tiny_lora, tiny_sd15
from trainer import events
from trainer.checkpoints import list_checkpoints
from trainer.config.files import iter_settings, parse_config
from trainer.dataset.settings import mask_path
from trainer.inputs import find_inputs
from trainer.jobs import Control
from trainer.loop import train
from trainer.runs import RunFolder
from trainer.workspace import Workspace

SETTINGS = {setting.name: setting for setting in iter_settings()}

GOES_ASTRAY: dict[str, Any] = {
    "validation.folder": "SET3",
    "validation.every_n_steps": 1,
    "validation.num_timesteps": 1,
    "validation.keep_best": False,
    "optimizer.learning_rate": 0.3,
}

WORD = {"dataset.trigger_word": "zwq", "embedding.word": "zwq"}
"""A word that is trained, and stands in the captions."""

# What else has to be set so that a setting has anything to act on, and the value that it is changed to.
CHANGES: dict[str, tuple[dict[str, Any], Any]] = {
    "name": ({}, "other"),
    "model.base": ({}, "BASE2"),
    "model.prediction_type": ({}, "v_prediction"),
    "model.zero_terminal_snr": ({"model.prediction_type": "v_prediction"}, "on"),
    "model.precision": ({}, "bf16"),
    "model.clip_skip": ({}, 2),
    "dataset.folder": ({}, "SET2"),
    "dataset.more": ({}, ["0.5 SET2"]),
    "dataset.regularisation": ({}, ["SET2"]),
    "dataset.resolution": ({}, 96),
    "dataset.more_resolutions": ({}, [96]),
    "dataset.random_crops": ({}, 2),
    "dataset.aspect_buckets": ({"dataset.resolution": 128}, False),
    "dataset.max_aspect_ratio": ({"dataset.resolution": 128}, 1.0),
    "dataset.min_bucket_pictures": ({"dataset.resolution": 128}, 2),
    "dataset.repeats": ({}, 2),
    "dataset.caption_extension": ({}, ".caption"),
    "dataset.trigger_word": ({}, "mira"),
    "dataset.shuffle_tags": ({}, True),
    "dataset.keep_tokens": ({"dataset.shuffle_tags": True}, 1),
    "dataset.keep_tokens_separator": ({"dataset.shuffle_tags": True}, "simple"),
    "dataset.tag_dropout_rate": ({}, 0.9),
    "dataset.caption_prefix": ({}, "a drawing of"),
    "dataset.caption_suffix": ({}, ", white paper"),
    "dataset.wildcards": ({"dataset.caption_suffix": "on {red|blue|green} paper"}, True),
    "dataset.caption_dropout_rate": ({}, 0.9),
    "dataset.max_token_length": ({}, 150),
    "dataset.flip_augmentation": ({}, True),
    "dataset.cache_latents": ({}, False),
    "lora.rank": ({}, 2),
    "lora.alpha": ({}, 8.0),
    "lora.dropout": ({}, 0.5),
    "lora.targets": ({}, "attention"),
    "lora.adapter": ({}, "loha"),
    "lora.rs_lora": ({}, True),
    "lora.init": ({}, "gaussian"),
    "lora.rank_dropout": ({}, 0.5),
    "lora.module_dropout": ({}, 0.5),
    "lora.conv_rank": ({}, 2),
    "lora.conv_alpha": ({"lora.conv_rank": 4}, 1.0),
    "lora.lokr_factor": ({"lora.adapter": "lokr"}, 2),
    "lora.block_size": ({"lora.adapter": "oft"}, 8),
    "lora.target_patterns": ({}, ["attn2"]),
    "lora.exclude_patterns": ({}, ["up_blocks"]),
    "lora.block_ranks": ({}, ["up_blocks 2"]),
    "lora.block_learning_rates": ({}, ["up_blocks 0.5"]),
    "lora.train_denoiser": ({"lora.train_text_encoder": True}, False),
    "lora.train_text_encoder": ({}, True),
    "lora.text_encoder_stop_step": ({"lora.train_text_encoder": True}, 2),
    "lora.continue_from": ({}, "LORA"),
    "lora.merge_first": ({}, ["0.8 LORA"]),
    "embedding.word": ({"dataset.trigger_word": "zwq"}, "zwq"),
    "embedding.num_vectors": ({**WORD}, 2),
    "embedding.init_words": ({**WORD}, "red"),
    "embedding.learning_rate": ({**WORD}, 0.1),
    "embedding.stop_step": ({**WORD}, 2),
    "optimizer.name": ({}, "radam"),
    "optimizer.learning_rate": ({}, 2e-3),
    "optimizer.text_encoder_learning_rate": ({"lora.train_text_encoder": True}, 1e-3),
    "optimizer.lora_plus_ratio": ({}, 16.0),
    "optimizer.beta1": ({}, 0.5),
    "optimizer.beta2": ({}, 0.9),
    "optimizer.beta3": ({"optimizer.name": "came"}, 0.5),
    "optimizer.epsilon": ({}, 1e-3),
    "optimizer.weight_decay": ({}, 0.9),
    "optimizer.d_coefficient": ({"optimizer.name": "prodigy", "optimizer.learning_rate": 1.0}, 100.0),
    "optimizer.schedule": ({}, "linear"),
    "optimizer.warmup_steps": ({}, 2),
    "optimizer.min_learning_rate_ratio": ({"optimizer.schedule": "cosine"}, 0.5),
    "optimizer.num_cycles": ({"optimizer.schedule": "cosine_with_restarts"}, 2),
    "optimizer.power": ({"optimizer.schedule": "polynomial"}, 3.0),
    "training.max_train_steps": ({}, 3),
    "training.batch_size": ({}, 3),
    "training.gradient_accumulation_steps": ({}, 2),
    "training.max_grad_norm": ({}, 1e-4),
    "training.max_weight_norm": ({}, 1e-3),
    "memory.base_format": ({}, "int8"),
    "training.seed": ({}, 7),
    "training.spike_factor": ({"training.max_train_steps": 26, "training.skip_spikes": True}, 0.1),
    "training.skip_spikes": ({"training.max_train_steps": 26, "training.spike_factor": 0.1}, True),
    "training.device": ({}, "cuda:17"),
    "speed.fused_lora": ({}, False),
    "speed.fused_optimizer": ({}, False),
    "speed.packed_weights": ({}, "on"),
    "loss.min_snr_gamma": ({}, 0.01),
    "loss.type": ({}, "l1"),
    "loss.huber_delta": ({"loss.type": "huber"}, 0.5),
    "loss.huber_schedule": ({"loss.type": "huber"}, "exponential"),
    "loss.debiased_estimation": ({}, True),
    "noise.offset": ({}, 0.5),
    "noise.offset_random_strength": ({"noise.offset": 0.5}, True),
    "noise.adaptive_offset": ({}, 0.5),
    "noise.pyramid_iterations": ({}, 6),
    "noise.pyramid_discount": ({"noise.pyramid_iterations": 6}, 0.8),
    "noise.input_perturbation": ({}, 0.5),
    "noise.timestep_law": ({}, "sigmoid"),
    "noise.timestep_mean": ({"noise.timestep_law": "logit_normal"}, 1.0),
    "noise.timestep_scale": ({"noise.timestep_law": "sigmoid"}, 2.0),
    "noise.min_timestep": ({}, 800),
    "noise.max_timestep": ({}, 200),
    "loss.use_masks": ({"dataset.folder": "MASKED"}, False),
    "loss.unmasked_weight": ({"dataset.folder": "MASKED"}, 0.9),
    "loss.prior_loss_weight": ({"dataset.regularisation": ["SET2"]}, 0.1),
    "sample.prompts": ({}, ["a blue square"]),
    "sample.negative_prompt": ({}, "green"),
    "sample.every_n_steps": ({"sample.prompts": ["a red circle"]}, 1),
    "sample.num_inference_steps": ({}, 3),
    "sample.guidance_scale": ({}, 2.0),
    "sample.width": ({}, 96),
    "sample.height": ({}, 96),
    "sample.seed": ({}, 5),
    "validation.folder": ({"validation.every_n_steps": 0}, "SET3"),
    "validation.split": ({}, 0.3),
    "validation.every_n_steps": ({"validation.folder": "SET3", "validation.keep_best": False}, 1),
    "validation.num_timesteps": ({"validation.folder": "SET3"}, 3),
    "validation.train_pictures": ({"validation.folder": "SET3"}, 1),
    "validation.keep_best": ({"validation.folder": "SET3"}, False),
    "validation.early_stop_patience": (GOES_ASTRAY, 1),
    "validation.early_stop_delta": ({**GOES_ASTRAY, "validation.early_stop_patience": 2}, 0.5),
    "save.every_n_steps": ({}, 1),
    "save.keep_last": ({"save.every_n_steps": 1}, 1),
    "save.keep_last_loras": ({"save.every_n_steps": 1}, 1),
    "save.rescue_minutes": ({}, 1e-6),
    "save.precision": ({}, "fp32"),
    "save.key_format": ({}, "kohya"),
    "save.save_captions": ({}, True),
}

PROVEN_ELSEWHERE = {
    **dict.fromkeys(("training.num_processes", "training.shard_base"), "test_several_processes.py"),
    **dict.fromkeys(("memory.checkpointing", "memory.offload", "memory.on_out_of_memory"), "test_memory.py"),
    **dict.fromkeys(("speed.caching_batch_size", "speed.mapped_latents"), "test_caching.py"),
    "speed.background_saving": "test_background_saving.py",
    **dict.fromkeys(("speed.late_metrics", "speed.prefetch"), "speed/test_overlap.py"),
    "speed.channels_last": "speed/test_layout.py",
    "speed.compile": "speed/test_compiled.py",
}
"""Settings that change how a run is computed and not what it gives; the file shows that they do."""


def test_every_setting_is_tried() -> None:
    assert set(CHANGES) | set(PROVEN_ELSEWHERE) == set(SETTINGS)
    for name, file in PROVEN_ELSEWHERE.items():
        assert name.partition(".")[2] in (Path(__file__).parent / file).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("settings")
    first = tiny_dataset(folder / "set1", 2)
    wide = Image.new("RGB", (160, 70), "white")
    wide.paste((200, 30, 30), (10, 10, 60, 60))
    wide.save(first / "wide.png")
    (first / "wide.txt").write_text("wide, red, box, left", encoding="utf-8")
    for number, path in enumerate(sorted(first.glob("*.png"))):
        path.with_suffix(".caption").write_text(f"another text {number}", encoding="utf-8")
    masked = tiny_dataset(folder / "masked", 2, seed=5)
    mask = mask_path(masked, "000.png")
    mask.parent.mkdir(parents=True)
    Image.new("L", (96, 96)).save(mask)
    picture = Image.open(mask)
    picture.paste(255, (20, 10, 60, 50))
    picture.save(mask)
    base = tiny_sd15(folder / "base")
    return {
        "MASKED": str(masked),
        "BASE": str(base),
        "LORA": str(tiny_lora(base, folder / "other.safetensors")),
        "BASE2": str(tiny_sd15(folder / "base2", seed=1)),
        "SET1": str(first),
        "SET2": str(tiny_dataset(folder / "set2", 2, seed=3)),
        "SET3": str(tiny_dataset(folder / "set3", 2, seed=4)),
    }


def base_values(places: dict[str, str]) -> dict[str, Any]:
    return {
        "name": "tiny",
        "model": {"base": places["BASE"], "precision": "fp32"},
        "dataset": {"folder": places["SET1"], "resolution": 64},
        "lora": {"rank": 4, "alpha": 4.0},
        "optimizer": {"learning_rate": 1e-3},
        "training": {"max_train_steps": 4, "batch_size": 2, "device": "cpu"},
        "sample": {"prompts": ["a red circle"], "width": 64, "height": 64, "num_inference_steps": 2},
    }


def filled(value: Any, places: dict[str, str]) -> Any:
    """A value with the names of places replaced by their paths."""
    if isinstance(value, list):
        return [" ".join(places.get(word, word) for word in str(line).split(" ")) for line in value]
    return places.get(value, value) if isinstance(value, str) else value


def put(values: dict[str, Any], name: str, value: Any) -> None:
    section, _, field = name.rpartition(".")
    (values.setdefault(section, {}) if section else values)[field] = value


def observe(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Runs a config and returns everything that a user could see of it."""
    workspace = Workspace.open(folder / "space")
    config = parse_config(values)
    run = RunFolder.create(workspace, config)
    seen: list[events.Event] = []
    try:
        train(config, find_inputs(config, workspace), run, workspace, seen.append, Control())
    except ValueError as error:
        return {"refused": str(error)}
    view: dict[str, Any] = {
        "steps": [
            (event.step, event.loss, event.learning_rate, event.gradient_norm, event.images_seen)
            for event in seen
            if isinstance(event, events.StepDone)
        ],
        "validations": [
            (event.step, event.loss, event.train_loss) for event in seen if isinstance(event, events.Validated)
        ],
        "samples": [
            (
                event.step,
                event.prompt,
                event.seed,
                hashlib.sha256(Image.open(run.path / event.path).tobytes()).hexdigest(),
            )
            for event in seen
            if isinstance(event, events.SampleSaved)
        ],
        "checkpoints": [path.name for path in list_checkpoints(run.checkpoints_dir)],
        "cached": len(list((workspace.cache_dir / "latents").rglob("*.safetensors"))),
        "files": {},
    }
    for path in sorted(run.path.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            metadata = {
                key: value for key, value in (file.metadata() or {}).items() if "date" not in key and "time" not in key
            }
            shapes = [
                (key, str(file.get_tensor(key).dtype), file.get_tensor(key).float().sum().item())
                for key in sorted(file.keys())
            ]
            view["files"][path.name] = [sorted(metadata), shapes]
    shutil.rmtree(folder / "space")
    return view


def changed_parts(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {key for key in before.keys() | after.keys() if json.dumps(before.get(key)) != json.dumps(after.get(key))}


@pytest.fixture(scope="module")
def baselines() -> dict[str, dict[str, Any]]:
    return {}


@pytest.mark.parametrize("name", CHANGES)
def test_changing_a_setting_changes_the_run(name: str, places, baselines, tmp_path) -> None:
    context, value = CHANGES[name]
    before = base_values(places)
    for setting, given in context.items():
        put(before, setting, filled(given, places))
    after = copy.deepcopy(before)
    put(after, name, filled(value, places))
    key = json.dumps(context)
    if key not in baselines:
        baselines[key] = observe(before, tmp_path / "before")
    assert changed_parts(baselines[key], observe(after, tmp_path / "after")), f"{name} does nothing"


def test_the_comparison_sees_no_change_where_there_is_none(places, tmp_path) -> None:
    first, second = (observe(base_values(places), tmp_path / str(number)) for number in range(2))
    assert changed_parts(first, second) == set()
