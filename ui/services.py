"""What every tab works with: the workspace, the jobs, the machine and who can reach the page."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

from security.errors import RefusedPath
from security.net import Network
from security.tokens import TokenStore
from trainer.config.schema import TrainConfig, weighted_dataset
from trainer.config.sections import weighted_lora
from trainer.dataset.scan import list_datasets
from trainer.dataset.studio import Studio
from trainer.jobs import Jobs
from trainer.lora_files.shelf import list_loras
from trainer.models.downloads import Downloads
from trainer.models.library import ModelInfo, list_models
from trainer.workspace import Workspace
from ui.entrance import Entrance
from ui.machine import Machine

IMPORT_FOLDER = "import"
REMEMBER_SECONDS = 15.0


@dataclass(frozen=True)
class Access:
    """Who can reach the page: only this machine, everybody in the network (`listen`), everybody with the link (`share`),
    or who comes through a proxy by another name. `entrance` is there if the page asks for a password."""

    listen: bool = False
    share: bool = False
    host_names: tuple[str, ...] = ()
    entrance: Entrance | None = None

    @property
    def open_to_others(self) -> bool:
        return self.listen or self.share or bool(self.host_names)


class Library:
    """The models that are here, remembered for some seconds: recognising one means reading its files."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._models: list[ModelInfo] = []
        self._read_at = -math.inf

    def models(self) -> list[ModelInfo]:
        """As `list_models`; a change made outside of the page is seen a little later."""
        if time.monotonic() - self._read_at > REMEMBER_SECONDS:
            self._models, self._read_at = list_models(self._workspace), time.monotonic()
        return self._models

    def forget(self) -> None:
        """After a model came or went."""
        self._read_at = -math.inf


@dataclass(frozen=True)
class Services:
    """Made once by the server, handed to the tabs."""

    workspace: Workspace
    jobs: Jobs
    machine: Machine
    access: Access
    library: Library
    tokens: TokenStore
    network: Network
    downloads: Downloads
    studio: Studio

    def import_roots(self) -> list[Path] | None:
        """Where typed paths may lead: anywhere for the person at this machine, `import` in the workspace for all others."""
        return [self.workspace.path / IMPORT_FOLDER] if self.access.open_to_others else None

    def lora_names(self) -> set[str]:
        """What a setting may name a LoRA by, without being a path: runs, their files, and those of workspace/loras."""
        return {name for one in list_loras(self.workspace) for name in (one.name, one.run) if name}

    def refuse_paths(self, config: TrainConfig) -> None:
        """Raises RefusedPath when a page that others can reach asks for a folder outside the library."""
        if not self.access.open_to_others:
            return
        models = {info.name for info in self.library.models()}
        datasets = {info.name for info in list_datasets(self.workspace)}
        used = [name for _, name in map(weighted_lora, config.lora.merge_first)]
        loras = self.lora_names() if used or config.lora.continue_from else set()
        for setting, value, known in (
            ("model.base", config.model.base, models),
            ("dataset.folder", config.dataset.folder, datasets),
            *(("dataset.more", weighted_dataset(line)[1], datasets) for line in config.dataset.more),
            *(("dataset.regularisation", name, datasets) for name in config.dataset.regularisation),
            ("validation.folder", config.validation.folder, datasets | {""}),
            ("lora.continue_from", config.lora.continue_from, loras | {""}),
            *(("lora.merge_first", name, loras) for name in used),
        ):
            if value not in known:
                raise RefusedPath(
                    f"{setting} is {value}. While the page is open to others, only what the library has can "
                    "be used: import it first."
                )
