"""What happens when a step goes wrong: a loss far above the others is told; one that is no number ends the run, back at
its last good state, with the cause and the change to go on with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trainer import events
from trainer.checkpoints import newest_good_checkpoint
from trainer.config.schema import TrainConfig
from trainer.dataset.batches import Sample
from trainer.memory.recovery import within_memory
from trainer.optimizers import OPTIMIZERS
from trainer.resume import learned, restore
from trainer.saving import settle
from trainer.setup import Emit, Run
from trainer.sharding import whole
from trainer.speed.choose import fuse
from trainer.speed.compiled import goes_on_without
from trainer.spikes import FEWEST, LossWatch, worth_telling
from trainer.step import (
    Diverged,
    loss_watch,
    read_last_step,
    seed_dropout,
    train_step,
    train_step_late,
    window,
    window_losses,
)

LONGEST = 1e18
"""Squares of longer gradients leave the range of fp32, in the length and in the memory of most optimizers."""
MAX_NAMED = 5
"""Pictures that a sentence names."""


class Save(Protocol):
    """Writes the LoRA under a name, and a checkpoint."""

    def __call__(self, *, stem: str) -> None: ...


@dataclass(frozen=True)
class Cause:
    """Why a step's numbers are unusable, in a sentence. `pictures`: those that it showed in, of the step's.

    `setting` and `value`: the change to go on with. `weights_are_good`: the LoRA itself is not to blame.
    """

    text: str
    pictures: tuple[str, ...] = ()
    module: str = ""
    setting: str = ""
    value: float | str = ""
    weights_are_good: bool = False


def guarded_step(run: Run, emit: Emit, *, rescue: Save) -> None:
    """One optimizer step, told by its event: at once, or after the next one where numbers are read late.

    Raises Diverged for one that can't be taken; `rescue` has saved by then.
    """
    step = train_step_late if run.reads_late else train_step
    _told(run, emit, rescue, lambda: within_memory(run, emit, lambda: goes_on_without(run, emit, lambda: step(run))))


def catch_up(run: Run, emit: Emit, *, rescue: Save) -> None:
    """Tells of the last step if that was not done yet, before something asks what the run came to. Raises as a step does."""
    _told(run, emit, rescue, lambda: read_last_step(run))


def _told(run: Run, emit: Emit, rescue: Save, work: Callable[[], events.StepDone | None]) -> None:
    try:
        done = work()
    except Diverged as error:
        raise _end_astray(run, error, emit, rescue) from None
    if done is None:
        return
    samples = [sample for batch in window(run, done.step - 1) for sample in batch]
    emit(done)
    if slow := run.pace.look(done, _area(run, samples)):
        emit(events.Warned(slow))
    watch = loss_watch(run)
    factor = run.config.training.spike_factor
    spike = watch.is_spike(done.loss, factor)
    watch.add(done.loss, done.gradient_norm, spike=spike)
    run.memory["losses"] = watch.kept()
    if spike and worth_telling(watch.spikes):
        emit(events.Warned(_spike_text(run, watch, done, samples)))


def _area(run: Run, samples: list[Sample]) -> float:
    """Pixels of a step's pictures."""
    buckets = [run.pictures.placed[sample.index].placement.bucket for sample in samples]
    return float(sum(width * height for width, height in buckets))


