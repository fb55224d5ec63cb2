"""What of a run a checkpoint holds, putting it back so that the next step is the one that would have come, and what the
user may change in between.

Everything that learns goes by its name, whatever the adapter: matrices, magnitudes, token embeddings.
"""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from security.errors import SafelightError
from trainer.adapters.weights import adapter_weights
from trainer.checkpoints import Checkpoint
from trainer.config.changes import changed_settings, fixed_changes, flat_settings
from trainer.device import device_label
from trainer.optimizers import load_optimizer_state, optimizer_state
from trainer.spikes import LossWatch

if TYPE_CHECKING:
    from trainer.setup import Run

LIBRARIES = ("torch", "diffusers", "transformers", "peft")
"""Their versions decide about the last bits of a result."""


class UnfitCheckpoint(SafelightError):
    """A checkpoint that these settings can't go on from."""


def capture(run: Run) -> Checkpoint:
    """The run's state after its last full step. Gradients of a window that was begun are made again, which is exact."""
    named = learned(run)
    return Checkpoint(
        step=run.step,
        images_seen=run.images_seen,
        lora={**held(run), **{name: parameter.detach() for name, parameter in named.items()}},
        optimizer=optimizer_state(run.config.optimizer, run.optimizer),
        scaler=run.scaler.state_dict(),
        parameters=tuple(named),
        settings=flat_settings(run.config),
        made_by=_made_by(run),
        memory={**run.memory, "started_at": run.started_at},
        healthy=not LossWatch.of(run.memory).astray,
    )


def learned(run: Run) -> dict[str, nn.Parameter]:
    """Everything that learns, by its part and module, in the order of the optimizer."""
    names = {
        id(parameter): f"{part}.{name}"
        for part, module in run.adapted.items()
        for name, parameter in module.named_parameters()
    }
    return {names[id(parameter)]: parameter for parameter in run.parameters}


def held(run: Run) -> dict[str, Tensor]:
    """All that adapters hold, by part and module: also what does not learn, such as frozen layers and PiSSA's beginning."""
    return {
        f"{part}.{name}": one for part, module in run.adapted.items() for name, one in adapter_weights(module).items()
    }


def _made_by(run: Run) -> dict[str, Any]:
    """What the numbers depend on besides the settings."""
    return {
        "base": run.components.model_files.fingerprint,
        "base_name": run.components.model_files.name,
        "prediction_type": run.noise_schedule.prediction_type,
        "zero_terminal_snr": run.noise_schedule.zero_terminal_snr,
        "device": device_label(run.device, run.dtype),
        "threads": torch.get_num_threads() if run.device.type == "cpu" else 0,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
    }


def restore(run: Run, checkpoint: Checkpoint) -> list[str]:
    """Puts a captured state into a freshly prepared run; returns what the user should know, as sentences.

    Learning rates and the like stay those of the settings: an edit between stop and resume must win. Raises
    UnfitCheckpoint for a change that can't be made in mid-run, with the way out.
    """
    refuse_changes(run, checkpoint)
    named = learned(run)
    with torch.no_grad():
        for name, tensor in {**held(run), **named}.items():
            tensor.copy_(checkpoint.lora[name])
    complaint = load_optimizer_state(run.config.optimizer, run.optimizer, checkpoint.optimizer)
    if checkpoint.scaler and run.scaler.is_enabled():
        run.scaler.load_state_dict(checkpoint.scaler)
    run.step, run.images_seen, run.resumed_from = checkpoint.step, checkpoint.images_seen, checkpoint.step
    run.memory = dict(checkpoint.memory)
    run.started_at = run.memory.pop("started_at", run.started_at)
    run.changed = changed_settings(checkpoint.settings, flat_settings(run.config))
    return [sentence for sentence in (complaint, _other_machine(run, checkpoint)) if sentence]


def refuse_changes(run: Run, checkpoint: Checkpoint) -> None:
    """Raises UnfitCheckpoint if the settings or the base are others than a checkpoint can go on with."""
    begins = f"{run.folder.run_id} was trained to step {checkpoint.step} with"
    new_run = "or start a new run (its lora.continue_from can take this LoRA as its start)."
    now, then = _made_by(run), checkpoint.made_by
    if (fixed := fixed_changes(checkpoint.settings, flat_settings(run.config))) or not _fits(run, checkpoint):
        words = [f"{name} {_words(old)}, and its settings say {_words(new)} now" for name, (old, new) in fixed.items()]
        told = "; ".join(words) or "weights of other names or shapes than these settings give"
        raise UnfitCheckpoint(f"{begins} {told}. That can't change in mid-run: set it back, {new_run}")
    if then and now["base"] != then["base"]:
        raise UnfitCheckpoint(
            f"{begins} the base {then['base_name']}, and model.base names other weights now ({now['base_name']}). A LoRA "
            f"fits the base that it was trained on: set it back, {new_run}"
        )
    for key in ("prediction_type", "zero_terminal_snr"):
        if then and now[key] != then[key]:
            raise UnfitCheckpoint(
                f"{begins} model.{key} {_words(then[key])}, and it is {_words(now[key])} now, so the LoRA would have to "
                f"unlearn everything: set it back, {new_run}"
            )
    total = run.config.training.max_train_steps
    if total < checkpoint.step:
        raise UnfitCheckpoint(
            f"{begins} training.max_train_steps now at {total}. Set it to {checkpoint.step} to end here, or higher."
        )


def _fits(run: Run, checkpoint: Checkpoint) -> bool:
    def shapes(tensors: dict[str, Any]) -> list[tuple[str, torch.Size]]:
        return [(name, tensors[name].shape) for name in tensors]

    saved: dict[str, Tensor] = {name: checkpoint.lora[name] for name in checkpoint.parameters}
    return shapes(learned(run)) == shapes(saved)


def _other_machine(run: Run, checkpoint: Checkpoint) -> str:
    """Why the end may differ in its last bits from that of a run that was never interrupted, or an empty text."""
    now, then = _made_by(run), checkpoint.made_by
    pairs = {"the device": (then.get("device"), now["device"]), "the threads": (then.get("threads"), now["threads"])}
    known = then.get("versions", {})
    pairs |= {name: (known.get(name), new) for name, new in now["versions"].items()}
    differ = [f"{what} ({old} then, {new} now)" for what, (old, new) in pairs.items() if old != new]
    if not differ:
        return ""
    return f"The run goes on, but not bit for bit as it would have, because these are others: {', '.join(differ)}."


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return ", ".join(str(one) for one in value) or "nothing"
    return str(value) if value != "" else "nothing"
