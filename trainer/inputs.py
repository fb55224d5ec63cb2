"""What a run reads, found and checked before it starts, and the sandbox that lets its thread reach this and no more."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from security.errors import SafelightError
from security.sandbox import confine_thread
from trainer.adapters.kinds import refuse_other_file
from trainer.config.schema import TrainConfig
from trainer.config.sections import weighted_lora
from trainer.dataset.sources import Source, find_held_out, find_sources
from trainer.events import Sandboxed
from trainer.lora_files.shelf import locate_lora
from trainer.models.files import ModelFiles
from trainer.models.library import find_model, model_places
from trainer.runs import RunFolder
from trainer.workspace import Workspace


@dataclass(frozen=True)
class Inputs:
    """The base model and the datasets: those trained on and for regularisation, and what is held out, if anything.

    `merge_first`: LoRAs for the base, each with its weight. `continue_from`: the LoRA to go on from; where it is gone
    or of a kind that the run doesn't train, `fault` says so, which matters only to a run that has no checkpoint yet.
    """

    model: ModelFiles
    sources: tuple[Source, ...]
    held_out: Source | None
    merge_first: tuple[tuple[float, Path], ...] = ()
    continue_from: Path | None = None
    fault: str = ""

    @property
    def folders(self) -> list[Path]:
        """All folders with pictures that the run reads."""
        return [source.folder for source in (*self.sources, *([self.held_out] if self.held_out else []))]


def find_inputs(config: TrainConfig, workspace: Workspace) -> Inputs:
    """Finds what the settings name. Of the model only headers, JSON files and hashes are looked at, by our own code.

    Hashing takes seconds for gigabytes, once. Raises SafelightError when something is missing or can't be used.
    """
    sources = find_sources(workspace, config.dataset)
    held_out = find_held_out(workspace, config.validation.folder, sources[0].trigger_word)
    merge_first = tuple(
        (weight, _lora(workspace, name)) for weight, name in map(weighted_lora, config.lora.merge_first)
    )
    continue_from, fault = None, ""
    if config.lora.continue_from:
        try:
            continue_from = _lora(workspace, config.lora.continue_from)
        except SafelightError as error:
            fault = f"lora.continue_from is {config.lora.continue_from}. {error}"
    if continue_from is not None:
        try:
            refuse_other_file(continue_from, config.lora.adapter)
        except SafelightError as error:
            fault = str(error)
    model = find_model(workspace, config.model.base)
    return Inputs(model, sources, held_out, merge_first, continue_from, fault)


def _lora(workspace: Workspace, name: str) -> Path:
    """The file that a setting means: a run's finished LoRA by the run's name, else a LoRA's name or path."""
    if name in {path.name for path in workspace.runs_dir.iterdir()}:
        name = f"{name}/{RunFolder.find(workspace, name).config().name}"
    return locate_lora(workspace, name).path


def confine_run(inputs: Inputs, folder: RunFolder, workspace: Workspace) -> Sandboxed:
    """Binds the calling thread, for good, to what this run needs. Call it before pictures or weights are opened."""
    for cache in workspace.run_caches:
        cache.mkdir(parents=True, exist_ok=True)
    loras = [path for _, path in inputs.merge_first] + ([inputs.continue_from] if inputs.continue_from else [])
    read = [*model_places(inputs.model.path), *inputs.folders, *loras]
    state = confine_thread(read=read, write=[folder.path, *workspace.run_caches])
    return Sandboxed(state.active, state.detail)
