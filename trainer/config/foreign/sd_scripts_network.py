"""The network of sd-scripts' settings: module, dimensions, the arguments of networks.lora and LyCORIS, block weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trainer.config.foreign.blocks import block_lines, curve, input_patterns, middle_patterns, output_patterns
from trainer.config.foreign.sd_scripts_rules import split_args
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
from trainer.config.foreign.words import OTHER_FAMILY

MAX_RANK = 256
MODULES: dict[str, tuple[str, str]] = {
    "networks.lora": ("lora", ""),
    "networks.lora_fa": ("lora", "LoRA-FA freezes half of each layer; a LoRA trains both halves"),
    "networks.dylora": (
        "lora",
        "DyLoRA trains all ranks up to this one at once; a LoRA is made smaller by resizing it",
    ),
    "networks.oft": ("oft", ""),
    "networks.loha": ("loha", ""),
    "networks.lokr": ("lokr", ""),
}
"""Module -> our adapter, and what is different."""
LYCORIS = "lycoris.kohya"
ALGORITHMS: dict[str, tuple[str, str]] = {
    "lora": ("locon", ""),
    "locon": ("locon", ""),
    "loha": ("loha", ""),
    "lokr": ("lokr", ""),
    "diag-oft": ("oft", ""),
    "oft": ("oft", ""),
    "boft": ("boft", ""),
    "dylora": ("locon", "DyLoRA trains all ranks up to this one at once; a LoCon is made smaller by resizing it"),
}
"""LyCORIS' `algo` -> our adapter, and what is different."""
NO_CONVOLUTIONS = frozenset({"attn-mlp", "attn-only", "full-lin", "unet-transformer-only"})
PRESETS: dict[str, str] = {
    "full": "attention+ff+proj",
    "attn-mlp": "attention+ff+proj",
    "attn-only": "attention",
    "unet-transformer-only": "attention+ff+proj",
}
"""LyCORIS' `preset` -> our targets."""
NO_ADAPTER = "there is no such adapter here; a plain LoRA is trained instead"
SCALED = "scale and rank go together: alpha is lowered with it, so that alpha / rank is as there"


def _shift(taking: Taking, ours: str, key: str, value: Any) -> None:
    taking.take(key, ours, value)


def _as_number(ours: str) -> Rule:
    return lambda taking, key, value: _shift(taking, ours, key, as_number(value))


def _as_whole(ours: str) -> Rule:
    return lambda taking, key, value: _shift(taking, ours, key, as_whole(value))


def _not_offered(reason: str) -> Rule:
    def rule(taking: Taking, key: str, value: Any) -> None:
        if str(value).lower() in ("false", "0", "0.0", "none", ""):
            taking.pass_over(key, OFF)
        else:
            taking.refuse(key, reason)

    return rule


def _handled(_taking: Taking, _key: str, _value: Any) -> None:
    """For arguments that `network` reads together."""


def _switch(ours: str) -> Rule:
    return lambda taking, key, value: _shift(taking, ours, key, as_switch(value))


def _preset(taking: Taking, key: str, value: Any) -> None:
    word = as_text(value)
    if word in PRESETS:
        _shift(taking, "lora.targets", key, PRESETS[word])
        if word == "unet-transformer-only":
            taking.ours["lora.train_text_encoder"] = False
    else:
        taking.refuse(key, "this choice of layers is not offered; name them with lora.target_patterns")


def _lokr_factor(taking: Taking, key: str, value: Any) -> None:
    if taking.ours.get("lora.adapter") == "lokr":
        _shift(taking, "lora.lokr_factor", key, as_whole(value))
    else:
        taking.pass_over(key, "only LoKr reads it")


def _block_size(taking: Taking, key: str, value: Any) -> None:
    if taking.ours.get("lora.adapter") in ("oft", "boft"):
        _shift(taking, "lora.block_size", key, as_whole(value))
    else:
        taking.pass_over(key, "only OFT and BOFT read it")


