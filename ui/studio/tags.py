"""The Tags panel: the dataset's tags, and operations on captions with a preview."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trainer.dataset.captions import split_tags
from trainer.dataset.studio import Dataset
from trainer.dataset.tag_edits import EditPlan, apply_plan, editable_captions, plan_dataset_edit
from trainer.dataset.tag_operations import OPERATIONS, EditOptions
from trainer.dataset.tags import count_tags
from ui.messages import ShownError, text_of
from ui.services import Services
from ui.studio.panels import Answer, Panel

MAX_SENT_TAGS = 20_000
SHOWN_EXAMPLES = 20
MAX_FIELD_CHARACTERS = 100_000


def _functions(services: Services) -> Sequence[Answer]:
    def opened(argument: Any) -> Dataset:
        return services.studio.open(text_of(argument, "dataset"))

    def tag_operations(_argument: Any = None) -> dict[str, Any]:
        rows = [
            {
                "name": name,
                "title": row.title,
                "help": row.help,
                "needs": list(row.needs),
                "may_have": list(row.may_have),
                "example": list(row.example),
            }
            for name, row in OPERATIONS.items()
        ]
        return {"operations": rows}

    def tag_table(argument: Any = None) -> dict[str, Any]:
        dataset = opened(argument)
        captions, _ = _captions(dataset, argument)
        counts = sorted(
            count_tags(captions.values()).items(), key=lambda entry: (-entry[1], entry[0].casefold(), entry[0])
        )
        return {
            "tags": [list(entry) for entry in counts[:MAX_SENT_TAGS]],
            "num_tags": len(counts),
            "trigger_word": dataset.settings.trigger_word,
        }

    def preview_edit(argument: Any = None) -> dict[str, Any]:
        dataset = opened(argument)
        return _preview(*_plan(dataset, argument))

    def apply_edit(argument: Any = None) -> dict[str, Any]:
        dataset = opened(argument)
        with dataset.history.locked():
            plan, num_faults = _plan(dataset, argument)
            if plan.digest != text_of(argument, "digest"):
                return {"stale": True, **_preview(plan, num_faults)}
            apply_plan(dataset, plan)
        return {"text": f"{plan.label}: {_captions_text(len(plan.after))} changed."}

    return [tag_operations, tag_table, preview_edit, apply_edit]


TAGS_PANEL = Panel("tags", _functions)


def _captions_text(number: int) -> str:
    return f"{number:,} caption{'' if number == 1 else 's'}"


def _captions(dataset: Dataset, argument: Any) -> tuple[dict[str, str], int]:
    """The captions that an edit is about, those of the named pictures, else all; and how many can't be read."""
    names = argument.get("names") if isinstance(argument, dict) else None
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ShownError("The page sent no list of pictures. Reload the page.")
    return editable_captions(dataset, None if names is None else set(names))


def _plan(dataset: Dataset, argument: Any) -> tuple[EditPlan, int]:
    captions, num_faults = _captions(dataset, argument)
    options = EditOptions(
        tags=tuple(split_tags(_field(argument, "tags"))),
        text=_field(argument, "text"),
        find=_field(argument, "find"),
        ignore_case=isinstance(argument, dict) and argument.get("ignore_case") is True,
    )
    return plan_dataset_edit(dataset, captions, text_of(argument, "operation"), options), num_faults


def _field(argument: Any, key: str) -> str:
    """What was typed into a field, which may be nothing. Everything that comes from a browser may be anything."""
    value = argument.get(key, "") if isinstance(argument, dict) else None
    if not isinstance(value, str) or len(value) > MAX_FIELD_CHARACTERS:
        raise ShownError(f"The field “{key}” has no text, or over {MAX_FIELD_CHARACTERS:,} characters.")
    return value.encode("utf-8", "replace").decode()  # JSON may hold half signs, which no caption can


def _faults_text(number: int) -> str:
    if not number:
        return ""
    return f" {_captions_text(number)} can't be read and {'stays as it is' if number == 1 else 'stay as they are'}."


def _preview(plan: EditPlan, num_faults: int) -> dict[str, Any]:
    names = list(plan.after)[:SHOWN_EXAMPLES]
    return {
        "sentence": plan.sentence + _faults_text(num_faults),
        "changed": len(plan.after),
        "applies": plan.applies,
        "digest": plan.digest,
        "examples": [[name, plan.before[name], plan.after[name]] for name in names],
    }
