"""The catalog: every row is complete, trainable and unique, and no value comes without the page that shows it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from security.policy import HOST_RULES, Service
from trainer.families import FAMILIES
from trainer.models.catalog import LOOKED_UP, CatalogRow, catalog, find_row, row_faults


@pytest.mark.parametrize("row", catalog(), ids=lambda row: row.name)
def test_a_row_has_no_fault(row: CatalogRow) -> None:
    assert row_faults(row) == []


def test_both_families_are_there_and_names_are_unique() -> None:
    assert {row.family for row in catalog()} == set(FAMILIES)
    for key in ("name", "title", "source"):
        values = [getattr(row, key).casefold() for row in catalog()]
        assert len(values) == len(set(values)), key


def test_evidence_is_a_public_page() -> None:
    hosts = {host for rule in HOST_RULES.values() for host in rule.typed} | {"github.com"}
    for row in catalog():
        for page in row.evidence.values():
            assert page.startswith("https://") and page.split("/")[2] in hosts, (row.name, page)


def test_most_values_are_known() -> None:
    """The catalog is worth something because it knows the files; a row that knows nothing must stay the exception."""
    assert sum(bool(row.sha256) for row in catalog()) >= len(catalog()) - 1
    assert Service.HUGGING_FACE in HOST_RULES


GOOD = catalog()[0]


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        (replace(GOOD, family="flux"), "cannot be trained"),
        (replace(GOOD, source="https://elsewhere.example/x"), "neither owner/name"),
        (replace(GOOD, file="model.ckpt"), "not safetensors"),
        (replace(GOOD, revision="main"), "not a whole commit"),
        (replace(GOOD, sha256="abc"), "64 hexadecimal"),
        (replace(GOOD, why=""), "reason is missing"),
        *((replace(GOOD, **{name: 0 if name == "size" else ""}), f"{name} and its evidence") for name in LOOKED_UP),
        (replace(GOOD, evidence={**GOOD.evidence, "sha256": ""}), "sha256 and its evidence"),
        (replace(GOOD, evidence={**GOOD.evidence, "sha256": "I remember it"}), "is no page"),
        (replace(GOOD, evidence={**GOOD.evidence, "why": "https://a.b"}), "which is no value"),
    ],
)
def test_a_fault_is_found(broken: CatalogRow, fault: str) -> None:
    assert any(fault in one for one in row_faults(broken)), row_faults(broken)


def test_a_row_is_found_by_name_and_title() -> None:
    assert find_row("  SDXL-Base-1.0 ") is GOOD
    assert find_row(GOOD.title.upper()) is GOOD
    assert find_row("sdxl") is None
