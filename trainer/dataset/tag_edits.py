"""An edit of many captions: first what it would change, then the change itself."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from security.errors import SafelightError
from trainer.dataset.captions import MAX_CAPTION_BYTES
from trainer.dataset.settings import OWN_FOLDER, SETTINGS_FILE, settings_bytes
from trainer.dataset.tag_operations import OPERATIONS, EditOptions, Operation
from trainer.dataset.tags import count_tags, is_prose

if TYPE_CHECKING:
    from trainer.dataset.history import Edit
    from trainer.dataset.studio import Dataset

MAX_TEXT_CHARACTERS = 4_000
MAX_TAGS = 2_000
MAX_TAG_CHARACTERS = 500
_SHOWN_CHARACTERS = 40

FIELD_FAULTS = {
    "tags": "names no tag. Type one or more, with commas between them",
    "text": "has no new text. Type what it is to become",
    "find": "has nothing to find. Type the text that is to be replaced",
}


@dataclass(frozen=True)
class EditPlan:
    """What an edit changes. `label`: its name in the list of edits; `total`: captions looked at; `after`: new texts.

    `trigger_word`: the one that the dataset has afterwards; None leaves it. `num_prose`: captions that were left as they
    are because they are written in sentences.
    """

    label: str
    total: int
    before: Mapping[str, str]
    after: Mapping[str, str]
    trigger_word: str | None = None
    num_prose: int = 0

    @property
    def applies(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.after) or self.trigger_word is not None

    @property
    def digest(self) -> str:
        """A name for exactly these changes: what was looked at is what is done, or it is looked at once more."""
        entries = [self.trigger_word or ""]
        entries += [part for name in sorted(self.after) for part in (name, self.before[name], self.after[name])]
        return hashlib.sha256("\0".join(entries).encode("utf-8", "surrogateescape")).hexdigest()[:16]

    @property
    def sentence(self) -> str:
        """`Changes 37 of 48 captions.`"""
        number = f"{len(self.after):,}" if self.after else "none"
        prose = f" {self.num_prose:,} in sentences: left as they are." if self.num_prose else ""
        return f"Changes {number} of {self.total:,} captions.{prose}"


def plan_edit(captions: Mapping[str, str], operation: str, options: EditOptions) -> EditPlan:
    """What an operation changes in `captions` (picture -> text); `options.counts` are counted here if they are needed.

    Raises SafelightError for an unknown operation, what it lacks or has too much of, a pattern that is no good, and a
    caption that would become too long.
    """
    row = find_operation(operation)
    _check(row, options)
    if operation == "sort_common" and not options.counts:
        options = replace(options, counts=count_tags(captions.values()))
    change = row.build(options)
    before, after = {}, {}
    for name, text in captions.items():
        changed = change(text)
        if changed == text:
            continue
        if len(changed.encode("utf-8", "surrogateescape")) > MAX_CAPTION_BYTES:
            raise SafelightError(
                f"The caption of {name} would be over {MAX_CAPTION_BYTES:,} bytes long. Nothing was changed. "
                "Put a shorter text in place."
            )
        before[name], after[name] = text, changed
    num_prose = sum(map(is_prose, captions.values())) if row.spares_prose else 0
    return EditPlan(edit_label(row, options), len(captions), before, after, num_prose=num_prose)


def find_operation(name: str) -> Operation:
    """The row of that name. Raises SafelightError with the nearest name, or all of them."""
    if name in OPERATIONS:
        return OPERATIONS[name]
    near = difflib.get_close_matches(name, OPERATIONS, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(OPERATIONS)}."
    raise SafelightError(f"There is no operation {name!r}. {hint}")


def edit_label(row: Operation, options: EditOptions) -> str:
    """What the list of edits calls it."""
    return row.label.format(
        tags=_short(", ".join(options.tags)),
        text=_short(options.text),
        find=_short(options.find),
        num_tags=len(options.tags),
    )


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


def _check(row: Operation, options: EditOptions) -> None:
    for name in row.needs:
        value = getattr(options, name)
        if not value or (name != "find" and not "".join(value).strip()):
            raise SafelightError(f"“{row.title}” {FIELD_FAULTS[name]}.")
    if "text" in row.needs and row.needs == ("text",) and "," in options.text:
        raise SafelightError(f"The trigger word {options.text!r} has a comma in it. Use one word or phrase.")
    if len(options.tags) > MAX_TAGS or any(len(tag) > MAX_TAG_CHARACTERS for tag in options.tags):
        raise SafelightError(
            f"These are {len(options.tags)} tags, the longest with {max(map(len, options.tags))} characters; "
            f"{MAX_TAGS} of {MAX_TAG_CHARACTERS} characters are allowed at once. Do it in parts."
        )
    for value in (options.text, options.find):
        if len(value) > MAX_TEXT_CHARACTERS:
            raise SafelightError(
                f"A text of {len(value)} characters is too long here; {MAX_TEXT_CHARACTERS} are allowed."
            )
        if "\0" in value or "\n" in value:
            raise SafelightError("A caption is one line of text: the new text can't hold a line break or a NUL.")


def editable_captions(dataset: Dataset, names: Collection[str] | None = None) -> tuple[dict[str, str], int]:
    """The captions of these pictures (None: of all), empty where there is none, and how many can't be read."""
    wanted = [picture for picture in dataset.pictures() if names is None or picture in names]
    captions, faults = dataset.read_captions(wanted)
    return {picture: captions.get(picture, "") for picture in wanted if picture not in faults}, len(faults)


def plan_dataset_edit(dataset: Dataset, captions: Mapping[str, str], operation: str, options: EditOptions) -> EditPlan:
    """As `plan_edit`, with what the dataset knows: its trigger word stays first, and a former one goes for a new one.

    Tags are counted over the whole dataset, so that a few pictures are sorted as all would be.
    """
    known = dataset.settings.trigger_word
    if operation == "trigger":
        word = options.text.strip()
        former = (known,) if known and known != word else ()
        plan = plan_edit(captions, operation, replace(options, text=word, tags=former))
        return plan if word == known else replace(plan, trigger_word=word)
    counts = count_tags(dataset.captions().values()) if operation == "sort_common" else {}
    return plan_edit(captions, operation, replace(options, trigger_word=known, counts=counts))


def apply_plan(dataset: Dataset, plan: EditPlan) -> Edit:
    """Does it, as one step that can be undone. Raises SafelightError for a read-only dataset."""
    changes = dataset.caption_changes(plan.after)
    if plan.trigger_word is not None:
        settings = replace(dataset.settings, trigger_word=plan.trigger_word)
        changes[f"{OWN_FOLDER}/{SETTINGS_FILE}"] = settings_bytes(settings)
    return dataset.history.apply(plan.label, changes)
