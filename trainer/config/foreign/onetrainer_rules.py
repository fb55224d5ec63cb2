"""Settings of OneTrainer that only make sense together: adapter and layers, parts, optimizer, losses, lengths, lists."""

from __future__ import annotations

from typing import Any

from trainer.config.foreign.sd_scripts_rules import OPTIMIZER_DEFAULTS
from trainer.config.foreign.taking import (
    OFF,
    Rule,
    Taking,
    WrongValueError,
    as_number,
    as_switch,
    as_text,
    number,
    switch,
    text,
    whole,
)
from trainer.config.foreign.words import (
    attempt,
    epochs_as_steps,
    one_rate,
    steps_per_epoch,
    take_optimizer,
    take_share_of_steps,
)

LAYERS = {"attn-only": "attention", "attn-mlp": "attention+ff+proj", "full": "all"}
"""Their preset of layers -> our targets."""
TIMED = "their clock is time, ours is steps: set {ours}"
OPTIMIZER_FIELDS: dict[str, str] = {
    "beta1": "optimizer.beta1",
    "beta2": "optimizer.beta2",
    "beta3": "optimizer.beta3",
    "eps": "optimizer.epsilon",
    "weight_decay": "optimizer.weight_decay",
    "d_coef": "optimizer.d_coefficient",
    "momentum": "optimizer.momentum",
}
OPTIMIZER_SILENT = frozenset(
    {
        *(
            "adam_w_mode",
            "amsgrad",
            "bias_correction",
            "block_wise",
            "capturable",
            "decouple",
            "differentiable",
            "foreach",
        ),
        *("fsdp_in_use", "fused", "fused_back_pass", "is_paged", "log_every", "min_8bit_size", "quant_block_size"),
        *("optim_bits", "percentile_clipping", "relative_step", "safeguard_warmup", "scale_parameter", "use_triton"),
        *(
            "stochastic_rounding",
            "use_bias_correction",
            "warmup_init",
            "muon_hidden_layers",
            "muon_adam_config",
            "compile",
        ),
        *("decoupled_decay", "factored", "factored_fp32", "split_groups", "split_groups_mean", "d_limiter", "rectify"),
        *(
            "use_schedulefree",
            "rms_rescaling",
            "weight_decay_by_lr",
            "adam_debias",
            "use_speed",
            "d0",
            "eps2",
            "__version",
        ),
    }
)
"""Arguments of their optimizers that are part of a row here, or say how the same step is computed."""


# -- the adapter --


def peft(taking: Taking) -> None:
    """Kind of adapter, rank, alpha and layers. Theirs takes convolutions along with every other layer."""
    kind = str(taking.value("peft_type", "LORA"))
    is_dora = _on(taking, "lora_decompose") and kind == "LORA"
    plain = "lora" if taking.value("layer_filter_preset") in ("attn-only", "attn-mlp") else "locon"
    adapters = {"LORA": "dora" if is_dora else plain, "LOHA": "loha", "LOKR": "lokr", "OFT_2": "oft"}
    ours = adapters.get(kind)
    if ours is None:
        taking.refuse("peft_type", "there is no such adapter here; a plain LoRA is trained instead")
    elif "peft_type" in taking.given:
        taking.take("peft_type", "lora.adapter", ours, "theirs covers the convolutions too" if ours == "locon" else "")
    else:
        taking.left_out("peft_type", kind, "lora.adapter", ours)
    if "lora_decompose" in taking.given:
        taking.pass_over("lora_decompose", "makes it a DoRA: lora.adapter" if is_dora else OFF)
    attempt(taking, "lora_decompose_output_axis", _output_axis)
    rank_key = "lokr_dim" if kind == "LOKR" and "lokr_dim" in taking.given else "lora_rank"
    for key in ("lora_rank", "lokr_dim"):
        if key in taking.given and key != rank_key and not taking.is_done(key):
            taking.pass_over(key, "this adapter has its rank from another field")
    attempt(taking, rank_key, whole("lora.rank"))
    attempt(taking, "lora_alpha", number("lora.alpha"))
    if taking.value("lora_alpha") is None:
        taking.left_out("lora_alpha", 1.0, "lora.alpha", 1.0)
    _only_for(taking, "oft_block_size", kind == "OFT_2", "lora.block_size")
    _only_for(taking, "lokr_decompose_factor", kind == "LOKR", "lora.lokr_factor")
    if _on(taking, "lokr_full_matrix") and kind == "LOKR":
        taking.refuse("lokr_full_matrix", "the rank of a LoKr is limited by lora.rank")
    elif "lokr_full_matrix" in taking.given and not taking.is_done("lokr_full_matrix"):
        taking.pass_over("lokr_full_matrix", OFF if kind == "LOKR" else "only LoKr reads it")
    attempt(taking, "lora_model_name", text("lora.continue_from"))
    _layers(taking)


