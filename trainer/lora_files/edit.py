"""Edits what a LoRA file says about itself: title, trigger words, author; takes out captions and all that is personal.

The numbers stay as they are, byte by byte, and the hash of them that the header carries stays right. Imports no torch until
a file is written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from security.errors import SafelightError
from security.policy import MAX_WEIGHT_METADATA_BYTES
from security.weights import check_safetensors
from trainer.metadata import refuse_secret_entries

if TYPE_CHECKING:
    from trainer.lora_files.streaming import Progress, Written

MAX_TEXT = 10_000
"""Longest text of one field, in characters."""
LISTED_CHANGES = 8
FIELDS: dict[str, str] = {
    "title": "modelspec.title",
    "trigger_words": "modelspec.trigger_phrase",
    "description": "modelspec.description",
    "author": "modelspec.author",
    "tags": "modelspec.tags",
    "usage": "modelspec.usage_hint",
    "license": "modelspec.license",
}
"""What a person may set, and its name in the modelspec standard (https://github.com/Stability-AI/ModelSpec)."""
NEEDED = frozenset({"format", "lora_adapter_metadata", "modelspec.architecture", "modelspec.implementation",
                    "modelspec.sai_model_spec", "modelspec.prediction_type", "ss_base_model_version", "ss_network_module",
                    "ss_v2", "modelspec.hash_sha256", "sshs_model_hash"})  # fmt: skip
"""What other programs load the file by, or the file itself; never taken out by a group."""
_CAPTIONS = ("ss_tag_frequency", "ss_dataset_dirs", "ss_reg_dataset_dirs", "ss_datasets")
_PERSONAL = (
    *("ss_sd_model_name", "ss_vae_name", "ss_output_name", "ss_session_id", "ss_training_comment", "modelspec.author"),
    *(
        "ss_training_started_at",
        "ss_training_finished_at",
        "modelspec.date",
        "ss_wandb_run_name",
        "modelspec.thumbnail",
    ),
    *("safelight_dataset_sha256", "ss_bucket_info", "modelspec.merged_from", "safelight_merged", "safelight_extracted"),
)
_TRAINING = ("ss_*", "safelight_*")
_PATH = re.compile(r"(?:^|[\s\"'(=,:\[])(?:/[^\s/\"',]+/[^\s/]|[A-Za-z]:[\\/](?!/)|file:/|\\\\|~/)")
"""What looks like a path of somebody's machine, wherever it stands in a text: two parts below the root, a drive, a share, a
home. An address such as https://a/b is none.
"""


class Removal(StrEnum):
    """Groups of entries that are taken out together."""

    CAPTIONS = "captions"
    PERSONAL = "personal"
    TRAINING = "training"
    ALL = "all"


REMOVALS: dict[Removal, str] = {
    Removal.CAPTIONS: "the tags of the captions and the names of the dataset's folders",
    Removal.PERSONAL: "captions, names of files and models, author, times, comments, and every text with a path in it",
    Removal.TRAINING: "everything about the training",
    Removal.ALL: "everything that is not needed to load the file",
}
"""What each group takes out, in words."""
_IN_GROUP: dict[Removal, Callable[[str, str], bool]] = {
    Removal.CAPTIONS: lambda key, value: key in _CAPTIONS,
    Removal.PERSONAL: lambda key, value: key in (*_CAPTIONS, *_PERSONAL) or _PATH.search(value) is not None,
    Removal.TRAINING: lambda key, value: any(fnmatchcase(key, pattern) for pattern in _TRAINING),
    Removal.ALL: lambda key, value: True,
}


class MissingEntry(SafelightError):
    """An entry that is to be taken out and is not there. The message names it."""


@dataclass(frozen=True)
class Edit:
    """What is changed: `texts` by the names of FIELDS (an empty one takes the entry out), groups and single entries to
    take out; entries may be patterns such as `ss_bucket_*`."""

    texts: Mapping[str, str] = field(default_factory=dict)
    groups: Sequence[Removal] = ()
    entries: Sequence[str] = ()


def edited(metadata: Mapping[str, str], edit: Edit, name: str) -> dict[str, str]:
    """The entries after an edit. `name`: the file, for messages.

    Raises SafelightError for texts that can't be kept, entries that are not there, and RefusedConfig for a token among
    the result: it is not written on.
    """
    kept = dict(metadata)
    for group in edit.groups:
        kept = {key: value for key, value in kept.items() if key in NEEDED or not _IN_GROUP[group](key, value)}
    for pattern in edit.entries:
        found = [key for key in kept if fnmatchcase(key, pattern)]
        if not found and not any(fnmatchcase(key, pattern) for key in metadata):
            raise MissingEntry(
                f"{name} has no entry {pattern!r}. Inspect on the Tools tab and `launch.py lora inspect --metadata` list what it "
                "has."
            )
        kept = {key: value for key, value in kept.items() if key not in found}
    for field_name, text in edit.texts.items():
        kept.pop(FIELDS[field_name], None)
        if wanted := _text(field_name, text):
            kept[FIELDS[field_name]] = wanted
    if sum(len(key) + len(value) for key, value in kept.items()) > MAX_WEIGHT_METADATA_BYTES:
        raise SafelightError(f"The texts of {name} would be over {MAX_WEIGHT_METADATA_BYTES} characters. Shorten them.")
    refuse_secret_entries(kept, name)
    return kept


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """What an edit does, in words, entry by entry; empty if nothing."""
    gone = [f"{key} taken out" for key in sorted(before.keys() - after.keys())]
    new = [f"{key} set" for key in sorted(after) if before.get(key) != after[key]]
    return gone + new


def changes_in_words(told: Sequence[str]) -> str:
    """The first changes in a row, and how many there are more."""
    more = len(told) - LISTED_CHANGES
    return "; ".join(told[:LISTED_CHANGES]) + (f" and {more} more" if more > 0 else "")


def edit_file(
    source: Path, target: Path, edit: Edit, *, replace: bool = False, progress: Progress | None = None
) -> tuple[Written, list[str]]:
    """Writes a LoRA with other metadata; returns what was written and what changed.

    Raises RefusedFile for what is no sound .safetensors file, SafelightError if the edit changes nothing, and as `edited`
    and `copy_weights`.
    """
    from trainer.lora_files.streaming import copy_weights

    before = check_safetensors(source).metadata
    after = edited(before, edit, source.name)
    told = changes(before, after)
    if not told:
        raise SafelightError(f"{source.name} says all of this already, so there is nothing to change.")
    return copy_weights(source, target, after, replace=replace, progress=progress), told


def _text(field_name: str, text: str) -> str:
    words = field_name.replace("_", " ")
    clean = text.strip().replace("\r\n", "\n")
    if len(clean) > MAX_TEXT:
        raise SafelightError(f"The {words} has {len(clean)} characters; {MAX_TEXT} are allowed. Shorten it.")
    if any((ord(sign) < 32 and sign not in "\n\t") or 0xD800 <= ord(sign) < 0xE000 for sign in clean):
        raise SafelightError(f"The {words} holds control characters or broken signs. Type it again.")
    if field_name in ("tags", "trigger_words"):
        return ", ".join(part for piece in clean.split(",") if (part := " ".join(piece.split())))
    return clean
