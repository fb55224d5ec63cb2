"""Settings that the page of kohya_ss saves as JSON: sd-scripts' options, some under other names, network arguments flat.

Facts from the page's own code; https://github.com/bmaltais/kohya_ss.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from trainer.config.foreign.report import Imported
from trainer.config.foreign.sd_scripts import FINISHES
from trainer.config.foreign.sd_scripts_keys import TABLE
from trainer.config.foreign.sd_scripts_network import ARGUMENTS
from trainer.config.foreign.sd_scripts_rules import NOTHING
from trainer.config.foreign.taking import (
    Finish,
    Rule,
    Surroundings,
    Taking,
    WrongValueError,
    as_number,
    go_through,
    later,
    unless_off,
    unused,
)
from trainer.config.foreign.words import ATTENTION, ONE_GPU, OTHER_FAMILY, OWN_LOG, attempt, take_share_of_steps

PROGRAM = "kohya_ss"
RENAMED: dict[str, str] = {
    "optimizer": "optimizer_type",
    "max_resolution": "resolution",
    "sdxl_no_half_vae": "no_half_vae",
    "sdxl_cache_text_encoder_outputs": "cache_text_encoder_outputs",
    "lora_network_weights": "network_weights",
    "lowvram": "lowram",
    "vae_batch_size": "vae_batch_size",
}
"""The page's name -> the option of sd-scripts that it becomes."""
LORA_TYPES: dict[str, tuple[str, str]] = {
    "standard": ("networks.lora", ""),
    "lora": ("networks.lora", ""),
    "lora-fa": ("networks.lora_fa", ""),
    "kohya locon": ("networks.lora", ""),
    "locon": ("lycoris.kohya", "locon"),
    "lycoris/locon": ("lycoris.kohya", "locon"),
    "lycoris/loha": ("lycoris.kohya", "loha"),
    "loha": ("lycoris.kohya", "loha"),
    "lycoris/lokr": ("lycoris.kohya", "lokr"),
    "lokr": ("lycoris.kohya", "lokr"),
    "lycoris/diag-oft": ("lycoris.kohya", "diag-oft"),
    "diag-oft": ("lycoris.kohya", "diag-oft"),
    "lycoris/boft": ("lycoris.kohya", "boft"),
    "boft": ("lycoris.kohya", "boft"),
    "lycoris/dylora": ("lycoris.kohya", "dylora"),
    "kohya dylora": ("networks.dylora", ""),
    "dylora": ("networks.dylora", ""),
    "lycoris/ia3": ("lycoris.kohya", "ia3"),
    "ia3": ("lycoris.kohya", "ia3"),
    "lycoris/glora": ("lycoris.kohya", "glora"),
    "glora": ("lycoris.kohya", "glora"),
    "lycoris/native fine-tuning": ("lycoris.kohya", "full"),
    "full": ("lycoris.kohya", "full"),
    "tlora": ("lycoris.kohya", "tlora"),
    "abba": ("lycoris.kohya", "abba"),
    "kohya loha": ("networks.loha", ""),
    "kohya lokr": ("networks.lokr", ""),
    "flux1": ("networks.lora_flux", ""),
    "flux1 oft": ("networks.oft_flux", ""),
    "sd3": ("networks.lora_sd3", ""),
    "lumina": ("networks.lora_lumina", ""),
    "anima": ("networks.lora_anima", ""),
    "hunyuanimage-2.1": ("networks.lora_hunyuan_image", ""),
}
"""Kind of LoRA in small letters -> module, and the algorithm for LyCORIS."""
_DROPOUTS = frozenset({"rank_dropout", "module_dropout"})
_PLUS = frozenset({"loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio"})
_BLOCKS = frozenset(
    {
        *("down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold", "block_dims", "block_alphas"),
        *("conv_block_dims", "conv_block_alphas"),
    }
)
_CONVOLUTIONS = frozenset({"conv_dim", "conv_alpha"})
READ_BY: dict[str, frozenset[str]] = {
    "networks.lora": _DROPOUTS | _PLUS | _BLOCKS,
    "networks.lora_fa": _DROPOUTS | _BLOCKS,
    "networks.dylora": _CONVOLUTIONS | {"unit"},
    "networks.loha": _DROPOUTS | _PLUS | _CONVOLUTIONS,
    "networks.lokr": _DROPOUTS | _PLUS | _CONVOLUTIONS | {"factor"},
    "lycoris.kohya": frozenset(ARGUMENTS) - _BLOCKS - {"unit"},
}
"""Which of the flat arguments a module gets from the page."""
ARGUMENT_NAMES: dict[str, str] = {"LyCORIS_preset": "preset", "constrain": "constraint"}
FLAT_ARGUMENTS = (frozenset(ARGUMENTS) | ARGUMENT_NAMES.keys()) - {"dropout", "algo", "preset", "constraint"}