ARGUMENTS: dict[str, Rule] = {
    "algo": _handled,
    "conv_dim": _handled,
    "conv_rank": _handled,
    "conv_alpha": _handled,
    "dora_wd": _handled,
    "weight_decompose": _handled,
    "down_lr_weight": _handled,
    "mid_lr_weight": _handled,
    "up_lr_weight": _handled,
    "block_lr_zero_threshold": _handled,
    "block_dims": _handled,
    "block_alphas": _handled,
    "preset": _preset,
    "dropout": _as_number("lora.dropout"),
    "rank_dropout": _as_number("lora.rank_dropout"),
    "module_dropout": _as_number("lora.module_dropout"),
    "factor": _lokr_factor,
    "block_size": _block_size,
    "rs_lora": _switch("lora.rs_lora"),
    "loraplus_lr_ratio": _as_number("optimizer.lora_plus_ratio"),
    "loraplus_unet_lr_ratio": _as_number("optimizer.lora_plus_ratio"),
    "loraplus_text_encoder_lr_ratio": _not_offered("one ratio holds for all layers: optimizer.lora_plus_ratio"),
    "conv_block_dims": _not_offered("blocks have one rank for all their layers: lora.block_ranks"),
    "conv_block_alphas": _not_offered("blocks have one alpha for all their layers: lora.block_ranks"),
    "use_tucker": _not_offered("convolutions are split in two factors, not in Tucker's three"),
    "use_cp": _not_offered("convolutions are split in two factors, not in Tucker's three"),
    "use_conv_cp": _not_offered("convolutions are split in two factors, not in Tucker's three"),
    "disable_conv_cp": _handled,
    "use_scalar": _not_offered("layers have no trained factor of their own"),
    "train_norm": _not_offered("normalisation layers are not trained"),
    "decompose_both": _not_offered("only the second factor of a LoKr is split"),
    "full_matrix": _not_offered("the rank of a LoKr is limited by lora.rank"),
    "constraint": _not_offered("rotations are not held within a distance"),
    "constrain": _not_offered("rotations are not held within a distance"),
    "rescaled": _not_offered("rotations have no trained scale"),
    "rank_dropout_scale": _not_offered("what is left after rank dropout is not scaled up"),
    "bypass_mode": _handled,
    "wd_on_output": _handled,
    "train_on_input": _handled,
    "unbalanced_factorization": _not_offered("LoKr's factors are as even as they can be, or by lora.lokr_factor"),
    "train_t5xxl": _not_offered(OTHER_FAMILY),
    "unit": _not_offered("DyLoRA is trained as a LoRA of one rank"),
    "train_double_block_indices": _not_offered(OTHER_FAMILY),
    "train_single_block_indices": _not_offered(OTHER_FAMILY),
    "split_qkv": _not_offered(OTHER_FAMILY),
}
"""Every argument of networks.lora, networks.oft and LyCORIS."""
SILENT = frozenset({"bypass_mode", "wd_on_output", "train_on_input", "disable_conv_cp"})
"""Arguments that only say how the same thing is computed."""


def network(taking: Taking) -> None:
    """Adapter, dimensions and arguments."""
    arguments = _arguments(taking)
    adapter = _adapter(taking, arguments)
    _dimensions(taking, arguments, adapter)
    for name, value in arguments.items():
        key = f"network_args: {name}"
        rule = ARGUMENTS.get(name)
        try:
            if value in ("", "None"):
                taking.pass_over(key, "is empty there")
            elif rule is None:
                taking.refuse(key, "is not known as an argument of a network")
            elif name in SILENT:
                taking.pass_over(key, "the layer computes the same either way")
            else:
                rule(taking, key, value)
        except WrongValueError as error:
            taking.refuse(key, f"{error}, so it can't be read")
    _blocks(taking, arguments)
    _base_weights(taking)
    if taking.value("dim_from_weights") is not None and not taking.is_done("dim_from_weights"):
        taking.pass_over("dim_from_weights", "lora.continue_from brings its own shapes")


