"""The one folder that holds everything a user owns: models, datasets, runs, cache, logs."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from security.roots import refuse_unsafe_workspace

REPOSITORY_DIR = Path(__file__).resolve().parent.parent
MODELS, TAGGERS = "models", "taggers"
"""The shelves of what is fetched, checked and kept with a record: base models, and networks that describe pictures."""


@dataclass(frozen=True)
class Workspace:
    """Folders of a workspace. Make one with `Workspace.open`. `shelf` is which of its libraries `models_dir` is."""

    path: Path
    shelf: str = MODELS

    @classmethod
    def open(cls, path: Path | None = None) -> Workspace:
        """Opens and, if needed, creates the workspace: the given folder, $SAFELIGHT_WORKSPACE, or `workspace/` beside launch.py.

        Raises RefusedPath for a folder that must not become a workspace, or that can't be written.
        """
        chosen = path or Path(os.environ.get("SAFELIGHT_WORKSPACE") or REPOSITORY_DIR / "workspace")
        resolved = chosen.expanduser().resolve()
        refuse_unsafe_workspace(resolved)
        workspace = cls(resolved)
        for folder in (
            workspace.models_dir,
            workspace.datasets_dir,
            workspace.runs_dir,
            workspace.loras_dir,
            workspace.cache_dir,
            workspace.logs_dir,
        ):
            folder.mkdir(parents=True, exist_ok=True)
        return workspace

    def on_shelf(self, shelf: str) -> Workspace:
        """The same workspace with another of its libraries, made if needed. Raises ValueError for an unknown one."""
        if shelf not in (MODELS, TAGGERS):
            raise ValueError(f"{shelf!r} is no shelf of a workspace")
        other = replace(self, shelf=shelf)
        other.models_dir.mkdir(parents=True, exist_ok=True)
        return other

    @property
    def models_dir(self) -> Path:
        """The library: base models, or on another shelf what lies there."""
        return self.path / self.shelf

    @property
    def downloads_dir(self) -> Path:
        """What is being fetched, before it is checked. Beside the models, so that a finished one is only renamed."""
        return self.path / "downloads"

    @property
    def datasets_dir(self) -> Path:
        return self.path / "datasets"

    @property
    def runs_dir(self) -> Path:
        return self.path / "runs"

    @property
    def loras_dir(self) -> Path:
        """Finished LoRA files that belong to no run: brought in, or made of others."""
        return self.path / "loras"

    @property
    def cache_dir(self) -> Path:
        return self.path / "cache"

    @property
    def latents_cache_dir(self) -> Path:
        return self.cache_dir / "latents"

    @property
    def text_cache_dir(self) -> Path:
        return self.cache_dir / "text"

    @property
    def models_cache_dir(self) -> Path:
        return self.cache_dir / "models"

    @property
    def compiled_cache_dir(self) -> Path:
        return self.cache_dir / "compiled"

    @property
    def checks_dir(self) -> Path:
        """What checks of a run found, by its settings."""
        return self.cache_dir / "checks"

    @property
    def run_caches(self) -> tuple[Path, ...]:
        """What runs write of the cache. The rest is not theirs: uploads of the page's visitors, hashes of checked models."""
        return (self.latents_cache_dir, self.text_cache_dir)

    @property
    def logs_dir(self) -> Path:
        return self.path / "logs"
