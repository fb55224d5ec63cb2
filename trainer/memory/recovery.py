"""When the memory is too small for a step: the same step again, one level lower, and said aloud."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch

from security.errors import SafelightError
from trainer import events
from trainer.config.choices import BaseFormat, Checkpointing, Offload, OutOfMemory
from trainer.memory.host import is_out_of_memory
from trainer.memory.plan import Level, next_level

if TYPE_CHECKING:
    from trainer.setup import Emit, Run

REMEMBERED = "memory_level"
"""Under this name a run keeps the level that it had to go down to."""
Result = TypeVar("Result")


def within_memory(run: Run, emit: Emit, step: Callable[[], Result]) -> Result:
    """What `step` gives; where the memory is too small for it, what it gives at the first level at which it is not.

    Raises SafelightError where there is no lower level, where the settings forbid it, and for a step whose changes
    were half done, which only a checkpoint can go back behind.
    """
    while True:
        before = _versions(run)
        try:
            return step()
        except (RuntimeError, MemoryError) as error:  # torch's own error is a RuntimeError
            if not is_out_of_memory(error):
                raise
            told = str(error).partition("\n")[0]
        # Out here the error is gone, and with it the frames that hold on to what the step had computed.
        _lower(run, emit, told, half_done=_versions(run) != before)


def remembered_level(run: Run) -> Level | None:
    """The level that the run went down to before, unless its settings of memory were changed since."""
    kept = run.memory.get(REMEMBERED)
    if not isinstance(kept, dict) or any(name.startswith("memory.") for name in run.changed):
        return None
    return Level(Checkpointing(kept["checkpointing"]), Offload(kept["offload"]))


def _lower(run: Run, emit: Emit, told: str, *, half_done: bool) -> None:
    run.optimizer.zero_grad(set_to_none=True)
    gc.collect()
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
    keeping, step = run.keeping, run.step + 1
    level = next_level(keeping.level, elsewhere=keeping.elsewhere)
    if run.config.memory.on_out_of_memory is OutOfMemory.FAIL or half_done or run.workers.count > 1 or level is None:
        raise SafelightError(_ending(run, told, level, half_done=half_done))
    if run.scaler.is_enabled():  # it may have been asked for this step's gradients already
        state = run.scaler.state_dict()
        run.scaler = torch.amp.GradScaler(run.device.type, enabled=True)
        run.scaler.load_state_dict(state)
    keeping.apply(level)
    run.memory[REMEMBERED] = {"checkpointing": level.checkpointing.value, "offload": level.offload.value}
    emit(
        events.Warned(
            f"The memory is too small for step {step} ({told}). The same step is taken again with less memory: from now on "
            f"{level}. That is slower and changes no result. A run that goes on from here begins with it."
        )
    )


def _ending(run: Run, told: str, level: Level | None, *, half_done: bool) -> str:
    text = f"The memory is too small for step {run.step + 1} ({told})."
    ways = "Lower training.batch_size or dataset.resolution"
    if run.config.memory.base_format is BaseFormat.WHOLE:
        ways += ", or set memory.base_format to int8 or nf4"
    if half_done:
        return (
            f"{text} The step was half done, so the run has to go on from its last checkpoint. {ways}, then continue."
        )
    if level is not None:
        return f"{text} Set memory.checkpointing to blocks, or memory.on_out_of_memory to lower. Or: {ways[0].lower()}{ways[1:]}."
    return f"{text} Nothing more can be computed twice or kept elsewhere. {ways}, then start again."


def _versions(run: Run) -> list[int]:
    """Changes whenever something that learns, or that the optimizer remembers of it, was written to."""
    held = [
        value._version
        for parameter in run.parameters
        for value in run.optimizer.state.get(parameter, {}).values()
        if isinstance(value, torch.Tensor)
    ]
    return [parameter._version for parameter in run.parameters] + held