def _arguments(taking: Taking) -> dict[str, str]:
    key = "network_args"
    found: dict[str, str] = {}
    if taking.value(key) is None:
        return found
    if isinstance(taking.given[key], dict):  # gathered from keys of their own
        taking.settle(key)
        found = {name: str(value) for name, value in taking.given[key].items()}
        for name, value in taking.given[key].items():
            taking.part(f"{key}: {name}", value)
        return found
    for part in split_args(taking.given[key]):
        name, equals, value = part.partition("=")
        if equals:
            found[name.strip()] = value.strip().strip("\"'")
            taking.part(f"{key}: {name.strip()}", found[name.strip()])
        else:
            taking.refuse(f"{key}: {name}", "is not NAME=VALUE")
    taking.settle(key)
    return found


def _adapter(taking: Taking, arguments: dict[str, str]) -> str:
    module = str(taking.value("network_module", "networks.lora"))
    is_lycoris = module.startswith("lycoris")
    algorithm = arguments.get("algo", "lora").lower()
    ours, difference = (ALGORITHMS if is_lycoris else MODULES).get(algorithm if is_lycoris else module, ("", ""))
    key = "network_args: algo" if is_lycoris and "algo" in arguments else "network_module"
    if not ours:
        if "network_module" in taking.given:
            other = module.partition("_")[2] in ("flux", "sd3", "lumina", "anima", "hunyuan_image")
            taking.refuse(key, OTHER_FAMILY if other else NO_ADAPTER)
            _settle_module(taking, key)
        return "lora"
    without = arguments.get("preset") in NO_CONVOLUTIONS
    has_convolutions = arguments.get("conv_dim", "0") not in ("", "0", "None")
    if is_lycoris and ours == "locon" and without:
        ours = "lora"
    elif ours == "lora" and module == "networks.lora" and has_convolutions:
        ours = "locon"
    decomposed = [name for name in ("dora_wd", "weight_decompose") if arguments.get(name, "").lower() in ("true", "1")]
    for name in decomposed:
        if ours in ("lora", "locon") and is_lycoris:
            ours = "dora"
            taking.pass_over(f"network_args: {name}", "makes it a DoRA: lora.adapter")
        else:
            taking.refuse(f"network_args: {name}", "only LyCORIS' plain LoRA is trained as a DoRA" if is_lycoris else
                          "networks.lora doesn't read it, so this file trained a plain LoRA")  # fmt: skip
    for name in ("dora_wd", "weight_decompose"):
        if name in arguments and name not in decomposed:
            taking.pass_over(f"network_args: {name}", OFF)
    if "network_module" in taking.given:
        taking.take(key, "lora.adapter", ours, difference)
        _settle_module(taking, key)
    elif ours != "lora":
        taking.take("network_args: conv_dim", "lora.adapter", ours)
    if key != "network_args: algo" and "algo" in arguments:
        taking.pass_over("network_args: algo", "only LyCORIS reads it")
    return ours


def _settle_module(taking: Taking, key: str) -> None:
    """The module is dealt with when the algorithm says which adapter it is."""
    if key == "network_module":
        return
    if isinstance(taking.given["network_args"], dict):  # one key of the file became both
        taking.settle("network_module")
    else:
        taking.pass_over("network_module", "the algorithm in network_args says which adapter it is")