def _on(taking: Taking, key: str) -> bool:
    return str(taking.value(key, False)).lower() in ("true", "1")


def _only_for(taking: Taking, key: str, applies: bool, ours: str) -> None:
    if applies:
        attempt(taking, key, whole(ours))
    elif key in taking.given and not taking.is_done(key):
        taking.pass_over(key, "this adapter doesn't read it")


def _output_axis(taking: Taking, key: str, value: Any) -> None:
    if as_switch(value):
        taking.refuse(key, "a DoRA here has its norm along one axis, that of the files that other tools read")
    else:
        taking.pass_over(key, OFF)


def _layers(taking: Taking) -> None:
    """Their filter is a choice, or texts that a layer's name holds."""
    preset = str(taking.value("layer_filter_preset", "full"))
    if preset in LAYERS:
        if "layer_filter_preset" in taking.given:
            taking.take("layer_filter_preset", "lora.targets", LAYERS[preset])
        else:
            taking.left_out("layer_filter_preset", preset, "lora.targets", LAYERS[preset])
        for key in ("layer_filter", "layer_filter_regex"):
            if taking.value(key) is not None and not taking.is_done(key):
                taking.pass_over(key, "is only read with a filter of one's own")
        return
    names = [part.strip() for part in str(taking.value("layer_filter", "")).split(",") if part.strip()]
    is_regex = _on(taking, "layer_filter_regex")
    lines = names if is_regex else [part.replace(".", r"\.") for part in names]
    if lines:
        taking.take("layer_filter", "lora.target_patterns", lines, "" if is_regex else "a text in a name as a pattern")
        taking.pass_over("layer_filter_preset", "the filter itself is taken")
    else:
        taking.refuse("layer_filter_preset", "names layers that are not in layer_filter")
    if taking.value("layer_filter_regex") is not None:
        taking.pass_over("layer_filter_regex", "goes with layer_filter")


# -- parts and optimizer --


def parts_trained(taking: Taking) -> None:
    """Which parts are trained, and until when. Theirs trains the text encoders unless it says otherwise."""
    if "unet.train" in taking.given:
        attempt(taking, "unet.train", switch("lora.train_denoiser"))
    first, second = (
        str(taking.value(f"{part}.train", True)).lower() in ("true", "1") for part in ("text_encoder", "text_encoder_2")
    )
    if "text_encoder.train" in taking.given:
        attempt(
            taking,
            "text_encoder.train",
            switch("lora.train_text_encoder"),
        )
    else:
        taking.left_out("text_encoder.train", True, "lora.train_text_encoder", True)
    if "text_encoder_2.train" in taking.given:
        if first == second:
            taking.pass_over("text_encoder_2.train", "both text encoders are trained or neither")
        else:
            taking.refuse("text_encoder_2.train", "both text encoders are trained or neither; the first one decides")
    _precision(taking)
    attempt(taking, "masked_training", _masks)
    if taking.value("unmasked_weight") is not None and not taking.is_done("unmasked_weight"):
        taking.pass_over("unmasked_weight", "is only read with masks")


def _precision(taking: Taking) -> None:
    """The format that is computed in, where that of the weights was not said."""

    def take(state: Taking, key: str, value: Any) -> None:
        words = {"FLOAT_32": "fp32", "TFLOAT_32": "fp32", "FLOAT_16": "fp16", "BFLOAT_16": "bf16"}
        word = words.get(as_text(value), "")
        if state.ours.get("model.precision") == word:
            state.pass_over(key, "as the weights of the base")
        elif word and "model.precision" not in state.ours:
            state.take(key, "model.precision", word)
        elif word:
            state.pass_over(key, "the base computes in the format of its weights: model.precision")
        else:
            state.refuse(key, "the base computes in fp32, fp16 or bf16")

    attempt(taking, "train_dtype", take)


def _masks(taking: Taking, key: str, value: Any) -> None:
    if taking.take(key, "loss.use_masks", as_switch(value)) and as_switch(value):
        attempt(
            taking,
            "unmasked_weight",
            number("loss.unmasked_weight"),
        )


