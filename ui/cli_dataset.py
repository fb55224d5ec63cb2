"""`dataset`: what the Dataset tab does, on the command line. A subcommand is a row of SUBCOMMANDS and a function."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable
from fnmatch import fnmatchcase

from security.errors import SafelightError
from trainer.dataset.history import Edit
from trainer.dataset.studio import Dataset, Studio
from trainer.tasks import TaskState, TaskView
from trainer.words import duration
from trainer.workspace import Workspace
from ui.cli_lists import print_table
from ui.subcommands import AddArguments, add_subcommands

Run = Callable[[argparse.Namespace], int]
FAILED = 1


def open_studio(options: argparse.Namespace) -> Studio:
    """The datasets of the workspace that the command line names, else of the usual one."""
    return Studio(Workspace.open(options.workspace))


def _name_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the dataset, as `dataset list` calls it")


def picture_arguments(parser: argparse.ArgumentParser) -> None:
    """The flag that names pictures."""
    help_text = "only these, such as '10_mira/*'. May be given repeatedly"
    parser.add_argument("--pictures", action="append", metavar="PATTERN", help=help_text)


def meant_pictures(dataset: Dataset, patterns: list[str] | None) -> list[str]:
    """The pictures that fit any of the patterns, all without one. Raises SafelightError if there is none."""
    names = dataset.pictures()
    if not patterns:
        return names
    names = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
    if not names:
        raise SafelightError(f"{dataset.name} has no picture that fits {' or '.join(patterns)}.")
    return names


def _history_arguments(parser: argparse.ArgumentParser) -> None:
    _name_argument(parser)
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="the newest N steps (default: 20)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--forget", action="store_true", help="free the disk: nothing so far can be undone any more")
    what.add_argument(
        "--set-aside", action="store_true", help="put a damaged history out of the way, to begin a new one"
    )


def _undo_arguments(parser: argparse.ArgumentParser) -> None:
    _name_argument(parser)
    parser.add_argument("--steps", type=int, default=1, metavar="N", help="so many steps (default: 1)")


def list_all(options: argparse.Namespace) -> int:
    """Lists the datasets of the workspace with their pictures and captions."""
    infos = open_studio(options).datasets()
    if options.json:
        fields = ("name", "num_pictures", "num_captions", "builtin")
        print(json.dumps([{**{key: getattr(info, key) for key in fields}, "path": str(info.path)} for info in infos]))
        return 0
    rows = [("DATASET", "PICTURES", "CAPTIONS", "")]
    rows += [
        (info.name, str(info.num_pictures), str(info.num_captions), "embedded" if info.builtin else "")
        for info in infos
    ]
    print_table(rows)
    return 0


def show_history(options: argparse.Namespace) -> int:
    """Lists what was changed in a dataset, newest first; or forgets it, to free the disk."""
    history = open_studio(options).open(options.name).history
    if options.set_aside:
        print(f"The history is in {history.set_aside() or 'no file: there was none'} now.")
        return 0
    if options.forget:
        before = history.num_bytes
        history.forget()
        print(f"{(before - history.num_bytes) / 1e6:,.1f} MB freed. The pictures and captions are as they were.")
        return 0
    edits = history.edits(max(1, options.limit), with_files=options.json)
    if options.json:
        print(json.dumps([vars(edit) for edit in edits]))
        return 0
    if not edits:
        print("Nothing was changed yet.")
        return 0
    rows = [("WHEN", "FILES", "", "WHAT")]
    for edit in edits:
        when = datetime.datetime.fromtimestamp(edit.time).strftime("%Y-%m-%d %H:%M:%S")
        rows.append((when, str(edit.num_files), "undone" if edit.undone else "", edit.label))
    print_table(rows)
    return 0


def undo(options: argparse.Namespace) -> int:
    """Takes back the last change of a dataset, or several."""
    history = open_studio(options).open(options.name).history
    return _turn(options, history.undo, history.settle, "Undone")


def redo(options: argparse.Namespace) -> int:
    """Does again what was undone last in a dataset."""
    history = open_studio(options).open(options.name).history
    return _turn(options, history.redo, history.settle, "Done again")


def _turn(options: argparse.Namespace, step: Callable[[], Edit], settle: Callable[[], None], word: str) -> int:
    if options.steps < 1:
        raise SafelightError(f"--steps is {options.steps}. Give how many steps, 1 or more.")
    try:
        for _ in range(options.steps):
            edit = step()
            if options.json:
                print(json.dumps(vars(edit)))
                continue
            print(f"{word}: {edit.label} ({edit.num_files} file{'' if edit.num_files == 1 else 's'})")
            for name in edit.left:
                print(f"  left as it is, because something else changed it since: {name}")
    finally:
        settle()
    return 0


def follow(studio: Studio, task_id: str, *, as_json: bool) -> int:
    """Shows how far a task is until it ends, then its report. Ctrl+C cancels it. Returns the exit code."""
    view = watch(studio, task_id, quiet=as_json)
    if as_json:
        told = {"state": view.state.value, "message": view.message, "skipped": [list(entry) for entry in view.skipped]}
        print(json.dumps(told))
    else:
        print(view.message)
        for name, reason in view.skipped:
            print(f"  left out: {name}: {reason}")
    return 0 if view.state is TaskState.DONE else FAILED


def watch(studio: Studio, task_id: str, *, quiet: bool) -> TaskView:
    """Shows how far a task is until it ends. Ctrl+C cancels it."""
    shown = ""
    while (view := studio.tasks.get(task_id)).state.is_active:
        left = f" · {duration(view.eta_seconds)} left" if view.eta_seconds is not None else ""
        line = f"{view.title}: {view.done} of {view.total}{left}" if view.total else view.title
        if line != shown and not quiet and sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{line}")
            sys.stderr.flush()
            shown = line
        try:
            studio.tasks.wait(0.2)
        except KeyboardInterrupt:
            studio.tasks.cancel(task_id)
            studio.tasks.wait()
    if shown:
        sys.stderr.write("\r\x1b[K")
    return view


def _import_arguments(parser: argparse.ArgumentParser) -> None:
    from ui.cli_dataset_import import import_arguments

    import_arguments(parser)


def import_pictures(options: argparse.Namespace) -> int:
    """Brings pictures and captions into a dataset: from folders, archives and files, or from an address."""
    from ui.cli_dataset_import import import_sources

    return import_sources(options)


def _caption_arguments(parser: argparse.ArgumentParser) -> None:
    from ui.cli_dataset_caption import caption_arguments

    caption_arguments(parser)


def caption(options: argparse.Namespace) -> int:
    """Lists the tags of a dataset, or edits its captions: add, remove, rename, sort, replace and more."""
    from ui.cli_dataset_caption import edit_captions

    return edit_captions(options)


def _tag_arguments(parser: argparse.ArgumentParser) -> None:
    from ui.cli_dataset_tag import tag_arguments

    tag_arguments(parser)


def tag(options: argparse.Namespace) -> int:
    """Captions the pictures of a dataset by taggers or captioners, or fetches these."""
    from ui.cli_dataset_tag import tag as tag_pictures

    return tag_pictures(options)


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    from ui.cli_dataset_check import check_arguments

    check_arguments(parser)


def check(options: argparse.Namespace) -> int:
    """Checks the quality of a dataset and fixes what it finds: broken, small, equal, blurred pictures, captions."""
    from ui.cli_dataset_check import check as check_quality

    return check_quality(options)


def _mask_arguments(parser: argparse.ArgumentParser) -> None:
    from ui.cli_dataset_mask import mask_arguments

    mask_arguments(parser)


def mask(options: argparse.Namespace) -> int:
    """Makes, inverts or removes masks: what training looks at in a picture."""
    from ui.cli_dataset_mask import mask as mask_pictures

    return mask_pictures(options)


def _sizes_arguments(parser: argparse.ArgumentParser) -> None:
    from ui.cli_dataset_sizes import sizes_arguments

    sizes_arguments(parser)


def sizes(options: argparse.Namespace) -> int:
    """Shows the sizes that training would use, with pictures, batches and steps per epoch; sets repeats of folders."""
    from ui.cli_dataset_sizes import show_sizes

    return show_sizes(options)


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    from ui.cli_dataset_export import export_arguments

    export_arguments(parser)


def export(options: argparse.Namespace) -> int:
    """Takes a dataset out as a folder or zip: clean pictures, captions, masks and a manifest with hashes."""
    from ui.cli_dataset_export import export as export_pictures

    return export_pictures(options)


def _prepare_arguments(parser: argparse.ArgumentParser) -> None:
    from ui.cli_dataset_prepare import prepare_arguments

    prepare_arguments(parser)


def prepare(options: argparse.Namespace) -> int:
    """Makes a new dataset of another: cropped, resized, mirrored, converted; the original stays as it is."""
    from ui.cli_dataset_prepare import prepare as prepare_version

    return prepare_version(options)


def _publish_arguments(parser: argparse.ArgumentParser) -> None:
    from ui.cli_dataset_publish import publish_arguments

    publish_arguments(parser)


def publish(options: argparse.Namespace) -> int:
    """Publishes a dataset on Hugging Face, with clean copies of its pictures and a dataset card."""
    from ui.cli_dataset_publish import publish as publish_pictures

    return publish_pictures(options)


SUBCOMMANDS: dict[str, tuple[AddArguments, Run]] = {
    "list": (lambda parser: None, list_all),
    "import": (_import_arguments, import_pictures),
    "history": (_history_arguments, show_history),
    "undo": (_undo_arguments, undo),
    "redo": (_undo_arguments, redo),
    "caption": (_caption_arguments, caption),
    "check": (_check_arguments, check),
    "mask": (_mask_arguments, mask),
    "tag": (_tag_arguments, tag),
    "export": (_export_arguments, export),
    "prepare": (_prepare_arguments, prepare),
    "publish": (_publish_arguments, publish),
    "sizes": (_sizes_arguments, sizes),
}


def dataset_arguments(parser: argparse.ArgumentParser, add_workspace: AddArguments) -> None:
    """Adds the subcommands. Each gets --workspace and --json."""
    add_subcommands(parser, SUBCOMMANDS, add_workspace, as_option="run_dataset")