ADDITIONAL = "additional_parameters"
_GUI_ONLY = "only the page of kohya_ss reads it"
_FULL_TRAINING = "only the training of whole models reads it"
OWN: dict[str, Rule] = {
    "dataset_config": unless_off("names another file, whose folders are not part of this one"),
    "lr_warmup": later,
    "stop_text_encoder_training": later,
    "stop_text_encoder_training_pct": later,
    "noise_offset_type": unused("says which of the two kinds of noise is meant"),
    "epoch": later,
    "sdxl": unused("the family is read from the model's own files"),
    ADDITIONAL: later,
    **dict.fromkeys(["save_as_bool", "file_path", "model_list", "dim_from_weights_checkbox"], unused(_GUI_ONLY)),
    "use_wandb": unused(OWN_LOG),
    **dict.fromkeys(["learning_rate_te", "learning_rate_te1", "learning_rate_te2"], unused(_FULL_TRAINING)),
    **dict.fromkeys(["fused_optimizer_groups", "blockwise_fused_optimizers"], unused(_FULL_TRAINING)),
    "train_inpainting": unless_off("inpainting models are not trained here"),
    **dict.fromkeys(
        [
            *("num_cpu_threads_per_process", "num_processes", "num_machines", "gpu_ids", "main_process_port"),
            *("dynamo_mode", "dynamo_use_fullgraph", "dynamo_use_dynamic", "extra_accelerate_launch_args"),
        ],
        unused(ONE_GPU),
    ),
    "multi_gpu": unless_off(ONE_GPU),
    "cross_attention": unused(ATTENTION),
    "conv_dims": unless_off("an older name of conv_block_dims, which kohya_ss does not read any more"),
    "conv_alphas": unless_off("an older name of conv_block_alphas, which kohya_ss does not read any more"),
    "train_lora_ggpo": unless_off("perturbing the weights by their gradient is not offered"),
    **dict.fromkeys(["ggpo_sigma", "ggpo_beta"], unused("only train_lora_ggpo reads it")),
    "loraplus_lr_ratio": later,
    **dict.fromkeys(
        ["flux1_checkbox", "sd3_checkbox", "hunyuan_image_checkbox", "anima_checkbox", "lumina_checkbox"],
        unless_off(OTHER_FAMILY),
    ),
    **dict.fromkeys(
        [
            *("t5xxl_lr", "mem_eff_save", "enable_all_linear", "show_timesteps", "show_timesteps_resolution"),
            *("img_attn_dim", "img_mlp_dim", "img_mod_dim", "single_dim", "txt_attn_dim", "txt_mlp_dim"),
            *("txt_mod_dim", "single_mod_dim", "in_dims", "v1_flux"),
        ],
        unused(OTHER_FAMILY),
    ),
}
_OTHER_PREFIXES = ("flux1_", "flux_", "sd3_", "hunyuan_", "anima_", "lumina_")


def import_kohya(
    values: Mapping[str, Any],
    around: Surroundings,
    base: Mapping[str, Any],
    *,
    is_partial: bool = False,
    program: str = PROGRAM,
) -> Imported:
    """Takes the settings that the page of kohya_ss saved, or a preset of it."""
    given, labels = translated(values)
    taking = Taking(program, given, around, base, labels)
    for key in ("network_module", "network_args: algo"):
        taking.part(key, values.get("LoRA_type", "Standard"))
    others = {key: unused(OTHER_FAMILY) for key in given if key.startswith(_OTHER_PREFIXES) and key not in OWN}
    finishes: list[Finish] = [_additional, _epoch, *FINISHES, _percentages]
    go_through(taking, {**TABLE, **others, **OWN, **_flat_rules(given), **_noise_rules(given)}, finishes)
    return taking.result(is_partial=is_partial)


