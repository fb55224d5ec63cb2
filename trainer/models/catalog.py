"""The base models that are suggested: rows of catalog.toml, each value with the public page that shows it."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from security.configs import read_toml
from trainer.families import FAMILIES

CATALOG_FILE = Path(__file__).with_name("catalog.toml")
LOOKED_UP = ("licence", "revision", "size", "sha256")
"""Fields that others publish; each needs its evidence."""
_SOURCE = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}|civitai:\d{1,10}", re.ASCII)


@dataclass(frozen=True)
class CatalogRow:
    """One suggested model. `source` is as a user would type it; `size` in bytes, 0 when it was not looked up."""

    name: str
    title: str
    family: str
    why: str
    source: str
    file: str
    licence: str = ""
    revision: str = ""
    size: int = 0
    sha256: str = ""
    evidence: Mapping[str, str] = field(default_factory=dict)


@functools.cache
def catalog() -> tuple[CatalogRow, ...]:
    """Every row, in the order of the file."""
    return tuple(CatalogRow(**row) for row in read_toml(CATALOG_FILE)["models"])


def find_row(text: str) -> CatalogRow | None:
    """The row of that name or title, whatever the case."""
    wanted = text.strip().casefold()
    return next((row for row in catalog() if wanted in (row.name.casefold(), row.title.casefold())), None)


def row_faults(row: CatalogRow) -> list[str]:
    """What is wrong with a row; none of the file may have a fault, which a test checks."""
    faults = []
    if row.family not in FAMILIES:
        faults.append(f"the family {row.family!r} cannot be trained")
    if not _SOURCE.fullmatch(row.source):
        faults.append(f"the source {row.source!r} is neither owner/name nor civitai:VERSION")
    if not row.file.endswith(".safetensors"):
        faults.append(f"the file {row.file!r} is not safetensors")
    if not (row.title and row.why.endswith(".")):
        faults.append("title or reason is missing")
    if row.revision and not re.fullmatch(r"[0-9a-f]{40}", row.revision):
        faults.append("the revision is not a whole commit")
    if row.sha256 and not re.fullmatch(r"[0-9a-f]{64}", row.sha256):
        faults.append("the sha256 is not 64 hexadecimal digits")
    values: dict[str, Any] = {name: getattr(row, name) for name in LOOKED_UP}
    for name, value in values.items():
        if bool(value) != bool(row.evidence.get(name)):
            faults.append(f"{name} and its evidence must come together")
    faults += [f"the evidence of {name} is no page" for name, page in row.evidence.items() if "://" not in page]
    faults += [f"there is evidence of {name}, which is no value" for name in set(row.evidence) - set(LOOKED_UP)]
    return faults
