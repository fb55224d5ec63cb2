"""Settings of sd-scripts whose meaning takes more than a row: sizes, formats, masks, lengths, rates, prompts."""

from __future__ import annotations

import math
import re
from typing import Any

from trainer.config.foreign.taking import (
    OFF,
    Rule,
    Taking,
    WrongValueError,
    as_list,
    as_number,
    as_switch,
    as_text,
    as_whole,
)
from trainer.config.foreign.words import (
    attempt,
    epochs_as_steps,
    one_rate,
    plain_name,
    take_optimizer,
    take_share_of_steps,
)

ADAM_BETAS = ("optimizer.beta1", "optimizer.beta2", "optimizer.beta3")
OPTIMIZER_DEFAULTS: dict[str, dict[str, float]] = {
    "lion": {"optimizer.beta2": 0.99, "optimizer.weight_decay": 0.0},
    "prodigy": {"optimizer.weight_decay": 0.0},
    "came": {"optimizer.weight_decay": 0.0},
    "adafactor": {"optimizer.weight_decay": 0.0},
    "schedule_free_adamw": {"optimizer.weight_decay": 0.0},
}
"""What the libraries behind sd-scripts' optimizers take when nothing is said, where it is not our default."""
OPTIMIZER_ARGS: dict[str, str] = {
    "weight_decay": "optimizer.weight_decay",
    "eps": "optimizer.epsilon",
    "d_coef": "optimizer.d_coefficient",
    "momentum": "optimizer.momentum",
    "beta3": "optimizer.beta3",
}
OPTIMIZER_ARGS_UNUSED = {
    "decouple": "weight decay is always decoupled",
    "use_bias_correction": "bias correction is part of the row of the optimizer",
    "safeguard_warmup": "a warm-up is kept out of the estimate of the rate by the row of the optimizer",
    "scale_parameter": "the learning rate is used as it is given",
    "relative_step": "the learning rate is used as it is given",
    "warmup_init": "the warm-up is optimizer.warmup_steps",
    "foreach": "it changes only the speed",
    "fused": "it changes only the speed",
}
NOTHING = ("0", "0.0")
"""How a number that stands for nothing is written."""


# -- rules for one key --


def positive(rule: Rule) -> Rule:
    """Takes 0 and 1-as-text as the program does: 0 means that nothing was set."""

    def checked(taking: Taking, key: str, value: Any) -> None:
        if as_number(value) == 0:
            taking.pass_over(key, "is 0 there, which stands for their default")
        else:
            rule(taking, key, value)

    return checked


def prediction(taking: Taking, key: str, value: Any) -> None:
    """v-prediction is taken; its absence is left to the model's own files."""
    if as_switch(value):
        taking.take(key, "model.prediction_type", "v_prediction")
    else:
        taking.pass_over(key, "what a base predicts is read from its own files")


def terminal_snr(taking: Taking, key: str, value: Any) -> None:
    """As `prediction`."""
    if as_switch(value):
        taking.take(key, "model.zero_terminal_snr", "on")
    else:
        taking.pass_over(key, "the noise schedule of a base is read from its own files")


def compute_format(taking: Taking, key: str, value: Any) -> None:
    """mixed_precision is the format of their frozen base as well."""
    words = {"no": "fp32", "fp16": "fp16", "bf16": "bf16", "fp32": "fp32", "float": "fp32"}
    word = as_text(value).lower()
    if word not in words:
        taking.refuse(key, "is none of no, fp16 and bf16")
    else:
        taking.take(key, "model.precision", words[word])


def file_precision(taking: Taking, key: str, value: Any) -> None:
    """The format of the LoRA file."""
    words = {"float": "fp32", "fp32": "fp32", "fp16": "fp16", "bf16": "bf16"}
    word = as_text(value).lower()
    if word not in words:
        taking.refuse(key, "is none of float, fp16 and bf16")
    else:
        taking.take(key, "save.precision", words[word])


def save_as(taking: Taking, key: str, value: Any) -> None:
    """Only safetensors are written."""
    if as_text(value).lower() == "safetensors":
        taking.pass_over(key, "LoRAs are always written as safetensors")
    else:
        taking.refuse(key, "other formats can run code when they are opened, so LoRAs are written as safetensors only")


def seed(taking: Taking, key: str, value: Any) -> None:
    """0 or nothing stands for a random seed in some of these programs, and is a seed here."""
    number = as_whole(value)
    if number < 0:
        taking.pass_over(key, "stands for a random seed, and a run here always has a known one")
    else:
        taking.take(key, "training.seed", number)


