"""Makes a LoRA smaller: every layer becomes the nearest one of a lower rank (truncated SVD, see algebra.py)."""

from __future__ import annotations

from trainer.lora_files.changes import (
    LayerReport,
    Layers,
    Ranks,
    Unfit,
    Work,
    change_of,
    compressed,
    energy_of,
    is_kernel,
    is_norm,
)
from trainer.lora_files.checkpoint import Checkpoint
from trainer.lora_files.layers import Layer, LowRank
from trainer.lora_files.names import Place
from trainer.tasks import TaskControl


def resize(
    layers: Layers, ranks: Ranks, *, name: str, base: Checkpoint | None = None, control: TaskControl | None = None
) -> tuple[dict[Place, Layer], list[LayerReport]]:
    """The layers at their new ranks, and what became of each.

    Layers of other kinds (LoHa, LoKr, a full difference; with `base` DoRA, OFT and BOFT too) become plain LoRA layers. A
    layer whose rank a fixed rule leaves alone stays as it is, to the bit. `ranks.conv` None keeps convolutions as they are.
    Raises Unfit for layers that need a base model when there is none, and for a file in which nothing would change.
    """
    resized: dict[Place, Layer] = {}
    reports: list[LayerReport] = []
    work = Work(control, len(layers), f"Resizing {name}")
    for place, layer in layers.items():
        new, report = _resized(place, layer, ranks, name, base)
        resized[place] = new
        if report is not None:
            reports.append(report)
        work.step()
    if all(resized[place] is layer for place, layer in layers.items()):
        raise Unfit(f"{_highest(layers, ranks, name)}, so there is nothing to make smaller.")
    return resized, reports


def _highest(layers: Layers, ranks: Ranks, name: str) -> str:
    """The ranks that were asked for beside the highest ones that a file has, in words."""
    found: dict[bool, int] = {}
    for layer in layers.values():
        if not is_norm(layer):
            kernel = is_kernel(layer.shape or ())
            found[kernel] = max(found.get(kernel, 0), layer.rank or 0)
    told = [f"its highest is {found[False]}, {ranks.linear.rank} was asked for"] if False in found else []
    if True in found:
        asked = "no rank was asked for these" if ranks.conv is None else f"{ranks.conv.rank} was asked for"
        told.append(f"of its convolutions {found[True]}, {asked}")
    return f"No layer of {name} has a higher rank than that ({'; '.join(told) or 'it has none with a rank'})"


def _resized(
    place: Place, layer: Layer, ranks: Ranks, name: str, base: Checkpoint | None
) -> tuple[Layer, LayerReport | None]:
    if is_norm(layer):
        return layer, None
    change = change_of(place, layer, base, name)
    rule = ranks.rule(change.shape)
    before = layer.rank
    is_small = isinstance(layer, LowRank) and rule is not None and rule.is_fixed and layer.rank <= rule.rank
    if rule is None or is_small:
        return layer, LayerReport(place, before, before or 0, energy_of(change), 1.0)
    return compressed(place, change, rule, before)
