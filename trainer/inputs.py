"""What a run reads, found and checked before it starts, and the sandbox that lets its thread reach this and no more."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from security.sandbox import confine_thread
from trainer.config.schema import TrainConfig
from trainer.dataset.sources import Source, find_held_out, find_sources
from trainer.events import Sandboxed
from trainer.models.files import ModelFiles
from trainer.models.library import find_model, model_places
from trainer.runs import RunFolder
from trainer.workspace import Workspace


@dataclass(frozen=True)
class Inputs:
    """The base model and the datasets: those trained on and for regularisation, and what is held out, if anything."""

    model: ModelFiles
    sources: tuple[Source, ...]
    held_out: Source | None

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
    return Inputs(find_model(workspace, config.model.base), sources, held_out)


def confine_run(inputs: Inputs, folder: RunFolder, workspace: Workspace) -> Sandboxed:
    """Binds the calling thread, for good, to what this run needs. Call it before pictures or weights are opened."""
    for cache in workspace.run_caches:
        cache.mkdir(parents=True, exist_ok=True)
    read = [*model_places(inputs.model.path), *inputs.folders]
    state = confine_thread(read=read, write=[folder.path, *workspace.run_caches])
    return Sandboxed(state.active, state.detail)