def bucket_pixels(taking: Taking, key: str, value: Any) -> None:
    """`512`, `512,768` or [512, 768]: what counts is the area."""
    parts = as_list(value) if not isinstance(value, str) else value.split(",")
    sides = [as_whole(part) for part in parts]
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise WrongValueError("is not one side or width and height")
    if len(set(sides)) == 1:
        taking.take(key, "dataset.resolution", sides[0])
    else:
        side = round(math.sqrt(sides[0] * sides[1]))
        taking.take(key, "dataset.resolution", side, "a square of the same area; buckets keep the shapes")


def aspect_limit(taking: Taking, key: str, _value: Any) -> None:
    """Shortest and longest side of a bucket together say how wide it may be; the second of the two keys is told so."""
    if key == "min_bucket_reso" and taking.value("max_bucket_reso") is not None:
        taking.pass_over(key, "goes with max_bucket_reso into dataset.max_aspect_ratio")
        return
    shortest = as_number(taking.value("min_bucket_reso", 256))
    longest = as_number(taking.value("max_bucket_reso", 1024))
    side = taking.values()["dataset.resolution"]
    if shortest <= 0 or longest <= 0:
        taking.pass_over(key, "is 0 there, which stands for their default")
        return
    aspect = min(8.0, max(1.0, min(longest, side * side / shortest) / shortest))
    taking.take(key, "dataset.max_aspect_ratio", round(aspect, 2), "how wide their buckets can become with these sides")


def regularisation(taking: Taking, key: str, value: Any) -> None:
    """A folder of pictures that must not be forgotten."""
    taking.take(key, "dataset.regularisation", [as_text(value)])


def random_crop(taking: Taking, key: str, value: Any) -> None:
    """Theirs crops anew each time, which rules out caching; here some crops are cached and taken in turn."""
    if as_switch(value):
        taking.take(key, "dataset.random_crops", 4, "four crops of each picture are cached and taken in turn")
    else:
        taking.take(key, "dataset.random_crops", 0)


def masks(taking: Taking, key: str, value: Any) -> None:
    """Their masked loss learns nothing at all outside of a mask."""
    is_on = as_switch(value)
    other = "masked_loss" if key == "alpha_mask" else "alpha_mask"
    if not is_on and str(taking.value(other, False)).lower() in ("true", "1"):
        taking.pass_over(key, OFF)
    elif not is_on:
        taking.take(key, "loss.use_masks", False)
    elif taking.take(key, "loss.use_masks", True):
        taking.take(key, "loss.unmasked_weight", 0.0, "theirs learns nothing where a mask is black")


def huber(taking: Taking, key: str, value: Any) -> None:
    """Only read by the losses that have a bend."""
    if as_text(taking.value("loss_type", "l2")).lower() not in ("huber", "smooth_l1"):
        taking.pass_over(key, "only the losses huber and smooth_l1 read it")
    elif key == "huber_c":
        taking.take(key, "loss.huber_delta", as_number(value))
    else:
        taking.take(key, "loss.huber_schedule", as_text(value).lower())


def keep_last(taking: Taking, key: str, value: Any) -> None:
    """Theirs counts steps or epochs back, ours files."""
    if as_whole(value) <= 0:
        taking.pass_over(key, "is 0 there, which keeps every file, as here")
        return
    every = {"save_last_n_epochs": "save_every_n_epochs", "save_last_n_steps": "save_every_n_steps"}[key]
    between = max(1.0, as_number(taking.value(every, 1)))
    files = max(1, math.ceil(as_whole(value) / between))
    taking.take(key, "save.keep_last_loras", files, f"so many files lie within {as_whole(value)} of them")


# -- finishes: keys that only make sense together --


def loss_kind(taking: Taking) -> None:
    """The loss, and what sd-scripts bends it by when nothing is said."""

    def take(state: Taking, key: str, value: Any) -> None:
        kind = as_text(value).lower()
        if state.take(key, "loss.type", kind) and kind in ("huber", "smooth_l1"):
            for left, ours, default in (
                ("huber_c", "loss.huber_delta", 0.1),
                ("huber_schedule", "loss.huber_schedule", "snr"),
            ):
                if state.value(left) is None:
                    state.left_out(left, default, ours, default)

    attempt(taking, "loss_type", take)


def optimizer(taking: Taking) -> None:
    """What is trained, the optimizer under any of its three keys, its arguments, and the learning rates."""
    _trained_parts(taking)
    legacy = [key for key in ("use_8bit_adam", "use_lion_optimizer") if str(taking.value(key)).lower() in ("true", "1")]
    key = "optimizer_type" if taking.value("optimizer_type") is not None else next(iter(legacy), "")
    rates = ("learning_rate", "unet_lr", "text_encoder_lr", "optimizer_args")
    names = {"use_8bit_adam": "adamw8bit", "use_lion_optimizer": "lion"}
    for other in ("use_8bit_adam", "use_lion_optimizer"):
        if other in taking.given and other != key and not taking.is_done(other):
            taking.pass_over(other, OFF if other not in legacy else "optimizer_type says it already")
    if key and not take_optimizer(taking, key, names.get(key) or str(taking.given[key]), rates):
        return
    _optimizer_args(taking)
    _rates(taking)
    one_rate(taking, "text_encoder_lr")


