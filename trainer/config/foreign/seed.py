"""Presets of Ktiseos-Nyx-Trainer: flat ones in its own names, and older ones that wrap a file of kohya_ss.

Facts from its presets and its form; https://github.com/Ktiseos-Nyx/Ktiseos-Nyx-Trainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from security.errors import RefusedConfig
from trainer.config.foreign import kohya
from trainer.config.foreign.report import Imported
from trainer.config.foreign.sd_scripts import FINISHES
from trainer.config.foreign.sd_scripts_keys import TABLE
from trainer.config.foreign.taking import (
    OFF,
    Rule,
    Surroundings,
    Taking,
    as_number,
    as_switch,
    go_through,
    later,
    number,
    unless_off,
    unused,
)
from trainer.config.foreign.words import attempt, take_name, take_share_of_steps

PROGRAM = "Ktiseos-Nyx-Trainer"
RENAMED: dict[str, str] = {
    "optimizer": "optimizer_type",
    "vae_path": "vae",
    "lr_scheduler_number": "lr_scheduler_num_cycles",
    "lr_power": "lr_scheduler_power",
    "continue_from_lora": "network_weights",
    "resume_from_state": "resume",
    "wandb_key": "wandb_api_key",
    "num_repeats": "dataset_repeats",
    "clip_l_path": "clip_l",
    "clip_g_path": "clip_g",
    "t5xxl_path": "t5xxl",
}
"""Its name -> the option of sd-scripts that it becomes."""
_PRESET_ONLY = "describes the preset"
OTHER_MODELS = frozenset({"flux", "sd3", "sd3.5", "lumina", "chroma", "anima", "hunyuanimage"})


def _model_type(taking: Taking, key: str, value: Any) -> None:
    if str(value).lower() in OTHER_MODELS:
        taking.refuse(key, "Safelight trains Stable Diffusion 1.x and SDXL; the values were chosen for another model")
    else:
        taking.pass_over(key, "the family is read from the model's own files")


OWN: dict[str, Rule] = {
    **dict.fromkeys(
        ["name", "description", "is_builtin", "source", "attribution", "_note", "notes", "base_model"],
        unused(_PRESET_ONLY),
    ),
    "dataset_config": kohya.OWN["dataset_config"],
    "model_type": _model_type,
    "training_type": unless_off("only LoRAs are trained here", "lora", "LoRA"),
    "training_mode": unless_off("only LoRAs are trained here", "lora", "LoRA"),
    "project_name": take_name,
    "min_snr_gamma_enabled": later,
    "ip_noise_gamma_enabled": later,
    "lr_warmup_ratio": later,
    "lr_scheduler_gamma": unused("only schedules of their own read it"),
    "weight_decay": later,
    "cross_attention": kohya.OWN["cross_attention"],
    "secondary_separator": TABLE["secondary_separator"],
    "train_norm": later,
}


def import_preset(values: Mapping[str, Any], around: Surroundings, base: Mapping[str, Any]) -> Imported:
    """Takes a preset. Raises RefusedConfig for the file of merge weights that lies among them."""
    wrapped = values.get("config")
    if isinstance(wrapped, dict):
        return kohya.import_kohya(wrapped, around, base, is_partial=True, program=f"{PROGRAM} (a preset of kohya_ss)")
    if values and all(isinstance(value, dict) for key, value in values.items() if not key.startswith("_")):
        raise RefusedConfig("This file holds weights for merging, block by block, and no training settings.")
    given, labels = translated(values)
    taking = Taking(PROGRAM, given, around, base, labels)
    for key in ("network_module", "network_args: algo", "network_args: dora_wd", "network_args: preset"):
        taking.part(key, values.get("lora_type"))
    finishes = [_switched, _own_fields, *FINISHES, _warmup_ratio]
    rules = {
        **TABLE,
        **OWN,
        **{key: unused("this kind of LoRA doesn't read it") for key in given if key in kohya.FLAT_ARGUMENTS},
    }
    go_through(taking, rules, finishes)
    return taking.result(is_partial=True)


def is_preset(values: Mapping[str, Any]) -> bool:
    """Whether a JSON object is one of its presets."""
    named = "model_type" in values and ("lora_type" in values or "optimizer_type" in values or "is_builtin" in values)
    return named or isinstance(values.get("config"), dict) or set(values) >= {"sd", "sdxl"}


def translated(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The values under sd-scripts' names, and what each is called in the file."""
    given: dict[str, Any] = {}
    labels: dict[str, str] = {}
    for key, value in values.items():
        name = RENAMED.get(key, key)
        if name != key and name in values:
            name = key
        given[name], labels[name] = value, key
    kind = str(given.get("lora_type") or "").lower()
    if kind:
        del given["lora_type"]
        is_dora = kind == "dora"
        module, algorithm = kohya.LORA_TYPES.get("locon" if is_dora else kind, (f"unknown.{kind}", ""))
        given["network_module"] = module
        arguments: dict[str, Any] = {"algo": algorithm} if algorithm else {}
        if is_dora:
            arguments |= {"dora_wd": True, "preset": "attn-mlp"}
        for key in [key for key in given if key in kohya.FLAT_ARGUMENTS]:
            if key in kohya.READ_BY.get(module, ()) and given[key] not in ("", None, 0):
                arguments[key] = given.pop(key)
                labels[f"network_args: {key}"] = key
        given["network_args"] = arguments
        labels["network_module"] = labels["network_args: algo"] = labels["network_args: dora_wd"] = "lora_type"
        labels["network_args: preset"] = "lora_type"
    return given, labels


def _switched(taking: Taking) -> None:
    """Values that count only while a switch beside them is on."""
    attempt(taking, "min_snr_gamma_enabled", _drop_if_off("loss.min_snr_gamma"))
    attempt(taking, "ip_noise_gamma_enabled", _drop_if_off("noise.input_perturbation"))


def _drop_if_off(ours: str) -> Rule:
    def take(taking: Taking, key: str, value: Any) -> None:
        if as_switch(value):
            taking.pass_over(key, "is on, so the value beside it counts")
        else:
            taking.take(key, ours, 0.0, "switched off, whatever the value beside it is")

    return take


def _own_fields(taking: Taking) -> None:
    """Fields of its form that are arguments of optimizer and network elsewhere."""
    attempt(taking, "weight_decay", number("optimizer.weight_decay"))
    attempt(taking, "train_norm", unless_off("normalisation layers are not trained"))


def _warmup_ratio(taking: Taking) -> None:
    def take(state: Taking, key: str, value: Any) -> None:
        if as_number(value) == 0 or state.ours.get("optimizer.warmup_steps"):
            state.pass_over(key, OFF if as_number(value) == 0 else "lr_warmup_steps comes before it")
        else:
            take_share_of_steps(state, key, "optimizer.warmup_steps", as_number(value))

    attempt(taking, "lr_warmup_ratio", take)
