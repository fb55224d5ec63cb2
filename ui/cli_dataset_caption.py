"""`dataset caption`: the tags of a dataset, and operations on its captions."""

from __future__ import annotations

import argparse
import json

from security.errors import SafelightError
from trainer.dataset.captions import split_tags
from trainer.dataset.studio import Dataset
from trainer.dataset.tag_edits import (
    EditPlan,
    apply_plan,
    editable_captions,
    find_operation,
    plan_dataset_edit,
)
from trainer.dataset.tag_operations import OPERATIONS, EditOptions, Operation
from trainer.dataset.tags import count_tags
from ui.cli_dataset import meant_pictures, open_studio, picture_arguments
from ui.cli_lists import print_table

SET = "set"
FIELDS = ("tags", "find", "text")


def caption_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `dataset caption`."""
    words = "\n".join(f"  {name} {_usage(row)}\n      {row.help}" for name, row in OPERATIONS.items())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        f"operations:\n{words}\n  {SET} PICTURE TEXT\n      Writes the caption of one picture.\n\n"
        "TAGS are one or more tags with commas between them. Every change is one step that `dataset undo` takes back."
    ).replace("%", "%%")
    parser.add_argument("name", metavar="NAME", help="the dataset, as `dataset list` calls it")
    parser.add_argument(
        "operation", nargs="?", metavar="OPERATION", help="what to do, see below; without it the tags are listed"
    )
    parser.add_argument("values", nargs="*", metavar="VALUE", help="tags and texts, as the operation takes them")
    picture_arguments(parser)
    parser.add_argument("--ignore-case", action="store_true", help="upper and lower case are the same")
    parser.add_argument("--dry-run", action="store_true", help="show what would change, change nothing")
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="tags or changes to show (default: 20)")


def _usage(row: Operation) -> str:
    shown = [name.upper() if name in row.needs else f"[{name.upper()}]" for name in FIELDS if _takes(row, name)]
    return " ".join(shown)


def _takes(row: Operation, name: str) -> bool:
    return name in row.needs or name in row.may_have


def edit_captions(options: argparse.Namespace) -> int:
    """Lists the tags of a dataset, or edits its captions: add, remove, rename, sort, replace and more."""
    dataset = open_studio(options).open(options.name)
    if options.operation is None:
        return _list_tags(dataset, options)
    if options.operation == SET:
        return _set_caption(dataset, options)
    row = find_operation(options.operation)
    captions, num_faults = editable_captions(dataset, set(meant_pictures(dataset, options.pictures)))
    plan = plan_dataset_edit(dataset, captions, options.operation, _edit_options(row, options))
    if not options.dry_run and plan.applies:
        apply_plan(dataset, plan)
        dataset.history.settle()
    _tell(plan, num_faults, options)
    return 0


def _edit_options(row: Operation, options: argparse.Namespace) -> EditOptions:
    fields = [name for name in FIELDS if _takes(row, name)]
    if not len(row.needs) <= len(options.values) <= len(fields):
        raise SafelightError(
            f"`{options.operation}` takes {_usage(row) or 'no values'}, and {len(options.values)} "
            f"value{' was' if len(options.values) == 1 else 's were'} given. Put quotes around a value with spaces."
        )
    given = dict(zip(fields, options.values, strict=False))
    if options.ignore_case and not _takes(row, "ignore_case"):
        raise SafelightError(f"`{options.operation}` has no --ignore-case. Leave it out.")
    tags = tuple(split_tags(given.get("tags", "")))
    return EditOptions(tags, given.get("text", ""), given.get("find", ""), options.ignore_case)


def _tell(plan: EditPlan, num_faults: int, options: argparse.Namespace) -> None:
    if options.json:
        changes = {name: {"before": plan.before[name], "after": after} for name, after in plan.after.items()}
        told = {"label": plan.label, "looked_at": plan.total, "unreadable": num_faults, "done": not options.dry_run}
        print(json.dumps({**told, "changes": changes}))
        return
    print(f"{plan.label}: {plan.sentence[0].lower()}{plan.sentence[1:]}")
    if num_faults:
        print(f"{num_faults} captions can't be read and stay as they are; `dataset check` says which.")
    for name in list(plan.after)[: max(0, options.limit)]:
        print(f"  {name}\n    - {plan.before[name]}\n    + {plan.after[name]}")
    if (more := len(plan.after) - max(0, options.limit)) > 0:
        print(f"  and {more} more")
    if options.dry_run and plan.applies:
        print("Nothing was changed (--dry-run).")
    elif plan.applies:
        print(f"`dataset undo {options.name}` takes it back.")


def _list_tags(dataset: Dataset, options: argparse.Namespace) -> int:
    captions, _ = editable_captions(dataset, set(meant_pictures(dataset, options.pictures)))
    counts = sorted(count_tags(captions.values()).items(), key=lambda entry: (-entry[1], entry[0]))
    if options.json:
        print(json.dumps({"trigger_word": dataset.settings.trigger_word, "tags": dict(counts)}))
        return 0
    if word := dataset.settings.trigger_word:
        print(f"Trigger word: {word}")
    print_table([("TAG", "PICTURES"), *((tag, str(number)) for tag, number in counts[: max(0, options.limit)])])
    if (more := len(counts) - max(0, options.limit)) > 0:
        print(f"and {more} more (--limit {len(counts)} shows all)")
    return 0


def _set_caption(dataset: Dataset, options: argparse.Namespace) -> int:
    if len(options.values) != 2:
        raise SafelightError("`set` takes PICTURE TEXT. Put quotes around a text with spaces.")
    picture, text = options.values
    dataset.caption_changes({picture: text})  # refuses what can't be written, in a dry run too
    if not options.dry_run:
        dataset.set_captions(f"Caption of {picture}", {picture: text})
        dataset.history.settle()
    print(json.dumps({"picture": picture, "caption": text}) if options.json else f"{picture}: {text}")
    return 0