def optimizer(taking: Taking) -> None:
    """The optimizer, its arguments and the learning rates; a text encoder without a rate takes the common one."""
    rates = ("learning_rate", "unet.learning_rate", "text_encoder.learning_rate", "text_encoder_2.learning_rate")
    name = taking.value("optimizer.optimizer")
    fields = [key for key in taking.given if key.startswith("optimizer.") and key != "optimizer.optimizer"]
    taken = name is None or take_optimizer(taking, "optimizer.optimizer", str(name).replace("_", ""), (*rates, *fields))
    for key in fields:
        attempt(taking, key, _optimizer_field)
        if not taking.is_done(key):
            taking.pass_over(key, "is empty there")
    if not taken:
        return
    if name is not None and taking.value("optimizer.weight_decay") is None:
        for setting, default in OPTIMIZER_DEFAULTS.get(str(taking.ours.get("optimizer.name")), {}).items():
            if setting not in taking.ours:
                taking.left_out(f"optimizer.{setting.rpartition('.')[2]}", default, setting, default)
    common = taking.value("learning_rate", 3e-6)
    unet = taking.value("unet.learning_rate")
    if unet is not None:
        attempt(taking, "unet.learning_rate", number("optimizer.learning_rate"))
        if "learning_rate" in taking.given:
            taking.pass_over("learning_rate", "unet.learning_rate comes before it")
    elif "learning_rate" in taking.given:
        attempt(taking, "learning_rate", number("optimizer.learning_rate"))
    else:
        taking.left_out("learning_rate", 3e-6, "optimizer.learning_rate", 3e-6)
    attempt(taking, "text_encoder.learning_rate", number("optimizer.text_encoder_learning_rate"))
    if "optimizer.text_encoder_learning_rate" not in taking.ours and taking.ours.get("lora.train_text_encoder"):
        try:
            rate = as_number(common)
            taking.left_out("text_encoder.learning_rate", rate, "optimizer.text_encoder_learning_rate", rate)
        except WrongValueError:
            pass  # told for learning_rate itself
    one_rate(taking, "text_encoder.learning_rate")
    if taking.value("text_encoder_2.learning_rate") is not None and not taking.is_done("text_encoder_2.learning_rate"):
        taking.pass_over("text_encoder_2.learning_rate", "both text encoders have one rate, that of the first")


def _optimizer_field(taking: Taking, key: str, value: Any) -> None:
    name = key.partition(".")[2]
    if name in OPTIMIZER_FIELDS:
        taking.take(key, OPTIMIZER_FIELDS[name], as_number(value))
    elif value is False or value == {} or name in OPTIMIZER_SILENT:
        taking.pass_over(key, OFF if value is False else "is part of the row of the optimizer")
    else:
        taking.refuse(key, "this argument is not offered for any optimizer here")


# -- loss and noise --


def loss_mixture(taking: Taking) -> None:
    """Theirs adds up several losses; ours is one of them."""
    kinds = {
        "mse_strength": ("l2", 1.0),
        "mae_strength": ("l1", 0.0),
        "huber_strength": ("huber", 0.0),
        "log_cosh_strength": ("", 0.0),
    }
    strengths: dict[str, float] = {}
    for key, (_, default) in kinds.items():
        try:
            strengths[key] = as_number(taking.value(key, default))
        except WrongValueError as error:
            taking.refuse(key, f"{error}, so it can't be read")
            strengths[key] = default
    used = [key for key, strength in strengths.items() if strength > 0]
    best = max(strengths, key=lambda key: strengths[key])
    for key in kinds:
        if key not in taking.given or taking.is_done(key):
            continue
        if strengths[key] == 0:
            taking.pass_over(key, OFF)
        elif key == best and kinds[key][0]:
            alone = len(used) == 1 and strengths[key] == 1
            taking.take(key, "loss.type", kinds[key][0], "" if alone else "one loss is used, at its full strength")
        else:
            taking.refuse(key, "only one loss is used, and a log-cosh loss is not offered; huber is near to it")
    if taking.ours.get("loss.type") == "huber":
        attempt(taking, "huber_delta", number("loss.huber_delta"))
        taking.left_out("huber_schedule", "constant", "loss.huber_schedule", "constant")
    elif "huber_delta" in taking.given:
        taking.pass_over("huber_delta", "only the huber loss reads it")


def loss_weight(taking: Taking) -> None:
    """How much each timestep counts."""
    kind = str(taking.value("loss_weight_fn", "CONSTANT"))
    strength = "loss_weight_strength"
    if kind == "MIN_SNR_GAMMA":
        taking.pass_over("loss_weight_fn", "is loss.min_snr_gamma, whose number is beside it")
        attempt(taking, strength, number("loss.min_snr_gamma"))
        if "loss.min_snr_gamma" not in taking.ours:
            taking.left_out(strength, 5.0, "loss.min_snr_gamma", 5.0)
    elif kind == "DEBIASED_ESTIMATION":
        taking.take("loss_weight_fn", "loss.debiased_estimation", True)
    elif kind != "CONSTANT":
        taking.refuse("loss_weight_fn", "timesteps are weighted by min-SNR or debiased, or all alike")
    elif "loss_weight_fn" in taking.given:
        taking.pass_over("loss_weight_fn", OFF)
    if strength in taking.given and not taking.is_done(strength):
        taking.pass_over(strength, "only the weighting by min-SNR reads it")