def _dimensions(taking: Taking, arguments: dict[str, str], adapter: str) -> None:
    """Rank and alpha; alpha of 0 stands for the rank, a rank beyond ours is lowered together with alpha."""
    rank, ratio = _rank(taking, "network_dim", taking.value("network_dim"), "lora.rank", adapter)
    alpha = taking.value("network_alpha")
    if alpha is not None:
        _alpha(taking, "network_alpha", alpha, "lora.alpha", rank, ratio)
    whole = str(taking.value("network_module", "")).startswith("lycoris")
    conv_key = next((name for name in ("conv_dim", "conv_rank") if name in arguments), "")
    conv = arguments.get(conv_key) if conv_key else None
    if whole and adapter in ("loha", "lokr", "dora", "boft", "oft") and arguments.get("preset") not in NO_CONVOLUTIONS:
        conv = conv if conv not in (None, "", "0") else str(taking.value("network_dim", "")) or None
    if adapter == "locon" and (conv in (None, "", "0")):
        if conv_key:
            taking.pass_over(f"network_args: {conv_key}", "convolutions take the rank of the other layers")
    elif conv not in (None, "", "0"):
        conv_rank, ratio = _rank(taking, f"network_args: {conv_key or 'conv_dim'}", conv, "lora.conv_rank", adapter)
        if "conv_alpha" in arguments:
            _alpha(taking, "network_args: conv_alpha", arguments["conv_alpha"], "lora.conv_alpha", conv_rank, ratio)
        elif conv_key and not whole:
            taking.left_out("network_args: conv_alpha", 1, "lora.conv_alpha", 1.0)
        return
    elif conv_key:
        taking.pass_over(f"network_args: {conv_key}", "convolutions are left alone")
    if "conv_alpha" in arguments:
        taking.pass_over("network_args: conv_alpha", "convolutions have no rank of their own")


def _rank(taking: Taking, key: str, value: Any, ours: str, adapter: str) -> tuple[int, float]:
    """Takes a rank. Returns it and by how much it was lowered."""
    if value is None:
        return int(taking.values()[ours]), 1.0
    try:
        rank = as_whole(value)
    except WrongValueError as error:
        taking.refuse(key, f"{error}, so it can't be read")
        return int(taking.values()[ours]), 1.0
    if rank <= MAX_RANK:
        taking.take(key, ours, rank, given=value)
        return rank, 1.0
    whole = "; so large a dimension makes the second factor of a LoKr a whole matrix there" if adapter == "lokr" else ""
    taking.take(key, ours, MAX_RANK, f"{MAX_RANK} is the highest rank{whole}", given=value)
    return MAX_RANK, MAX_RANK / rank


def _alpha(taking: Taking, key: str, value: Any, ours: str, rank: int, ratio: float) -> None:
    try:
        alpha = as_number(value)
    except WrongValueError as error:
        taking.refuse(key, f"{error}, so it can't be read")
        return
    if alpha == 0:
        taking.take(key, ours, float(rank), "0 stands for the rank there", given=value)
    elif ratio != 1.0 and taking.ours.get("lora.adapter") == "lokr":
        taking.take(key, ours, float(rank), "a whole matrix is not scaled there", given=value)
    else:
        taking.take(key, ours, alpha * ratio, SCALED if ratio != 1.0 else "", given=value)


def _blocks(taking: Taking, arguments: dict[str, str]) -> None:
    """Learning rates and dimensions by block: lines of pattern and number here."""
    lines: list[str] = []
    try:
        side = 9 if taking.values()["dataset.resolution"] > 768 else 12  # SDXL has nine blocks each way
        threshold = as_number(arguments.get("block_lr_zero_threshold") or 0)
        groups: tuple[tuple[str, Callable[[int], list[str]], int], ...] = (
            ("down_lr_weight", input_patterns, side),
            ("mid_lr_weight", middle_patterns, 3),
            ("up_lr_weight", output_patterns, side),
        )
        used = []
        for name, patterns, most in groups:
            if arguments.get(name):
                weights = [weight if weight > threshold else 0.0 for weight in curve(arguments[name], most)]
                lines += block_lines(weights, patterns, alone=name == "mid_lr_weight")
                used.append(name)
    except (WrongValueError, ValueError) as error:
        for name in ("down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold"):
            if arguments.get(name):
                taking.refuse(f"network_args: {name}", f"can't be read: {error}"[:200])
        used = []
    for name in used:
        key = f"network_args: {name}"
        reason = "each block is a line of pattern and factor"
        taking.take(key, "lora.block_learning_rates", lines, reason)
    if arguments.get("block_lr_zero_threshold"):
        taking.pass_over("network_args: block_lr_zero_threshold", "is applied to the factors of the blocks")
    _block_ranks(taking, arguments)