def _spike_text(run: Run, watch: LossWatch, done: events.StepDone, samples: list[Sample]) -> str:
    before = watch.recent[:-1]
    usual = sorted(before)[len(before) // 2]
    left_out = run.config.training.skip_spikes
    end = "The step was left out." if left_out else "training.skip_spikes would leave such steps out."
    count = "" if watch.spikes == 1 else f" (number {watch.spikes} of this run)"
    return (
        f"The loss of step {done.step} is {done.loss:.3g}, {done.loss / usual:.0f} times the usual one{count}. It looked "
        f"at {_listed(_names(run, samples))}: look whether these are in order. {end}"
    )


def _names(run: Run, samples: list[Sample]) -> list[str]:
    return list(dict.fromkeys(run.pictures.placed[sample.index].picture.name for sample in samples))


def _listed(names: list[str] | tuple[str, ...]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


# ---- a step that can't be taken ----


def _end_astray(run: Run, error: Diverged, emit: Emit, rescue: Save) -> Diverged:
    """Finds the cause, goes back to the last good state and saves it. Returns the error that ends the run."""
    step = run.step + 1
    names = _names(run, [sample for batch in window(run) for sample in batch])
    cause = find_cause(run, error)
    back_to, told = _go_back(run, cause, emit, rescue)
    pictures = list(cause.pictures) or names
    emit(events.WentAstray(step, pictures, cause.module, cause.text, cause.setting, cause.value, back_to))
    again = "Start again" if back_to is None else "Go on"
    change = f" {again} with {cause.setting} {_number(cause.value)}." if cause.setting else ""
    return Diverged(
        f"{error} Pictures of this step: {_listed(pictures)}. {cause.text} {told}{change}", error.loss, error.norm
    )


def _go_back(run: Run, cause: Cause, emit: Emit, rescue: Save) -> tuple[int | None, str]:
    """Puts the last good state into the run and saves it; returns its step, None if there is none, and what to say.

    Where the weights themselves came to this, the same step from the same weights would end the same way, whatever the
    rate: only an earlier checkpoint leads elsewhere.
    """
    if run.step == 0:
        return None, "Nothing was learned yet."
    settle(run, emit)  # the newest checkpoint may be on its way to the disk
    checkpoint = None
    if not cause.weights_are_good:
        checkpoint, complaints = newest_good_checkpoint(
            run.folder.checkpoints_dir, healthy=True, before=run.step if _is_good(run) else None
        )
        for complaint in complaints:
            emit(events.Warned(complaint))
    if checkpoint is not None:
        restore(run, checkpoint)
        rescue(stem=f"{run.config.name}-step{run.step:06d}")
        return (
            run.step,
            f"The run is back at step {run.step}, its last good checkpoint, and the LoRA of that step is saved.",
        )
    if cause.weights_are_good or _is_good(run):
        rescue(stem=f"{run.config.name}-step{run.step:06d}")
        return run.step, f"The state of step {run.step} is good: it is saved, and the run can go on from it."
    return None, "There is no earlier checkpoint that is any good, so the run has to start again."


def _is_good(run: Run) -> bool:
    """Whether the weights are usable as they are, as far as their numbers and the losses tell."""
    watch = loss_watch(run)
    return len(watch.recent) >= FEWEST and not watch.astray and not any(_holes(one) for one in run.parameters)


def find_cause(run: Run, error: Diverged) -> Cause:
    """Looks for the first thing that is no number: in the inputs, the weights, then through the step once more."""
    return (
        _broken_input(run)
        or _broken_base(run)
        or _broken_lora(run)
        or _first_bad_module(run)
        or Cause(
            "The same step gave usable numbers when it was computed again, so the machine itself is not steady: look for "
            "overclocking, heat or failing memory, then continue.",
            weights_are_good=True,
        )
    )


def _holes(tensor: Tensor) -> int:
    """How many numbers of a tensor are NaN or infinite."""
    return int((~torch.isfinite(whole(tensor))).sum()) if tensor.is_floating_point() else 0


def _broken_input(run: Run) -> Cause | None:
    for batch in window(run):
        bad = tuple(
            run.pictures.placed[sample.index].picture.name
            for sample in batch
            if any(_holes(run.pictures.latents[key]) for key in run.pictures.latents if key[0] == sample.index)
        )
        if bad:
            return Cause(
                f"The encoded picture {_listed(bad)} holds NaN or Inf: its entry in the cache is damaged. Empty the cache "
                "of latents, or take the picture out.",
                bad,
                weights_are_good=True,
            )
    return None


def _broken_base(run: Run) -> Cause | None:
    learning = {id(parameter) for parameter in run.parameters}
    for part, module in run.components.modules().items():
        for name, parameter in module.named_parameters():
            if id(parameter) not in learning and (count := _holes(parameter)):
                plain = name.replace("base_layer.", "")
                return Cause(
                    f"The base model itself is broken: {count:,} of {parameter.numel():,} numbers of {part}.{plain} are NaN "
                    "or Inf. Fetch the model again, or use another one.",
                    module=f"{part}.{plain}",
                    weights_are_good=True,
                )
    return None


def _broken_lora(run: Run) -> Cause | None:
    for name, parameter in learned(run).items():
        if _holes(parameter):
            return _too_fast(run.config, f"The LoRA's own weights hold NaN or Inf, {name} first.", module=name)
    return None


def _first_bad_module(run: Run) -> Cause | None:
    """Computes the step once more, with a look at every module's output and at every output's gradient."""
    num_samples = sum(len(batch) for batch in window(run))
    for number, batch in enumerate(window(run)):
        found: list[tuple[str, str]] = []
        with _watched(run, found):
            seed_dropout(run, number)
            losses = window_losses(run, batch)
            if torch.isfinite(losses).all():
                run.scaler.scale(losses.sum() / num_samples).backward()
        gradients = [name for name, one in learned(run).items() if one.grad is not None and _holes(one.grad)]
        length = sum(float(one.grad.double().norm()) ** 2 for one in run.parameters if one.grad is not None) ** 0.5
        run.optimizer.zero_grad(set_to_none=True)
        bad = [index for index, finite in enumerate(torch.isfinite(losses).tolist()) if not finite]
        pictures = tuple(_names(run, [batch[index] for index in bad]))
        if found:
            (way, module), *_ = found
            return _overflow(run, way, module, pictures)
        if bad:
            text = "The model's answer is sound but its loss is not a number, so a setting of the loss section is to blame."
            return Cause(text, pictures, weights_are_good=True)
        if gradients:
            return _overflow(run, "gradient", gradients[0], pictures)
        if length > LONGEST:
            return _too_fast(run.config, f"The gradients are about {length:.0e} long, which is beyond fp32.", module="")
    return None


@contextmanager
def _watched(run: Run, found: list[tuple[str, str]]) -> Iterator[None]:
    """Notes the first module, from the input on, whose output has NaN or Inf, else the first from the loss back whose
    gradient has."""
    handles = []
    fuse(run.adapted, False)  # the modules' way, so that each of them can be looked at
    for part, module in run.components.modules().items():
        for name, child in module.named_modules():
            if not any(child.children()):
                handles.append(child.register_forward_hook(partial(_look_at_output, f"{part}.{name}", found)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        fuse(run.adapted, run.config.speed.fused_lora)


def _look_at_output(name: str, found: list[tuple[str, str]], module: nn.Module, inputs: Any, output: Any) -> None:
    if not isinstance(output, Tensor) or found:
        return
    if _holes(output):
        found.append(("output", name))
    elif output.requires_grad:
        output.register_hook(partial(_look_at_gradient, name, found))


def _look_at_gradient(name: str, found: list[tuple[str, str]], gradient: Tensor) -> None:
    if not found and _holes(gradient):
        found.append(("gradient", name))


def _overflow(run: Run, way: str, module: str, pictures: tuple[str, ...]) -> Cause:
    plain = module.replace("base_layer.", "").replace(".default", "")
    text = f"The first unusable numbers are in the {way} of {plain}"
    if run.dtype is torch.float16:
        narrow = f"{text}: fp16 ends at 65,504, which this model exceeds."
        return Cause(narrow, pictures, plain, "model.precision", _wider(run), weights_are_good=True)
    return _too_fast(run.config, f"{text}.", module=plain, pictures=pictures)


def _wider(run: Run) -> str:
    """The number format to take in place of fp16."""
    bf16 = run.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if bf16 else "fp32"


def _too_fast(config: TrainConfig, text: str, *, module: str, pictures: tuple[str, ...] = ()) -> Cause:
    """The steps were too large for the weights: the change that makes them smaller."""
    settings, row = config.optimizer, OPTIMIZERS[config.optimizer.name]
    if config.training.max_grad_norm == 0:
        return Cause(
            f"{text} Nothing shortens gradients that are too long.", pictures, module, "training.max_grad_norm", 1.0
        )
    if "d_coefficient" in row.uses:
        value = _one_digit(settings.d_coefficient / 2)
        return Cause(f"{text} The steps are too large.", pictures, module, "optimizer.d_coefficient", value)
    value = _one_digit(settings.learning_rate / 3)
    value = row.band.usual if value > row.band.high else value
    told = f"{text} The learning rate {settings.learning_rate:g} is probably too high."
    return Cause(told, pictures, module, "optimizer.learning_rate", value)


def _one_digit(value: float) -> float:
    """Rounded down to one digit: a third of 1e-4 is 3e-5."""
    size = 10.0 ** math.floor(math.log10(value))
    return float(f"{math.floor(value / size + 1e-9) * size:.0e}")


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"
