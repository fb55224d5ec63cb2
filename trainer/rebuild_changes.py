"""How the pictures of a run differ from those of its manifest, dataset by dataset, with their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from security.errors import RefusedConfig

MAX_NAMED = 5
"""So many pictures are named for each kind of difference."""
LOOKS_AT = {
    "sha256": "another content",
    "caption_sha256": "another caption",
    "mask_sha256": "another mask",
    "crop": "another crop",
    "bucket": "another size",
    "looks_per_epoch": "another number of looks per epoch",
    "held_out": "changed sides between trained and held out",
}
"""What is compared of a picture and how a difference is told; `size` follows from the content."""
OF_DATASET = {"role": "purpose", "weight": "weight", "trigger_word": "trigger word"}


def dataset_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Sentences about all that decides: pictures that are missing, new or others, and the datasets' own settings.

    Datasets are compared in their order, since they may lie here under other names. Raises RefusedConfig for a manifest
    that is none.
    """
    old, new = _datasets(then), _datasets(now)
    if len(old) != len(new):
        return [f"The run read {len(old)} datasets, and these settings read {len(new)}."]
    found: list[str] = []
    for before, after in zip(old, new, strict=True):
        name = str(before.get("name"))
        for key, word in OF_DATASET.items():
            if before.get(key) != after.get(key):
                found.append(f"Dataset {name}: its {word} was {before.get(key)!r} and is {after.get(key)!r}.")
        found += [f"Dataset {name}: {text}." for text in _picture_differences(_rows(before), _rows(after))]
    return found


def _datasets(manifest: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    datasets = manifest.get("datasets")
    if not isinstance(datasets, list) or not all(isinstance(one, dict) for one in datasets):
        raise RefusedConfig("The list of pictures in the file is damaged. Take another copy of it.")
    return datasets


def _rows(dataset: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    rows = dataset.get("pictures")
    if not isinstance(rows, list) or not all(_is_row(row) for row in rows):
        raise RefusedConfig("The list of pictures in the file is damaged. Take another copy of it.")
    merged: dict[str, dict[str, Any]] = {}
    for row in rows:  # a picture has a row for each size that it is trained at
        own = merged.setdefault(str(row["picture"]), {"sha256": row.get("sha256")})
        for key in LOOKS_AT:
            if key != "sha256":
                own.setdefault(key, []).append(row.get(key))
    return dict(merged)


def _is_row(row: Any) -> bool:
    return isinstance(row, dict) and "picture" in row and isinstance(row.get("sha256"), str | None)


def _picture_differences(old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]) -> list[str]:
    missing = [name for name in old if name not in new]
    added = [name for name in new if name not in old]
    by_content = {new[name].get("sha256"): name for name in added}
    renamed = [name for name in missing if old[name].get("sha256") in by_content]
    arrived = {by_content[old[name].get("sha256")] for name in renamed}
    texts = []
    if gone := [name for name in missing if name not in renamed]:
        texts.append(f"{_count(gone)} missing ({_named(gone)})")
    if came := [name for name in added if name not in arrived]:
        texts.append(f"{_count(came)} here that the run did not have ({_named(came)})")
    if renamed:
        pairs = [f"{name} is {by_content[old[name].get('sha256')]}" for name in renamed]
        texts.append(f"{_count(renamed)} renamed, which changes the order ({_named(pairs)})")
    both = [name for name in old if name in new]
    for key, what in LOOKS_AT.items():
        if changed := [name for name in both if old[name].get(key) != new[name].get(key)]:
            has = "has" if len(changed) == 1 else "have"
            verb = "" if key == "held_out" else f"{has} "
            texts.append(f"{len(changed)} picture{'' if len(changed) == 1 else 's'} {verb}{what} ({_named(changed)})")
    return texts


def _count(names: Sequence[str]) -> str:
    return "1 picture is" if len(names) == 1 else f"{len(names)} pictures are"


def _named(names: Iterable[str]) -> str:
    every = list(names)
    return ", ".join(every[:MAX_NAMED]) + (f" and {len(every) - MAX_NAMED} more" if len(every) > MAX_NAMED else "")
