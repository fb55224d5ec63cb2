"""The optimizers that can be chosen: rows over libraries, built from the settings, with what has to be known of each.

The table needs no torch: the page, the command line and the checks of settings read it too.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from security.errors import SafelightError
from trainer.config.choices import OptimizerName
from trainer.config.sections import OptimizerConfig

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

Groups = list[dict[str, Any]]
"""Parameter groups: each holds `params` and its base rate `lr`; `name` and a `weight_decay` of its own are welcome."""


@dataclass(frozen=True)
class LearningRateBand:
    """Rates at which LoRAs train well with an optimizer: below `low` nearly nothing is learned, above `high` it breaks."""

    low: float
    usual: float
    high: float


@dataclass(frozen=True)
class OptimizerRow:
    """One optimizer: where its class is, its constructor's arguments from the settings, and how it wants to be used.

    `uses`: the fields of the section that it reads, besides name, rates and schedule. `uses_schedule`: whether the rate
    may fall over the run. `one_rate`: all groups must have the same rate, or 0. `fused`: arguments for a step in one operation.
    `fit_groups`: changes the groups to what the class takes. `devices`: kinds of device that it runs on.
    """

    title: str
    help: str
    import_path: str
    arguments: Callable[[OptimizerConfig], dict[str, Any]]
    band: LearningRateBand
    uses: frozenset[str]
    uses_schedule: bool = True
    one_rate: bool = False
    fused: dict[str, Any] = field(default_factory=dict)
    fit_groups: Callable[[OptimizerConfig, Groups], Groups] | None = None
    devices: tuple[str, ...] = ("cuda", "cpu", "mps")


def _adam(settings: OptimizerConfig) -> dict[str, Any]:
    return {"betas": (settings.beta1, settings.beta2), "eps": settings.epsilon, "weight_decay": settings.weight_decay}


def _prodigy(settings: OptimizerConfig) -> dict[str, Any]:
    # bias correction and the safe warm-up are what the authors advise for diffusion models
    return {
        "betas": (settings.beta1, settings.beta2),
        "eps": settings.epsilon,
        "d_coef": settings.d_coefficient,
        "use_bias_correction": True,
        "safeguard_warmup": True,
    }


def _decay_in_groups(settings: OptimizerConfig, groups: Groups) -> Groups:
    """Weight decay per group instead of as an argument, which prodigyopt would print a line about."""
    return [{"weight_decay": settings.weight_decay, **group} for group in groups]


def _prodigy_plus(settings: OptimizerConfig) -> dict[str, Any]:
    # one step size for all groups: with one each, a small group (one token's vector) would find none
    return {**_adam(settings), "d_coef": settings.d_coefficient, "split_groups": False, "stochastic_rounding": False}


def _came(settings: OptimizerConfig) -> dict[str, Any]:
    betas = (settings.beta1, settings.beta2, settings.beta3)
    return {"betas": betas, "weight_decay": settings.weight_decay}


def _adafactor(settings: OptimizerConfig) -> dict[str, Any]:
    # absolute rates as in every other row, not rates relative to the weights, which start at zero in a LoRA
    return {
        "scale_parameter": False,
        "relative_step": False,
        "warmup_init": False,
        "weight_decay": settings.weight_decay,
    }


def _matrices_apart(settings: OptimizerConfig, groups: Groups) -> Groups:
    """Splits every group into matrices for Muon and the rest for AdamW.

    The rest are vectors, such as DoRA's magnitudes, and token embeddings, whose rows have nothing to do with each other
    (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/). Kernels of convolutions count as matrices
    (out, in x height x width). Rates mean the same in both: Muon's steps are scaled to the size of AdamW's (Liu et al.
    2025, arXiv:2502.16982).
    """
    muon = {"use_muon": True, "use_adjusted_lr": True, "momentum": settings.beta1}
    adam = {"use_muon": False, "betas": (settings.beta1, settings.beta2), "eps": settings.epsilon}
    found: Groups = []
    for group in groups:
        matrices = [one for one in group["params"] if _is_matrix(one) and not group.get("is_embedding", False)]
        held = {id(one) for one in matrices}
        rest = [one for one in group["params"] if id(one) not in held]
        common = {"weight_decay": settings.weight_decay, **group}
        found += [{**common, **kind, "params": part} for kind, part in ((muon, matrices), (adam, rest)) if part]
    return found


def _is_matrix(parameter: Tensor) -> bool:
    return parameter.ndim >= 2 and min(parameter.shape[0], parameter[0].numel()) > 1


ADAM_FIELDS = frozenset({"beta1", "beta2", "epsilon", "weight_decay"})
_ADAM_BAND = LearningRateBand(1e-5, 1e-4, 2e-3)
_PRODIGY_BAND = LearningRateBand(0.1, 1.0, 2.0)

OPTIMIZERS: dict[OptimizerName, OptimizerRow] = {
    OptimizerName.ADAMW: OptimizerRow(
        "AdamW",
        "The usual choice.",
        "torch.optim.AdamW",
        _adam,
        _ADAM_BAND,
        ADAM_FIELDS,
        fused={"fused": True},
    ),
    OptimizerName.ADAMW_8BIT: OptimizerRow(
        "AdamW 8-bit",
        "AdamW that keeps its memory in 8 bits: a quarter of the size, nearly the same result; slower on a CPU.",
        "bitsandbytes.optim.AdamW8bit",
        _adam,
        _ADAM_BAND,
        ADAM_FIELDS,
        devices=("cuda", "cpu"),
    ),
    OptimizerName.PRODIGY: OptimizerRow(
        "Prodigy",
        "Finds the step size by itself; the learning rate is a factor on it and stays 1.",
        "prodigyopt.Prodigy",
        _prodigy,
        _PRODIGY_BAND,
        ADAM_FIELDS | {"d_coefficient"},
        one_rate=True,
        fit_groups=_decay_in_groups,
    ),
    OptimizerName.PRODIGY_PLUS_SCHEDULE_FREE: OptimizerRow(
        "Prodigy + Schedule-Free",
        "Finds the step size by itself and averages its weights instead of following a schedule; the rate stays 1.",
        "prodigyplus.ProdigyPlusScheduleFree",
        _prodigy_plus,
        _PRODIGY_BAND,
        ADAM_FIELDS | {"d_coefficient"},
        uses_schedule=False,
    ),
    OptimizerName.ADAFACTOR: OptimizerRow(
        "Adafactor",
        "Needs next to no memory of its own: it keeps rows and columns instead of one number per weight.",
        "transformers.optimization.Adafactor",
        _adafactor,
        _ADAM_BAND,
        frozenset({"weight_decay"}),
    ),
    OptimizerName.CAME: OptimizerRow(
        "CAME",
        "Like Adafactor, with a measure of how far to trust each step (beta3); wants a rate three times below AdamW's.",
        "pytorch_optimizer.CAME",
        _came,
        LearningRateBand(1e-6, 1e-4, 1e-3),
        frozenset({"beta1", "beta2", "beta3", "weight_decay"}),
    ),
    OptimizerName.LION: OptimizerRow(
        "Lion",
        "Moves every weight by the same amount; wants a rate three to ten times below AdamW's and beta2 at 0.99.",
        "pytorch_optimizer.Lion",
        lambda settings: {"betas": (settings.beta1, settings.beta2), "weight_decay": settings.weight_decay},
        LearningRateBand(1e-6, 2e-5, 3e-4),
        frozenset({"beta1", "beta2", "weight_decay"}),
    ),
    OptimizerName.MUON: OptimizerRow(
        "Muon",
        "Evens out the directions of each matrix's step; vectors and token embeddings go by AdamW, at the same rates.",
        "pytorch_optimizer.Muon",
        lambda settings: {},
        _ADAM_BAND,
        ADAM_FIELDS,
        fit_groups=_matrices_apart,
    ),
    OptimizerName.SCHEDULE_FREE_ADAMW: OptimizerRow(
        "Schedule-Free AdamW",
        "Averages its weights instead of following a schedule; wants a higher rate than AdamW, and a warm-up.",
        "schedulefree.AdamWScheduleFree",
        _adam,
        LearningRateBand(5e-5, 5e-4, 1e-2),
        ADAM_FIELDS,
        uses_schedule=False,
    ),
    OptimizerName.RADAM: OptimizerRow(
        "RAdam",
        "AdamW that starts gently by itself and needs no warm-up.",
        "torch.optim.RAdam",
        lambda settings: {**_adam(settings), "decoupled_weight_decay": True},
        _ADAM_BAND,
        ADAM_FIELDS,
    ),
}


def build_optimizer(settings: OptimizerConfig, groups: Groups, *, fused: bool = True) -> Optimizer:
    """The chosen optimizer over parameter groups. Its own groups may be more: read base rates off them, not off `groups`.

    Raises SafelightError where it does not run on the device of the weights.
    """
    row = OPTIMIZERS[settings.name]
    device = groups[0]["params"][0].device.type
    if device not in row.devices:
        raise SafelightError(
            f"optimizer.name is {settings.name.value}, which does not run on {device}. Choose adafactor, which needs even "
            "less memory, or adamw."
        )
    groups = [dict(group) for group in groups]
    if row.fit_groups is not None:
        groups = row.fit_groups(settings, groups)
    arguments = {**row.arguments(settings), **(row.fused if fused else {})}
    optimizer: Optimizer = optimizer_class(row)(groups, **arguments)
    if hasattr(optimizer, "train"):
        optimizer.train()
    return optimizer


def optimizer_class(row: OptimizerRow) -> type[Optimizer]:
    """The class that a row names."""
    module, _, name = row.import_path.rpartition(".")
    found: type[Optimizer] = getattr(importlib.import_module(module), name)
    return found


@contextmanager
def averaged_weights(optimizer: Optimizer) -> Iterator[None]:
    """For samples, validation and export: a schedule-free optimizer's averaged weights instead of those it steps from.

    Afterwards the weights are those of before, bit for bit: averaging and going back by the library's own functions would
    round them, and drawing a preview would change the run. Other optimizers have one set of weights only.
    """
    import torch

    if not hasattr(optimizer, "eval"):
        yield
        return
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    kept = [weight.detach().clone() for weight in weights]
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()
        with torch.no_grad():
            for weight, before in zip(weights, kept, strict=True):
                weight.copy_(before)


def effective_rate(group: dict[str, Any]) -> float:
    """The rate that a group steps with: Prodigy multiplies the given one by the step size that it found."""
    return float(group["lr"]) * float(group.get("d", 1.0))


def optimizer_state(settings: OptimizerConfig, optimizer: Optimizer) -> dict[str, Any]:
    """What a checkpoint keeps of an optimizer: nested values and tensors, and whose they are."""
    return {"optimizer": settings.name.value, **optimizer.state_dict()}


def load_optimizer_state(settings: OptimizerConfig, optimizer: Optimizer, saved: dict[str, Any]) -> str:
    """Puts `optimizer_state` back. Returns what could not be, as a sentence; empty when the next step is the one that would
    have come.

    Rates, betas and the like stay those of the settings: an edit between stop and resume must win.
    """
    before = saved.get("optimizer", settings.name.value)
    if before != settings.name.value:
        return (
            f"The optimizer was {before} and is {settings.name.value} now, so it begins without a memory of past steps."
        )
    present = optimizer.state_dict()
    if [_outline(group) for group in present["param_groups"]] != [_outline(group) for group in saved["param_groups"]]:
        return "The optimizer's groups of weights are others than before, so it begins without a memory of past steps."
    chosen = {*OPTIMIZERS[settings.name].arguments(settings), *CHOSEN_ENTRIES}
    groups = [
        {**old, **{key: value for key, value in new.items() if key in chosen}}
        for old, new in zip(saved["param_groups"], present["param_groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
    _keep_formats(optimizer, saved["state"])
    return ""


CHOSEN_ENTRIES = frozenset(
    {
        *("params", "name", "is_embedding", "lr", "betas", "eps", "weight_decay", "momentum"),
        *("fused", "foreach", "capturable"),  # these follow the machine
    }
)
"""Entries of a group that settings give; the others are what the optimizer has found out so far, or never change."""


def _outline(group: dict[str, Any]) -> tuple[Any, ...]:
    return group.get("name"), group.get("use_muon"), tuple(group["params"])


def _keep_formats(optimizer: Optimizer, saved: dict[int, dict[str, Any]]) -> None:
    """torch turns loaded numbers into the weights' format; what an optimizer keeps in bf16 has to stay bf16."""
    from torch import Tensor

    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for index, entries in saved.items():
        state = optimizer.state[weights[index]]
        for key, value in entries.items():
            if isinstance(value, Tensor) and value.dtype != state[key].dtype:
                state[key] = value.to(state[key].device)