def translated(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The values under sd-scripts' names, with the network's arguments gathered; and what each is called in the file."""
    given: dict[str, Any] = {}
    labels: dict[str, str] = {}
    for key, value in values.items():
        name = RENAMED.get(key, key)
        if name != key and name in values:
            name = key
        given[name] = value
        labels[name] = key
    if "epoch" in given and not _length_before_epoch(values):
        given.pop("max_train_epochs", None)
        given["max_train_epochs"] = given.pop("epoch")
        labels["max_train_epochs"] = "epoch"
    for name, option in typed_options(values).items():
        if name in TABLE and given.get(name) in (None, "", False, 0, "0"):
            given[name], labels[name] = option, f"{ADDITIONAL}: --{name}"
    _gather(given, labels)
    return given, labels


def _length_before_epoch(values: Mapping[str, Any]) -> str:
    """The key that says how long the run is before `epoch` counts; empty if none does."""
    keys = ("max_train_epochs", "max_train_steps")
    return next((key for key in keys if str(values.get(key, "")) not in ("", "None", *NOTHING)), "")


def _epoch(taking: Taking) -> None:
    if "epoch" in taking.given and not taking.is_done("epoch"):
        taking.pass_over("epoch", f"{_length_before_epoch(taking.given)} comes before it")


def _gather(given: dict[str, Any], labels: dict[str, str]) -> None:
    """Turns the kind of LoRA and the flat arguments that it reads into a module and its arguments."""
    kind = str(given.pop("LoRA_type", None) or "Standard").strip().lower()
    module, algorithm = LORA_TYPES.get(kind, ("", ""))
    if module:
        given["network_module"] = module
    elif kind:
        given["network_module"] = f"unknown.{kind}"
    labels["network_module"] = labels["network_args: algo"] = "LoRA_type"
    read = READ_BY.get(module, frozenset())
    if kind == "kohya locon":
        read |= _CONVOLUTIONS
    arguments = {"algo": algorithm} if algorithm else {}
    for key in [key for key in given if key in FLAT_ARGUMENTS]:
        name = ARGUMENT_NAMES.get(key, key)
        if name in read and given[key] not in ("", None):
            arguments[name] = given.pop(key)
            labels[f"network_args: {name}"] = key
    given["network_args"] = arguments


def _flat_rules(given: Mapping[str, Any]) -> dict[str, Rule]:
    """Flat arguments that are left over are those which this kind of LoRA does not read."""
    return {key: unused("this kind of LoRA doesn't read it") for key in given if key in FLAT_ARGUMENTS}


def _noise_rules(given: Mapping[str, Any]) -> dict[str, Rule]:
    """The page passes on only one of two kinds of noise."""
    kind = str(given.get("noise_offset_type", ""))
    other = {
        "Original": ("multires_noise_iterations", "multires_noise_discount"),
        "Multires": ("noise_offset", "adaptive_noise_scale", "noise_offset_random_strength"),
    }
    return {key: unused(f"noise_offset_type is {kind}, so it isn't used") for key in other.get(kind, ())}


def _percentages(taking: Taking) -> None:
    """Warm-up and the end of the text encoder's training are given in percent of the run."""
    for key in ("stop_text_encoder_training", "stop_text_encoder_training_pct"):
        attempt(taking, key, lambda state, name, value: _share(state, name, value, "lora.text_encoder_stop_step"))
    if taking.ours.get("optimizer.warmup_steps") and taking.value("lr_warmup") is not None:
        taking.pass_over("lr_warmup", "lr_warmup_steps comes before it")
    attempt(taking, "lr_warmup", lambda state, name, value: _share(state, name, value, "optimizer.warmup_steps"))


def _share(taking: Taking, key: str, value: Any, ours: str) -> None:
    percent = as_number(value)
    if percent == 0:
        taking.pass_over(key, "is 0 there, so it does nothing")
    elif percent < 0:
        raise WrongValueError("is below 0")
    else:
        take_share_of_steps(taking, key, ours, percent / 100)


def typed_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `additional_parameters`, which the page hands on as they are typed; empty if it is no command line."""
    found: dict[str, Any] = {}
    try:
        words = shlex.split(str(values.get(ADDITIONAL) or ""))
    except ValueError:
        return found
    name = ""
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            found[name] = value if equals else True
        elif name:
            found[name] = word if found[name] is True else f"{found[name]} {word}"
    return found


def _additional(taking: Taking) -> None:
    """Tells those typed options that are none, or that stand in a field of the page as well."""
    if taking.value(ADDITIONAL) is None:
        return
    options = typed_options(taking.given)
    if not options:
        taking.refuse(ADDITIONAL, "is not a list of --NAME VALUE")
    for name, value in options.items():
        label = f"{ADDITIONAL}: --{name}"
        taking.part(label, value)
        if name not in TABLE:
            taking.refuse(label, "is not known as an option of sd-scripts")
        elif taking.given.get(name) != value:
            taking.refuse(label, "stands in a field of the page as well, and that one is taken")
    taking.settle(ADDITIONAL)
