"""What a run was trained on: every picture with its hash, crop and mask, kept in the run's folder as dataset.json.

Whoever has the pictures can check that they are these; captions are told by their hashes only, and no path of the machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from security.configs import parse_json
from security.errors import RefusedConfig
from security.redaction import refuse_secrets
from trainer.dataset.batches import PlacedPicture
from trainer.dataset.sources import Role, Source

VERSION = 1
MAX_BYTES = 256 * 1024 * 1024
"""Largest manifest that is compared with: half a million pictures."""


def manifest_text(
    parts: Sequence[tuple[Source, Sequence[PlacedPicture]]],
    held_out: Sequence[tuple[Source, Sequence[PlacedPicture]]] = (),
) -> str:
    """The manifest of a run's datasets. The same pictures, captions and settings give the same text.

    `held_out`: what validation.split takes out of a dataset; it is listed with that dataset, and marked.
    Raises RefusedConfig if a name in it is a token.
    """
    datasets = [
        {
            "name": source.name,
            "role": source.role.value,
            "weight": float(source.weight),
            "trigger_word": source.trigger_word,
            "pictures": [_row(one) for one in placed]
            + [{**_row(one), "held_out": True} for other, out in held_out if other is source for one in out],
        }
        for source, placed in parts
    ]
    text = json.dumps({"version": VERSION, "datasets": datasets}, indent=1) + "\n"  # ASCII: names may be no UTF-8
    refuse_secrets(text, "The list of the pictures of this run")
    return text


def run_manifest(
    sources: Sequence[Source],
    placed: Sequence[PlacedPicture],
    separate: Source | None,
    held_out: Sequence[PlacedPicture],
) -> str:
    """The manifest of a run. `held_out` are the pictures of `separate`, or out of `sources` where that is None."""
    parts = [(source, [one for one in placed if one.source == number]) for number, source in enumerate(sources)]
    if separate is not None:
        return manifest_text([*parts, (separate, held_out)])
    return manifest_text(parts, [(sources[one.source], [one]) for one in held_out])


def manifest_hash(text: str) -> str:
    """SHA-256 of a manifest, as the LoRA's metadata has it in `safelight_dataset_sha256`."""
    return hashlib.sha256(text.encode()).hexdigest()


def changes_since(path: Path, text: str) -> str:
    """How the pictures differ from those of an older manifest, in words; empty when they don't or there is none.

    One that can't be read counts as a difference that can't be told.
    """
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        return ""
    try:
        old, new = _rows(path.read_text(encoding="utf-8")), _rows(text)
    except (RefusedConfig, UnicodeDecodeError):
        return f"{path.name} of this run is damaged, so changes of the pictures since its start can't be told."
    counts = {
        "came": len(new.keys() - old.keys()),
        "went": len(old.keys() - new.keys()),
        "changed": sum(old[key] != new[key] for key in old.keys() & new.keys()),
    }
    words = [f"{count} {what}" for what, count in counts.items() if count]
    if not words:
        return ""
    return (
        f"The pictures are not those that this run began with: {', '.join(words)}. It goes on with those of now, "
        "so it will not end like a run that was never interrupted."
    )


def earlier_sides(path: Path) -> dict[str, bool] | None:
    """Which contents an older manifest of this run trains on (False) and holds out (True), by SHA-256.

    None if there is no manifest or it can't be read: then the split is made anew, which gives the same for the same
    pictures. Held-out folders and regularisation pictures are left out.
    """
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        return None
    try:
        values = parse_json(path.read_text(encoding="utf-8"), path.name)
        return {
            str(row["sha256"]): bool(row.get("held_out", False))
            for dataset in values["datasets"]
            if dataset["role"] == Role.TRAINING.value
            for row in dataset["pictures"]
        }
    except (RefusedConfig, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        return None


def _row(one: PlacedPicture) -> dict[str, Any]:
    picture = one.picture
    return {
        "picture": picture.name,
        "sha256": picture.content_hash,
        "size": list(picture.size),
        "has_caption": picture.has_caption,
        "caption_sha256": hashlib.sha256(picture.prepared.encode("utf-8", "surrogatepass")).hexdigest(),
        "looks_per_epoch": float(one.looks),
        "bucket": list(one.placement.bucket),
        "crop": [round(share, 6) for share in one.placement.frame],
        "mask_sha256": picture.mask_hash or None,
    }


def _rows(text: str) -> dict[tuple[str, str, str], Any]:
    """What was learned of each picture, by role, dataset and name. Raises RefusedConfig for a text that is no manifest.

    Sizes and looks are left out: they follow from the settings, which the user may change between stop and resume.
    """
    values = parse_json(text, "dataset.json")
    try:
        return {
            (str(dataset["role"]), str(dataset["name"]), str(row["picture"])): [
                *(row[key] for key in ("sha256", "caption_sha256", "mask_sha256")),
                row.get("held_out", False),
            ]
            for dataset in values["datasets"]
            for row in dataset["pictures"]
        }
    except (KeyError, TypeError):
        raise RefusedConfig("dataset.json is no list of pictures.") from None