def _optimizer_args(taking: Taking) -> None:
    given: dict[str, str] = {}
    key = "optimizer_args"
    if taking.value(key) is not None and not taking.is_done(key):
        for part in split_args(taking.given[key]):
            name, equals, value = part.partition("=")
            if not equals:
                taking.refuse(f"{key}: {name}", "is not NAME=VALUE")
            else:
                given[name.strip()] = value.strip().strip("\"'")
        for name, value in given.items():
            taking.part(f"{key}: {name}", value)
            optimizer_arg(taking, f"{key}: {name}", name, value)
        taking.settle(key)
    ours = taking.ours.get("optimizer.name")
    for setting, default in OPTIMIZER_DEFAULTS.get(str(ours), {}).items():
        if setting not in taking.ours and taking.value("optimizer_type") is not None:
            taking.left_out(f"optimizer_args: {setting.rpartition('.')[2]}", default, setting, default)


def optimizer_arg(taking: Taking, key: str, name: str, value: Any) -> None:
    """One argument of an optimizer by its usual name; `betas` as a list or as text such as "0.9, 0.99"."""
    try:
        if name == "betas":
            betas = re.findall(r"[^\s,()\[\]]+", value) if isinstance(value, str) else as_list(value)
            for ours, beta in zip(ADAM_BETAS, betas, strict=False):
                taking.take(key, ours, as_number(beta))
        elif name in OPTIMIZER_ARGS:
            taking.take(key, OPTIMIZER_ARGS[name], as_number(value))
        elif name in OPTIMIZER_ARGS_UNUSED:
            taking.pass_over(key, OPTIMIZER_ARGS_UNUSED[name])
        else:
            taking.refuse(key, "this argument is not offered for any optimizer here")
    except WrongValueError as error:
        taking.refuse(key, f"{error}, so it can't be read")


def split_args(value: Any) -> list[str]:
    """Arguments as a list of texts, or as one text the way a command line takes them, quoted or not."""
    if isinstance(value, list):
        return [str(part) for part in value]
    if isinstance(value, dict):
        return [f"{name}={part}" for name, part in value.items()]
    found = re.findall(r"\"([^\"]*)\"|'([^']*)'|(\w+=(?:\([^)]*\)|\[[^\]]*\]|\S)+)|(\S+)", str(value))
    return [next(part for part in parts if part) for parts in found if any(parts)]


def _is_zero(value: Any) -> bool:
    return str(value) in NOTHING


def _trained_parts(taking: Taking) -> None:
    """Which of denoiser and text encoder is trained: said by switches, or by learning rates of 0."""
    unet_off, text_off = _is_zero(taking.value("unet_lr")), _is_zero(_first(taking.value("text_encoder_lr")))
    if unet_off and text_off:
        for key in ("unet_lr", "text_encoder_lr"):
            taking.pass_over(key, "both are 0 there, so learning_rate counts for both")
        unet_off = text_off = False
    is_on = {
        name: str(taking.value(name, False)).lower() in ("true", "1")
        for name in ("network_train_unet_only", "network_train_text_encoder_only", "cache_text_encoder_outputs")
    }
    only_unet = is_on["network_train_unet_only"] or is_on["cache_text_encoder_outputs"]
    for key, is_off, ours in (
        ("unet_lr", unet_off, "lora.train_denoiser"),
        ("text_encoder_lr", text_off, "lora.train_text_encoder"),
    ):
        if is_off:
            taking.take(key, ours, False, "a learning rate of 0 trains nothing")
    for name, ours, is_off in (
        ("network_train_unet_only", "lora.train_text_encoder", text_off or only_unet),
        (
            "network_train_text_encoder_only",
            "lora.train_denoiser",
            unet_off or is_on["network_train_text_encoder_only"],
        ),
    ):
        if name in taking.given and not taking.is_done(name):
            taking.take(name, ours, not is_off)
    if "cache_text_encoder_outputs" in taking.given and not taking.is_done("cache_text_encoder_outputs"):
        if is_on["cache_text_encoder_outputs"]:
            taking.take("cache_text_encoder_outputs", "lora.train_text_encoder", False)
        else:
            taking.pass_over("cache_text_encoder_outputs", "text that isn't trained on is encoded once in any case")


