"""Settings of other programs: what is taken, what is changed and why, and that nothing is passed over in silence."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from security.errors import RefusedConfig, SafelightError
from trainer.config.files import iter_settings
from trainer.config.foreign import ai_toolkit, kohya, onetrainer, sd_scripts, sd_scripts_keys, seed
from trainer.config.foreign.reading import read_settings
from trainer.config.foreign.report import HIDDEN, Imported, Outcome
from trainer.config.foreign.taking import MAX_KEYS, Surroundings, flat
from trainer.config.schema import TrainConfig

DEFAULTS = flat(TrainConfig())
HUNDRED = Surroundings(samples=lambda _values: 100.0, models={"noob.safetensors": "noob", "a/b": "b"})

SD_SCRIPTS = """
pretrained_model_name_or_path = "/models/Noob.safetensors"
output_name = "mira v2"
[network]
network_module = "networks.lora"
network_dim = 32
network_alpha = 16
network_args = ["conv_dim=8", "conv_alpha=4", "loraplus_lr_ratio=8", "rank_dropout=0.1", "mystery=1"]
[optimizer]
optimizer_type = "AdamW8bit"
optimizer_args = ["weight_decay=0.1", "betas=0.9,0.99", "amsgrad=True"]
unet_lr = 2e-4
text_encoder_lr = [1e-5, 2e-5]
lr_scheduler = "cosine"
lr_warmup_steps = 0.1
[training]
max_train_epochs = 10
gradient_accumulation_steps = 2
save_every_n_epochs = 2
v_parameterization = true
min_snr_gama = 5
wandb_api_key = "0123456789abcdef"
sample_prompts = "mira --w 768 --h 640 --d 7 --n blurry"
"""
SD_DATASET = """
[general]
shuffle_caption = true
keep_tokens = 1
caption_extension = ".txt"
[[datasets]]
resolution = [1024, 768]
batch_size = 2
enable_bucket = true
min_bucket_reso = 512
max_bucket_reso = 2048
[[datasets.subsets]]
image_dir = "/data/mira"
num_repeats = 4
[[datasets.subsets]]
image_dir = "/data/extra"
num_repeats = 2
flip_aug = true
[[datasets.subsets]]
image_dir = "/data/people"
is_reg = true
"""
KOHYA = {
    "LoRA_type": "LyCORIS/LoKr", "network_dim": 100000, "network_alpha": 1, "factor": 8, "conv_dim": 100000, "conv_alpha": 1,
    "optimizer": "Prodigy", "optimizer_args": '"d_coef=2.0" "decouple=True" "mystery=1"', "learning_rate": 1.0,
    "unet_lr": "1.0", "text_encoder_lr": 0, "epoch": "5", "max_train_steps": "", "train_batch_size": 4, "lr_warmup": "10",
    "max_resolution": "512,768", "noise_offset_type": "Original", "noise_offset": 0.05, "multires_noise_iterations": 6,
    "stop_text_encoder_training": 0, "xformers": "xformers", "huggingface_token": "hf_aaaaaaaaaaaaaaaaaaaa", "seed": "",
    "additional_parameters": '--log_prefix=x --zero_terminal_snr --mystery 3', "lr_scheduler": "constant",
    "bucket_no_upscale": True,
    "train_data_dir": "/data/mira", "mixed_precision": "bf16", "LyCORIS_preset": "attn-mlp", "down_lr_weight": "",
}  # fmt: skip
ONETRAINER = {
    "training_method": "LORA", "model_type": "STABLE_DIFFUSION_XL_10_BASE", "base_model_name": "/models/noob.safetensors",
    "output_model_destination": "models/mira.safetensors", "output_model_format": "KOHYA_LORA", "epochs": 4, "batch_size": 5,
    "learning_rate": 0.0003, "learning_rate_warmup_steps": 0.25, "layer_filter_preset": "attn-mlp", "lora_rank": 24,
    "loss_weight_fn": "MIN_SNR_GAMMA", "loss_weight_strength": 5, "min_noising_strength": 0.1, "save_every": 1,
    "save_every_unit": "EPOCH", "sample_after": 10, "sample_after_unit": "MINUTE", "resolution": "768,1024",
    "optimizer": {"optimizer": "CAME", "weight_decay": 0.02, "beta3": 0.999, "stochastic_rounding": True, "clip_threshold": 1},
    "unet": {"train": True, "weight_dtype": "BFLOAT_16"}, "text_encoder": {"train": False}, "vae": {"weight_dtype": "FLOAT_32"},
    "timestep_distribution": "LOGIT_NORMAL", "noising_weight": 0.5, "noising_bias": 0.1, "mystery": 3,
    "secrets": {"huggingface_token": "hf_aaaaaaaaaaaaaaaaaaaa"},
    "concepts": [
        {"path": "/data/mira", "balancing": 3, "text": {"enable_tag_shuffling": True, "keep_tags_count": 2}, "mystery": 1},
        {"path": "/data/more", "balancing": 1.5, "image": {"enable_random_flip": True}},
        {"path": "/data/held", "type": "VALIDATION"}, {"path": "/data/off", "enabled": False},
    ],
    "samples": [{"prompt": "one", "width": 640, "seed": 3}, {"prompt": "two", "width": 512, "seed": 3}],
}  # fmt: skip
AI_TOOLKIT = """
job: extension
config:
  name: mira
  process:
    - type: sd_trainer
      trigger_word: m1ra
      network: {type: lora, linear: 16, linear_alpha: 8, conv: 8, conv_alpha: 4, network_kwargs: {ignore_if_contains: [to_out]}}
      save: {dtype: float16, save_every: 250, max_step_saves_to_keep: 4}
      datasets:
        - {folder_path: /data/mira, caption_ext: txt, caption_dropout_rate: 0.05, resolution: [512, 1024], flip_x: true}
        - {folder_path: /data/people, is_reg: true, resolution: 512}
      train: {steps: 2000, gradient_accumulation_steps: 4, lr: 1e-4, optimizer: adamw8bit, dtype: bf16,
              train_text_encoder: true, optimizer_params: {weight_decay: 1e-4}, mystery: 1, noise_scheduler: ddpm}
      model: {name_or_path: a/b, arch: sdxl, quantize: true}
      sample: {sample_every: 200, width: 1024, prompts: [one, two], neg: blurry}
