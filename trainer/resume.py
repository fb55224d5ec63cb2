"""What of a run a checkpoint holds, and putting it back so that the next step is the one that would have come."""

from __future__ import annotations

from typing import TYPE_CHECKING

from security.errors import SafelightError
from trainer.adapters import load_lora_weights, lora_weights
from trainer.checkpoints import Checkpoint

if TYPE_CHECKING:
    from trainer.setup import Run


def capture(run: Run) -> Checkpoint:
    """The run's state after its last full step."""
    lora = {
        f"{part}.{name}": tensor
        for part, module in run.adapted.items()
        for name, tensor in lora_weights(module).items()
    }
    return Checkpoint(run.step, run.images_seen, lora, run.optimizer.state_dict(), run.scaler.state_dict())


def restore(run: Run, checkpoint: Checkpoint) -> None:
    """Puts a captured state into a freshly prepared run. Raises SafelightError when the LoRA has another shape.

    Learning rates and the like stay those of the settings: an edit between stop and resume must win.
    """
    present = {name: tensor.shape for name, tensor in capture(run).lora.items()}
    if present != {name: tensor.shape for name, tensor in checkpoint.lora.items()}:
        raise SafelightError(
            f"The checkpoint of step {checkpoint.step} was made with another lora.rank, lora.targets or "
            "lora.train_text_encoder than config.toml has now. Set them back, or start a new run."
        )
    for part, module in run.adapted.items():
        prefix = f"{part}."
        own = {name.removeprefix(prefix): tensor for name, tensor in checkpoint.lora.items() if name.startswith(prefix)}
        load_lora_weights(module, own)
    state = run.optimizer.state_dict()
    state["state"] = checkpoint.optimizer["state"]
    run.optimizer.load_state_dict(state)
    if checkpoint.scaler:
        run.scaler.load_state_dict(checkpoint.scaler)
    run.step, run.images_seen, run.resumed_from = checkpoint.step, checkpoint.images_seen, checkpoint.step