def noise_range(taking: Taking) -> None:
    """Shares of the schedule's thousand timesteps."""

    for key, ours in (("min_noising_strength", "noise.min_timestep"), ("max_noising_strength", "noise.max_timestep")):
        attempt(taking, key, _share_of_schedule(ours))


def _share_of_schedule(ours: str) -> Rule:
    def take(taking: Taking, key: str, value: Any) -> None:
        taking.take(key, ours, round(as_number(value) * 1000), "a share of the 1000 timesteps")

    return take


def timesteps(taking: Taking) -> None:
    """How timesteps are drawn."""
    kind = str(taking.value("timestep_distribution", "UNIFORM"))
    key = "timestep_distribution"
    if kind == "LOGIT_NORMAL":
        taking.take(key, "noise.timestep_law", "logit_normal")
        attempt(taking, "noising_bias", number("noise.timestep_mean"))
        attempt(taking, "noising_weight", _logit_scale)
    elif key in taking.given:
        if kind == "UNIFORM":
            taking.take(key, "noise.timestep_law", "uniform")
        else:
            taking.refuse(key, "timesteps are drawn evenly, or by noise.timestep_law")
    for name in ("noising_bias", "noising_weight"):
        if name in taking.given and not taking.is_done(name):
            taking.pass_over(name, "this law of timesteps doesn't read it")


def _logit_scale(taking: Taking, key: str, value: Any) -> None:
    taking.take(key, "noise.timestep_scale", as_number(value) + 1.0, "theirs adds 1 to it")


# -- lengths --


def lengths(taking: Taking) -> None:
    """Epochs, warm-up, and what is done every so often."""
    if "epochs" in taking.given:
        attempt(taking, "epochs", lambda state, key, _value: epochs_as_steps(state, key, "training.max_train_steps"))
    else:
        taking.part("epochs", 100)
        per_epoch = steps_per_epoch(taking)
        if per_epoch is None:
            taking.notes.append("The file leaves out the epochs, which means 100: set training.max_train_steps.")
        else:
            taking.left_out("epochs", 100, "training.max_train_steps", 100 * per_epoch)
    if "learning_rate_warmup_steps" in taking.given:
        attempt(taking, "learning_rate_warmup_steps", _warmup)
    elif taking.values()["training.max_train_steps"] > 200:
        taking.left_out("learning_rate_warmup_steps", 200, "optimizer.warmup_steps", 200)
    for key, unit, ours, usual in (
        ("save_every", "save_every_unit", "save.every_n_steps", "NEVER"),
        ("sample_after", "sample_after_unit", "sample.every_n_steps", "MINUTE"),
        ("validate_after", "validate_after_unit", "validation.every_n_steps", "EPOCH"),
        (
            "text_encoder.stop_training_after",
            "text_encoder.stop_training_after_unit",
            "lora.text_encoder_stop_step",
            "EPOCH",
        ),
    ):
        _timed(taking, key, unit, ours, usual)
    for part in ("unet", "text_encoder_2", "vae"):
        for name in ("stop_training_after", "stop_training_after_unit"):
            if f"{part}.{name}" in taking.given and not taking.is_done(f"{part}.{name}"):
                taking.pass_over(f"{part}.{name}", "only the text encoders can stop before the end, both together")


def _warmup(taking: Taking, key: str, value: Any) -> None:
    steps = as_number(value)
    if 0 < steps <= 1:
        take_share_of_steps(taking, key, "optimizer.warmup_steps", steps)
    else:
        taking.take(key, "optimizer.warmup_steps", round(steps))


def _timed(taking: Taking, key: str, unit_key: str, ours: str, usual: str) -> None:
    unit = str(taking.value(unit_key, usual))
    if unit_key in taking.given and not taking.is_done(unit_key):
        taking.pass_over(unit_key, f"goes with {key}")
    if taking.value(key) is None or taking.is_done(key):
        return
    if unit == "NEVER" or str(taking.given[key]) in ("0", "0.0"):
        taking.pass_over(key, OFF)
    elif unit == "STEP":
        attempt(taking, key, whole(ours))
    elif unit == "EPOCH":
        epochs_as_steps(taking, key, ours)
    else:
        taking.refuse(key, TIMED.format(ours=ours))