"""
FLAT_PRESET = {
    "name": "LoHa by somebody", "model_type": "SDXL", "lora_type": "LoHa", "network_dim": 8, "network_alpha": 4, "conv_dim": 4,
    "optimizer_type": "Prodigy", "unet_lr": 1, "text_encoder_lr": 0, "max_train_epochs": 20, "lr_warmup_ratio": 0.05,
    "min_snr_gamma": 5, "min_snr_gamma_enabled": False, "lr_scheduler": "cosine_with_restarts", "lr_scheduler_number": 3,
    "resolution": 1024, "weight_decay": 0.02, "clip_skip": 2, "down_lr_weight": "1,1", "mystery": 1, "train_batch_size": 2,
}  # fmt: skip


def write(tmp_path: Path, name: str, content: Any) -> Path:
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def outcomes(result: Imported, outcome: Outcome) -> dict[str, str]:
    return {entry.theirs: entry.reason for entry in result.report.of(outcome)}


def check(result: Imported, expected: Mapping[str, Any]) -> None:
    assert {name: result.values.get(name) for name in expected} == dict(expected)
    assert {name: flat(result.config)[name] for name in expected} == dict(expected)


def test_a_run_of_sd_scripts_with_its_dataset_file(tmp_path: Path) -> None:
    paths = [write(tmp_path, "run.toml", SD_SCRIPTS), write(tmp_path, "data.toml", SD_DATASET)]
    result = read_settings(paths, HUNDRED)
    check(
        result,
        {
            "model.base": "noob", "model.prediction_type": "v_prediction", "name": "mira_v2", "lora.adapter": "locon",
            "lora.rank": 32, "lora.alpha": 16.0, "lora.conv_rank": 8, "lora.conv_alpha": 4.0, "lora.rank_dropout": 0.1,
            "optimizer.lora_plus_ratio": 8.0, "optimizer.name": "adamw_8bit", "optimizer.weight_decay": 0.1,
            "optimizer.beta2": 0.99, "optimizer.learning_rate": 2e-4, "optimizer.text_encoder_learning_rate": 1e-5,
            "optimizer.schedule": "cosine", "training.batch_size": 2, "training.gradient_accumulation_steps": 2,
            "training.max_train_steps": 250, "optimizer.warmup_steps": 25, "save.every_n_steps": 50,
            "dataset.folder": "/data/mira", "dataset.repeats": 4, "dataset.more": ["0.5 /data/extra"],
            "dataset.regularisation": ["/data/people"], "dataset.resolution": 887, "dataset.shuffle_tags": True,
            "dataset.keep_tokens": 1, "dataset.max_aspect_ratio": 3.0, "lora.train_text_encoder": True,
            "sample.prompts": ["mira"], "sample.width": 768, "sample.height": 640, "sample.seed": 7,
            "sample.negative_prompt": "blurry",
        },
    )  # fmt: skip
    refused = outcomes(result, Outcome.NOT_TAKEN)
    assert "min_snr_gamma" in refused["min_snr_gama"], "a misspelt key is told with the name that is near"
    assert refused.keys() == {
        *("min_snr_gama", "wandb_api_key", "network_args: mystery", "optimizer_args: amsgrad", "folder 2: flip_aug"),
    }
    text = "\n".join(result.report.lines())
    assert "0123456789abcdef" not in text and HIDDEN in text
    assert "250 <- max_train_epochs = 10: runs are counted in steps: an epoch of this dataset has 25" in text


def test_epochs_of_a_dataset_that_is_not_here_are_told_not_guessed(tmp_path: Path) -> None:
    result = read_settings([write(tmp_path, "run.toml", SD_SCRIPTS)])
    assert "training.max_train_steps" not in result.values
    reasons = outcomes(result, Outcome.NOT_TAKEN)
    assert "epochs x pictures x repeats / batch" in reasons["max_train_epochs"]
    assert "whose length isn't known" in reasons["lr_warmup_steps"]


def test_what_sd_scripts_takes_when_nothing_is_said_is_not_what_we_take(tmp_path: Path) -> None:
    result = read_settings(
        [write(tmp_path, "run.toml", 'network_module = "networks.lora"\noptimizer_type = "Prodigy"\n')]
    )
    check(
        result,
        {
            "lora.alpha": 1.0, "lora.rank": 4, "training.max_train_steps": 1600, "dataset.aspect_buckets": False,
            "dataset.caption_extension": ".caption", "lora.train_text_encoder": True, "optimizer.weight_decay": 0.0,
        },
    )  # fmt: skip
    assert "leaves it out" in outcomes(result, Outcome.CHANGED)["network_alpha"]


def test_the_page_of_kohya_ss(tmp_path: Path) -> None:
    result = read_settings([write(tmp_path, "run.json", KOHYA)], HUNDRED)
    check(
        result,
        {
            "lora.adapter": "lokr", "lora.rank": 256, "lora.alpha": 256.0, "lora.lokr_factor": 8, "optimizer.name": "prodigy",
            "optimizer.d_coefficient": 2.0, "optimizer.learning_rate": 1.0, "lora.train_text_encoder": False,
            "training.max_train_steps": 125, "optimizer.warmup_steps": 12, "dataset.resolution": 627, "noise.offset": 0.05,
            "model.zero_terminal_snr": "on", "model.precision": "bf16", "dataset.folder": "/data/mira",
        },
    )  # fmt: skip
    assert "noise.pyramid_iterations" not in result.values, "its kind of noise is the other one"
    assert "training.seed" not in result.values
    refused = outcomes(result, Outcome.NOT_TAKEN)
    assert refused.keys() == {
        *("optimizer_args: mystery", "huggingface_token", "additional_parameters: --mystery", "bucket_no_upscale"),
    }
    assert "256 is the highest rank" in outcomes(result, Outcome.CHANGED)["network_dim"]
    assert "hf_aaaa" not in "\n".join(result.report.lines())


def test_a_configuration_of_onetrainer(tmp_path: Path) -> None:
    result = read_settings([write(tmp_path, "run.json", ONETRAINER)], HUNDRED)
    check(
        result,
        {
            "model.base": "noob", "name": "mira", "save.key_format": "kohya", "training.max_train_steps": 80,
            "optimizer.warmup_steps": 20, "save.every_n_steps": 20, "lora.adapter": "lora", "lora.rank": 24, "lora.alpha": 1.0,
            "lora.targets": "attention+ff+proj", "loss.min_snr_gamma": 5.0, "noise.min_timestep": 100, "model.precision": "bf16",
            "optimizer.name": "came", "optimizer.weight_decay": 0.02, "optimizer.beta3": 0.999, "lora.train_text_encoder": False,
            "noise.timestep_law": "logit_normal", "noise.timestep_scale": 1.5, "noise.timestep_mean": 0.1,
            "dataset.resolution": 1024, "dataset.more_resolutions": [768], "dataset.folder": "/data/mira", "dataset.repeats": 3,
            "dataset.more": ["0.5 /data/more"], "dataset.shuffle_tags": True, "dataset.keep_tokens": 2,
            "validation.folder": "/data/held", "sample.prompts": ["one", "two"], "sample.width": 640, "sample.seed": 3,
        },
    )  # fmt: skip
    refused = outcomes(result, Outcome.NOT_TAKEN)
    assert refused.keys() == {
        *("mystery", "secrets", "sample_after", "optimizer.clip_threshold", "concepts: mystery"),
        "concepts: options of further folders",
    }
    assert "share the first" in outcomes(result, Outcome.CHANGED)["samples: width"]


@pytest.mark.parametrize("name", ["job.yaml", "job.json"])
def test_a_job_of_ai_toolkit(tmp_path: Path, name: str) -> None:
    from security.configs import read_yaml

    content = AI_TOOLKIT if name.endswith("yaml") else read_yaml(AI_TOOLKIT)
    result = read_settings([write(tmp_path, name, content)], HUNDRED)
    check(
        result,
        {
            "model.base": "b", "name": "mira", "dataset.trigger_word": "m1ra", "lora.adapter": "locon", "lora.rank": 16,
            "lora.alpha": 8.0, "lora.conv_rank": 8, "lora.conv_alpha": 4.0, "lora.exclude_patterns": ["to_out"],
            "save.every_n_steps": 250, "save.keep_last_loras": 4, "save.precision": "fp16", "dataset.folder": "/data/mira",
            "dataset.caption_extension": ".txt", "dataset.caption_dropout_rate": 0.05, "dataset.resolution": 1024,
            "dataset.more_resolutions": [512], "dataset.flip_augmentation": True, "dataset.regularisation": ["/data/people"],
            "training.max_train_steps": 500, "training.gradient_accumulation_steps": 4, "optimizer.learning_rate": 1e-4,
            "optimizer.text_encoder_learning_rate": 1e-4, "optimizer.name": "adamw_8bit", "optimizer.weight_decay": 1e-4,
            "model.precision": "bf16", "sample.every_n_steps": 200, "sample.width": 1024, "sample.prompts": ["one", "two"],
            "sample.negative_prompt": "blurry",
        },
    )  # fmt: skip
    assert outcomes(result, Outcome.NOT_TAKEN).keys() == {"train.mystery", "model.quantize"}
    assert "4 of which make a step" in outcomes(result, Outcome.CHANGED)["train.steps"]


def test_a_flat_preset_leaves_alone_what_it_does_not_name(tmp_path: Path) -> None:
    asked: list[Any] = []

    def samples(values: Mapping[str, Any]) -> float:
        asked.append(values["dataset.folder"])
        return 40.0

    base = {**DEFAULTS, "dataset.folder": "mine"}
    result = read_settings([write(tmp_path, "p.json", FLAT_PRESET)], Surroundings(samples=samples), base)
    assert result.is_partial and set(asked) == {"mine"}, "epochs are those of the dataset in the form"
    assert "model.base" not in result.values and "name" not in result.values and "seed" not in result.values
    check(
        result,
        {
            "lora.adapter": "loha", "lora.rank": 8, "lora.alpha": 4.0, "lora.conv_rank": 4, "optimizer.name": "prodigy",
            "optimizer.learning_rate": 1.0, "lora.train_text_encoder": False, "training.max_train_steps": 400,
            "optimizer.warmup_steps": 20, "loss.min_snr_gamma": 0.0, "optimizer.schedule": "cosine_with_restarts",
            "optimizer.num_cycles": 3, "optimizer.weight_decay": 0.02, "model.clip_skip": 2,
        },
    )  # fmt: skip
    assert outcomes(result, Outcome.NOT_TAKEN).keys() == {"mystery"}


def test_a_nested_preset_is_the_file_that_it_wraps(tmp_path: Path) -> None:
    wrapped = {
        "name": "x",
        "description": "y",
        "config": {key: KOHYA[key] for key in ("LoRA_type", "network_dim", "optimizer")},
    }
    result = read_settings([write(tmp_path, "p.json", wrapped)])
    assert (
        result.is_partial and result.values["lora.adapter"] == "lokr" and result.values["optimizer.name"] == "prodigy"
    )


def test_dora_and_weights_by_block(tmp_path: Path) -> None:
    text = (
        'network_module = "lycoris.kohya"\nnetwork_dim = 8\nnetwork_alpha = 8\n'
        'network_args = ["algo=locon", "dora_wd=True", "preset=attn-mlp"]\n'
    )
    check(
        read_settings([write(tmp_path, "a.toml", text)]), {"lora.adapter": "dora", "lora.targets": "attention+ff+proj"}
    )
    text = (
        'network_args = ["down_lr_weight=1,1,1,1,0.5", "mid_lr_weight=0", "up_lr_weight=linear+0.5", "dora_wd=True"]\n'
    )
    result = read_settings([write(tmp_path, "b.toml", text)])
    lines = result.values["lora.block_learning_rates"]
    assert lines[0] == r"^down_blocks\.1\.(attentions|resnets)\.0\. 0.5" and r"^mid_block\. 0" in lines
    assert len([line for line in lines if line.startswith("^up_blocks")]) == 12
    assert "doesn't read it" in outcomes(result, Outcome.NOT_TAKEN)["network_args: dora_wd"]
    ranks = ",".join(["0"] + ["4"] * 24)
    result = read_settings([write(tmp_path, "c.toml", f'network_args = ["block_dims={ranks}"]\n')])
    assert r"^mid_block\. 4 1" in result.values["lora.block_ranks"]


def test_an_optimizer_that_is_not_here_takes_its_learning_rate_with_it(tmp_path: Path) -> None:
    result = read_settings(
        [write(tmp_path, "a.toml", 'optimizer_type = "SGDNesterov"\nlearning_rate = 0.3\nunet_lr = 0.3\n')]
    )
    reasons = outcomes(result, Outcome.NOT_TAKEN)
    assert result.config.optimizer.learning_rate == TrainConfig().optimizer.learning_rate
    assert "would be wrong for another optimizer" in reasons["unet_lr"] and "optimizer_type" in reasons


def test_settings_that_do_not_go_together_are_given_up_with_the_reason(tmp_path: Path) -> None:
    text = "keep_tokens = 2\nsample_every_n_steps = 50\n"
    result = read_settings([write(tmp_path, "a.toml", text)])
    reasons = outcomes(result, Outcome.NOT_TAKEN)
    assert "sample.prompts is empty" in reasons["sample_every_n_steps"]
    assert result.config.sample.every_n_steps == 0


def test_a_run_of_ours_is_read_as_it_is(tmp_path: Path) -> None:
    from trainer.config.files import dump_config

    config = TrainConfig().model_copy(update={"name": "mine"})
    result = read_settings([write(tmp_path, "mine.toml", dump_config(config))])
    assert result.config == config and not result.report.entries


# -- every key, and what nobody meant --

Program = tuple[str, Callable[[dict[str, Any]], Imported], set[str]]


def _job(values: dict[str, Any]) -> dict[str, Any]:
    process: dict[str, Any] = {}
    for key, value in values.items():
        group, dot, name = key.partition(".")
        if dot:
            process.setdefault(group, {})[name] = value
        else:
            process[key] = value
    return {"job": "extension", "config": {"name": "x", "process": [process]}}


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in values.items():
        group, dot, name = key.partition(".")
        if dot:
            result.setdefault(group, {})[name] = value
        else:
            result[key] = value
    return result


SD_KEYS = set(sd_scripts_keys.TABLE) | set(sd_scripts.DATASET_TABLE)
OT_KEYS = set(onetrainer.TABLE) | {
    f"optimizer.{name}" for name in ("optimizer", "beta1", "weight_decay", "d_coef", "nothing")
}
PROGRAMS: list[Program] = [
    ("sd-scripts", lambda values: sd_scripts.import_sd_scripts(values, None, HUNDRED, DEFAULTS), SD_KEYS),
    (
        "kohya_ss",
        lambda values: kohya.import_kohya(values, HUNDRED, DEFAULTS),
        set(kohya.OWN) | SD_KEYS | kohya.FLAT_ARGUMENTS,
    ),
    ("OneTrainer", lambda values: onetrainer.import_onetrainer(_nested(values), HUNDRED, DEFAULTS), OT_KEYS),
    ("ai-toolkit", lambda values: ai_toolkit.import_ai_toolkit(_job(values), HUNDRED, DEFAULTS), set(ai_toolkit.TABLE)),
    (
        "preset",
        lambda values: seed.import_preset(values, HUNDRED, DEFAULTS),
        set(seed.OWN) | SD_KEYS | kohya.FLAT_ARGUMENTS,
    ),
]
PARTED = ("network_args", "optimizer_args", "name", "network_kwargs", "optimizer_params", "lr_scheduler_params")
"""Keys that may hold nothing, and are told part by part otherwise."""
ODD: list[Any] = [
    True, False, 0, 1, -1, 3.7, 1e300, 10**50, "", "1", "0", "true", "no", "full", "AdamW", "cosine", "\u202e\ud7ff", "a" * 5000,
    [], [1, "x"], [[1]], {}, {"a": {"b": 1}}, None, "1,2,3", "--", '"', "x=1 y=2", ["a=b", "c"],
]  # fmt: skip


@pytest.mark.parametrize(("program", "read", "keys"), PROGRAMS, ids=[name for name, _, _ in PROGRAMS])
def test_every_key_with_any_value_ends_in_the_report(
    program: str, read: Callable[[dict[str, Any]], Imported], keys: set[str]
) -> None:
    for number, odd in enumerate(ODD):
        values = {
            key: (odd if position % 3 else ODD[(number + position) % len(ODD)])
            for position, key in enumerate(sorted(keys))
        }
        for part in (values, {"mystery_key": odd}):
            try:
                result = read(part)
            except SafelightError:
                continue
            told = " ".join(entry.theirs for entry in result.report.entries)
            missing = [key for key in part if key.partition(".")[2] not in told and key not in told]
            missing = [key for key in missing if key.rpartition(".")[2] not in PARTED]
            assert not missing, f"{program} says nothing of {missing[:5]}"
            names = {setting.name for setting in iter_settings()}
            assert set(result.values) <= names
            wrong = [entry for entry in result.report.entries if "no attribute" in entry.reason]
            assert not wrong, "a setting of ours is named that is none"


@pytest.mark.parametrize(("program", "read", "keys"), PROGRAMS, ids=[name for name, _, _ in PROGRAMS])
def test_every_key_alone_is_told(program: str, read: Callable[[dict[str, Any]], Imported], keys: set[str]) -> None:
    """A rule that forgets its key, or names a setting that is none, fails here by the key's name."""
    for key in sorted(keys):
        for value in (1, "0.5", True, "constant", ["a=1"]):
            try:
                result = read({key: value})
            except SafelightError as error:
                assert "block by block" in str(error) or "no process" in str(error), (key, str(error))
                continue
            for entry in result.report.entries:
                assert "no attribute" not in entry.reason, f"{program}: {key} -> {entry.reason}"
                assert entry.reason or entry.outcome is Outcome.TAKEN


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", {"hello": 1}, "no program whose settings are known"),
        ("a.exe", "x", "neither TOML, JSON nor YAML"),
        ("a.json", "[1]", "where an object"),
        ("a.json", "{" * 5000, "not valid JSON|nested deeper"),
        ("a.json", {"config": {"process": []}, "job": 1}, "no process"),
        ("a.json", {"config": {"process": "x"}}, "no process"),
        ("a.json", {"sd": {}, "sdxl": {}}, "weights for merging"),
        ("a.toml", "[[datasets]]\nresolution = 512\n", "no \\[\\[datasets.subsets\\]\\]"),
        ("a.toml", "datasets = [1]\n", "without \\[\\[datasets.subsets\\]\\]"),
        ("a.txt", "a prompt", "only text"),
        ("a.json", "x" * 2_000_000, "larger than"),
        (
            "a.json",
            {"network_dim": 1, "unet_lr": 1, **{f"k{number}": 1 for number in range(MAX_KEYS)}},
            "no settings file has over",
        ),
    ],
)
def test_files_of_another_kind_are_refused_in_words(tmp_path: Path, name: str, content: Any, said: str) -> None:
    with pytest.raises(RefusedConfig, match=said):
        read_settings([write(tmp_path, name, content)])


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    run, data = write(tmp_path, "run.toml", SD_SCRIPTS), write(tmp_path, "data.toml", SD_DATASET)
    job = write(tmp_path, "job.yaml", AI_TOOLKIT)
    for paths, said in (
        ([run, job], "both settings"),
        ([data, data], "second dataset"),
        ([job, data], "Import it alone"),
        ([], "0 files"),
    ):
        with pytest.raises(RefusedConfig, match=said):
            read_settings(paths)


def test_a_dataset_file_of_sd_scripts_alone_changes_only_the_data(tmp_path: Path) -> None:
    base = {**DEFAULTS, "optimizer.learning_rate": 3e-4, "training.max_train_steps": 77}
    result = read_settings([write(tmp_path, "data.toml", SD_DATASET)], HUNDRED, base)
    assert result.is_partial and result.report.entries
    assert result.values["dataset.folder"] == "/data/mira" and result.values["dataset.resolution"] == 887
    assert not {"optimizer.learning_rate", "training.max_train_steps", "lora.alpha"} & set(result.values)


def test_a_run_of_sd_scripts_with_its_datasets_in_the_same_file(tmp_path: Path) -> None:
    apart = read_settings([write(tmp_path, "run.toml", SD_SCRIPTS), write(tmp_path, "data.toml", SD_DATASET)], HUNDRED)
    together = read_settings([write(tmp_path, "both.toml", f"{SD_SCRIPTS}\n{SD_DATASET}")], HUNDRED)
    assert together.config == apart.config