def _first(value: Any) -> Any:
    return (value[0] if value else None) if isinstance(value, list) else value


def _rates(taking: Taking) -> None:
    """unet_lr and text_encoder_lr come before learning_rate."""
    base = taking.value("learning_rate")
    attempt(taking, "unet_lr", lambda state, key, value: _rate(state, key, value, "optimizer.learning_rate"))
    attempt(taking, "text_encoder_lr", _text_rate)
    has_text_rate = "optimizer.text_encoder_learning_rate" in taking.ours
    if base is None or taking.is_done("learning_rate"):
        return
    if "optimizer.learning_rate" in taking.ours:
        taking.pass_over("learning_rate", "unet_lr comes before it")
    else:
        attempt(taking, "learning_rate", lambda state, key, value: _rate(state, key, value, "optimizer.learning_rate"))
    if not has_text_rate and taking.ours.get("lora.train_text_encoder") is not False and not _is_zero(base):
        try:
            taking.left_out("text_encoder_lr", base, "optimizer.text_encoder_learning_rate", as_number(base))
        except WrongValueError:
            return  # told for learning_rate itself


def _rate(taking: Taking, key: str, value: Any, ours: str) -> None:
    rate = as_number(value)
    if rate == 0:
        taking.pass_over(key, "is 0 there, so the other rates count")
    else:
        taking.take(key, ours, rate)


def _text_rate(taking: Taking, key: str, value: Any) -> None:
    several = isinstance(value, list) and len({str(part) for part in value}) > 1
    ours, reason = "optimizer.text_encoder_learning_rate", "both text encoders get the first rate" if several else ""
    taking.take(key, ours, as_number(_first(value)), reason)


def trains_text_encoder(taking: Taking) -> None:
    """A whole file of sd-scripts trains the text encoder unless it says otherwise."""
    if "lora.train_text_encoder" not in taking.ours:
        taking.left_out("network_train_unet_only", False, "lora.train_text_encoder", True)


def length(taking: Taking) -> None:
    """Steps or epochs (which come first there), and everything that is counted in epochs or shares of the run."""
    epochs, steps = taking.value("max_train_epochs"), taking.value("max_train_steps")
    if epochs is not None and str(epochs) not in NOTHING:
        epochs_as_steps(taking, "max_train_epochs", "training.max_train_steps")
        if steps is not None:
            name, is_off = taking.label("max_train_epochs"), str(steps) in NOTHING
            reason = f"is 0 there, so {name} counts" if is_off else f"{name} comes before it"
            taking.pass_over("max_train_steps", reason)
    elif epochs is not None:
        taking.pass_over("max_train_epochs", "is 0 there, so max_train_steps counts")
    attempt(taking, "max_train_steps", _steps)
    attempt(taking, "lr_warmup_steps", _warmup)
    for prefix, ours in (("save", "save"), ("sample", "sample"), ("validate", "validation")):
        key = f"{prefix}_every_n_epochs"
        attempt(taking, f"{prefix}_every_n_steps", _every(f"{ours}.every_n_steps"))
        if taking.value(key) is not None and f"{ours}.every_n_steps" in taking.ours:
            taking.pass_over(key, f"{prefix}_every_n_steps comes before it")
        elif taking.value(key) is not None:
            epochs_as_steps(taking, key, f"{ours}.every_n_steps")


def _steps(taking: Taking, key: str, value: Any) -> None:
    if as_whole(value) == 0:
        taking.pass_over(key, "is 0 there, so the epochs count")
    else:
        taking.take(key, "training.max_train_steps", as_whole(value))


def _every(ours: str) -> Rule:
    def take(taking: Taking, key: str, value: Any) -> None:
        if as_whole(value) == 0:
            taking.pass_over(key, OFF)
        else:
            taking.take(key, ours, as_whole(value))

    return take


def _warmup(taking: Taking, key: str, value: Any) -> None:
    steps = as_number(value)
    if 0 < steps < 1:
        take_share_of_steps(taking, key, "optimizer.warmup_steps", steps)
    else:
        taking.take(key, "optimizer.warmup_steps", as_whole(value))


def scheduler_class(taking: Taking) -> None:
    """A schedule given as a class of some module."""

    def take(state: Taking, key: str, value: Any) -> None:
        name = plain_name(as_text(value))
        known = {"rex": "rex", "cosineannealinglr": "cosine", "cosineannealing": "cosine"}
        ours = next((word for start, word in known.items() if name.startswith(start)), "")
        if ours:
            state.take(
                key, "optimizer.schedule", ours, "the schedule of that name; arguments of the class are not read"
            )
        else:
            state.refuse(key, "code of one's own can't be named in settings; choose one of the schedules here")

    attempt(taking, "lr_scheduler_type", take)
