"""The denoiser's repeated blocks, compiled by torch for the shapes of a run. A run that cannot compile goes on without.

Blocks alone, not the whole network: one that occurs seventy times is compiled once, and the rest of a network is little
of its time. They are compiled for steps only: samples and held-out pictures have other shapes, and would have to wait.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from security.sandbox import is_confined
from trainer import events
from trainer.adapters.layer import AdaptedLayer
from trainer.config.choices import Offload
from trainer.config.schema import Switch
from trainer.dataset.batches import Sample
from trainer.memory.host import is_out_of_memory
from trainer.memory.recovery import within_memory
from trainer.speed.choose import allows_compiling, should_compile

if TYPE_CHECKING:
    from trainer.setup import Preparation, Run

REMEMBERED = "compiled"
"""Under this name a run keeps whether its blocks are compiled."""
FEWEST_LAYERS = 3
"""Layers with weights that make a block worth compiling; diffusers also repeats single layers with an activation."""
COMPILERS = ("torch._dynamo", "torch._inductor", "torch._functorch", "triton")
Result = TypeVar("Result")
Losses = Callable[["Run", list[Sample]], torch.Tensor]


class CompiledBlocks:
    """Blocks that can be computed by compiled code. Nothing is compiled before they are first computed so."""

    def __init__(self, blocks: Sequence[nn.Module], num_shapes: int) -> None:
        import torch._dynamo  # takes seconds, which only runs that compile should wait for

        # blocks of a class share their code, and torch gives up on code of which it needs too many versions
        limit = 2 * len(blocks) * num_shapes
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, limit)
        torch._dynamo.config.accumulated_recompile_limit = max(torch._dynamo.config.accumulated_recompile_limit, limit)
        self._calls = [(block, torch.compile(block._call_impl, dynamic=False)) for block in blocks]

    @contextmanager
    def working(self) -> Iterator[None]:
        """Within, the blocks are computed by compiled code, in the backward pass too."""
        for block, call in self._calls:
            block._compiled_call_impl = call  # where nn.Module.compile puts it, which has no way back
        try:
            yield
        finally:
            for block, _ in self._calls:
                block._compiled_call_impl = None


def repeated_blocks(network: nn.Module) -> list[nn.Module]:
    """The smallest parts that a network lists more than one of: residual blocks and transformer blocks, in any family."""
    listed = [one for some in network.modules() if isinstance(some, nn.ModuleList) for one in some]
    large = [one for one in listed if _num_layers(one) >= FEWEST_LAYERS]
    known = {id(one) for one in large}
    smallest = [one for one in large if not any(id(part) in known for part in one.modules() if part is not one)]
    counts = Counter(type(one) for one in smallest)
    return [one for one in smallest if counts[type(one)] > 1]


def _num_layers(module: nn.Module) -> int:
    """Layers with weights; one that has an adapter counts once."""
    if isinstance(module, AdaptedLayer | nn.Linear | nn.Conv2d):
        return 1
    return sum(map(_num_layers, module.children()))


def compile_if_it_pays(run: Run, preparation: Preparation, losses: Losses) -> None:
    """Compiles for every shape of the run before its first step, where that was chosen.

    A run that goes on computes as it began, whatever its settings would choose by themselves now. Raises StoppedEarly.
    """
    wanted, before = run.config.speed.compile, run.memory.get(REMEMBERED)
    if "speed.compile" in run.changed:
        before = None
    if wanted is Switch.ON and allows_compiling(run.config) and is_confined():
        preparation.emit(
            events.Warned(
                "speed.compile is on, but this run is in the sandbox, which lets no program be started, and a compiler is one. "
                "The run goes on without: only its speed is another."
            )
        )
    shapes = _shapes(run) if wanted is not Switch.OFF and allows_compiling(run.config) else {}
    chosen = should_compile(run.config, run.device, len(shapes)) if before is None else bool(before)
    possible = shapes and not is_confined() and run.keeping.level.offload is Offload.NONE
    blocks = repeated_blocks(run.components.denoiser) if chosen and possible else []
    run.memory[REMEMBERED] = bool(blocks)
    if blocks:
        run.compiled = CompiledBlocks(blocks, len(shapes))
        _warm_up(run, preparation, shapes, losses)


def _shapes(run: Run) -> dict[tuple[int, int, int], list[Sample]]:
    """Pictures' widths, heights and how many at once, each with the first samples of that shape."""
    found: dict[tuple[int, int, int], list[Sample]] = {}
    for number in range(run.plan.num_batches(0)):
        samples = run.plan.batch(number)
        width, height = run.pictures.placed[samples[0].index].placement.bucket
        found.setdefault((width, height, len(samples)), samples)
    return found


def _warm_up(
    run: Run, preparation: Preparation, shapes: dict[tuple[int, int, int], list[Sample]], losses: Losses
) -> None:
    began = time.perf_counter()

    def work(samples: list[Sample]) -> None:
        with run.computing():
            run.scaler.scale(losses(run, samples).sum()).backward()

    for number, ((width, height, _), samples) in enumerate(shapes.items()):
        preparation.phase(f"Compiling for {width} x {height}", number + 1, len(shapes))

        def step(samples: list[Sample] = samples) -> None:
            goes_on_without(run, preparation.emit, lambda: work(samples))

        within_memory(run, preparation.emit, step)
        run.optimizer.zero_grad(set_to_none=True)
        if run.compiled is None:
            return
    preparation.phase(f"Compiled in {time.perf_counter() - began:.0f} s")


def goes_on_without(run: Run, emit: Callable[[events.Event], None], step: Callable[[], Result]) -> Result:
    """What `step` gives; where compiling fails in it, what it gives without, said aloud once.

    Compiled code computes losses and gradients only, so nothing that learns has changed by then.
    """
    if run.compiled is None:
        return step()
    try:
        return step()
    except (RuntimeError, OSError, ImportError) as error:  # torch's faults of compiling are RuntimeErrors
        if is_out_of_memory(error) or not is_of_compiler(error):
            raise
        told = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    run.optimizer.zero_grad(set_to_none=True)
    run.compiled = None
    run.memory[REMEMBERED] = False
    emit(
        events.Warned(
            f"Compiling failed ({told[:200]}), so the run goes on without speed.compile from step {run.step + 1}. That is "
            "slower and changes no result beyond the last digits."
        )
    )
    return step()


def is_of_compiler(error: BaseException) -> bool:
    """Whether an error came up while something was compiled, or in what was compiled."""
    trace = error.__traceback__
    while trace is not None:
        if str(trace.tb_frame.f_globals.get("__name__", "")).startswith(COMPILERS):
            return True
        trace = trace.tb_next
    return type(error).__module__.startswith(COMPILERS)
