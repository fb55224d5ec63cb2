"""What a hub offers and what a download would bring: plain values that a page, a terminal and a job file can hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from security.errors import SafelightError
from security.policy import Service
from trainer.workspace import MODELS, TAGGERS

SAFE, PENDING, UNSAFE, UNKNOWN = "safe", "not scanned yet", "unsafe", "unknown"
"""What the hub's own virus and pickle scanners say of a file."""


@dataclass(frozen=True)
class PlannedFile:
    """One file to fetch. `path` is where it goes in the model (with "/"), `remote` where the hub has it.

    `size` in bytes, None when the hub does not say; `sha256` and `git_sha1` empty when it has none.
    """

    path: str
    remote: str
    size: int | None
    sha256: str = ""
    git_sha1: str = ""
    scan: str = UNKNOWN


@dataclass(frozen=True)
class Choice:
    """One of several files that a source holds. `file` is what to ask for, `size` in bytes."""

    file: str
    label: str
    size: int | None


@dataclass(frozen=True)
class Plan:
    """What a download will bring, found out before the first byte of it.

    `files` is empty while one of `choices` has to be picked. `confirm` holds what the user has to agree to first,
    `needs_convert` says that the file is a checkpoint that can run code and is only taken through the converter;
    `shelf` in which library of the workspace it goes.
    """

    service: Service
    title: str
    name: str
    source: str
    page: str
    revision: str
    layout: Literal["file", "folder"]
    files: tuple[PlannedFile, ...]
    repo: str = ""
    version_id: int = 0
    host: str = ""
    licence: str = ""
    licence_link: str = ""
    family: str = ""
    facts: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    confirm: tuple[str, ...] = ()
    choices: tuple[Choice, ...] = ()
    needs_convert: bool = False
    verdicts: Mapping[str, str] = field(default_factory=dict)
    shelf: str = MODELS

    @property
    def num_bytes(self) -> int:
        """Size of all files, as far as the hub says."""
        return sum(file.size or 0 for file in self.files)


class RefusedModel(SafelightError):
    """A model that is not fetched. The message names the check, why, and the way out."""


def plan_values(plan: Plan) -> dict[str, Any]:
    """The plan as JSON values."""
    return {**dataclasses.asdict(plan), "service": plan.service.value, "verdicts": dict(plan.verdicts)}


def plan_from(values: Mapping[str, Any]) -> Plan:
    """The reverse of `plan_values`. Raises TypeError, KeyError or ValueError for values that are no plan."""
    fields = dict(values)
    fields["service"] = Service(fields["service"])
    fields["files"] = tuple(PlannedFile(**file) for file in fields["files"])
    fields["choices"] = tuple(Choice(**choice) for choice in fields["choices"])
    for name in ("facts", "warnings", "confirm"):
        fields[name] = tuple(fields[name])
    if fields.setdefault("shelf", MODELS) not in (MODELS, TAGGERS):
        raise ValueError("not a shelf of a workspace")
    return Plan(**fields)