def _block_ranks(taking: Taking, arguments: dict[str, str]) -> None:
    if not arguments.get("block_dims"):
        if arguments.get("block_alphas"):
            taking.refuse("network_args: block_alphas", "needs block_dims beside it")
        return
    key, reason = "network_args: block_dims", "each block is a line of pattern, rank and alpha"
    try:
        ranks = [as_whole(part) for part in arguments["block_dims"].split(",")]
        given = arguments.get("block_alphas") or ",".join(["1"] * len(ranks))
        alphas = [as_number(part) for part in given.split(",")]
        if len(ranks) not in (23, 25) or len(alphas) != len(ranks):
            raise WrongValueError("has neither 25 blocks (SD 1.x) nor 23 (SDXL)")
    except WrongValueError as error:
        taking.refuse(key, f"{error}, so it can't be read")
        if arguments.get("block_alphas"):
            taking.refuse("network_args: block_alphas", "needs block_dims beside it")
        return
    parts = _parts_of(len(ranks))
    lines = [f"{pattern} {rank} {alpha:g}" for names, rank, alpha in zip(parts, ranks, alphas, strict=True)
             for pattern in names if rank > 0]  # fmt: skip
    frozen = [f"{pattern} 0" for names, rank in zip(parts, ranks, strict=True) for pattern in names if rank <= 0]
    taking.take(key, "lora.block_ranks", lines, reason)
    if frozen:
        excluded = [line.rpartition(" ")[0] for line in frozen]
        taking.take(f"{key} of 0", "lora.exclude_patterns", excluded, "a block of dimension 0 is left out", given=0)
    if arguments.get("block_alphas"):
        taking.pass_over("network_args: block_alphas", "goes with block_dims into lora.block_ranks")


def _parts_of(count: int) -> list[list[str]]:
    """The patterns of each of 25 blocks of SD 1.x or 23 of SDXL."""
    if count == 25:
        return [*(input_patterns(index) for index in range(12)), [r"^mid_block\."],
                *(output_patterns(index) for index in range(12))]  # fmt: skip
    return [[], *(input_patterns(index) for index in range(9)), *(middle_patterns(index) for index in range(3)),
            *(output_patterns(index) for index in range(9)), []]  # fmt: skip


def _base_weights(taking: Taking) -> None:
    key, factors_key = "base_weights", "base_weights_multiplier"
    if taking.value(key) is not None:
        try:
            files = [as_text(part) for part in as_list(taking.given[key])]
            factors = [as_number(part) for part in as_list(taking.value(factors_key, []))]
            factors += [1.0] * max(0, len(files) - len(factors))
            lines = [f"{factor:g} {file}" for factor, file in zip(factors, files, strict=False)]
            taking.take(key, "lora.merge_first", lines)
        except WrongValueError as error:
            taking.refuse(key, f"{error}, so it can't be read")
    if taking.value(factors_key) is not None and not taking.is_done(factors_key):
        taking.pass_over(factors_key, "goes with base_weights into lora.merge_first")


def alpha_left_out(taking: Taking) -> None:
    """A whole file of sd-scripts without an alpha means 1, without a dimension 4."""
    if taking.value("network_alpha") is None and "lora.alpha" not in taking.ours:
        taking.left_out("network_alpha", 1, "lora.alpha", 1.0)
    if taking.value("network_dim") is None and "lora.rank" not in taking.ours:
        taking.left_out("network_dim", 4, "lora.rank", 4)
