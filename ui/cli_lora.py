"""`lora`: what the Tools tab does with finished LoRAs, on the command line. A subcommand is a row of SUBCOMMANDS."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from security.errors import SafelightError
from trainer.config.choices import SavePrecision
from trainer.dataset.studio import Studio
from trainer.lora_files.edit import FIELDS, REMOVALS, Edit, MissingEntry, Removal, changes_in_words, edit_file
from trainer.lora_files.shelf import LoraEntry, list_loras, locate_lora, new_lora_place
from trainer.models.files import WEIGHT_SUFFIX
from trainer.models.text import gigabytes
from trainer.tasks import TaskControl, TaskState
from trainer.workspace import Workspace
from ui.cli_dataset import watch
from ui.cli_lists import print_table
from ui.subcommands import AddArguments, add_subcommands

if TYPE_CHECKING:
    from trainer.lora_files.changes import Ranks
    from trainer.lora_files.operations import Weighted
    from trainer.lora_files.results import Form, Outcome

Run = Callable[[argparse.Namespace], int]
FAILED = 1
FORMATS = ("kohya", "diffusers", "comfyui")
"""Key names that a result can be written with."""
SHOWN_LAYERS = 12


def _file_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("lora", metavar="LORA", help="a .safetensors file, or a name as `lora list` shows it")


def _weighted_argument(parser: argparse.ArgumentParser) -> None:
    help_text = "a file or name, with its weight behind a colon if it is not 1: mira:0.8"
    parser.add_argument("loras", nargs="+", metavar="LORA[:WEIGHT]", help=help_text)


def _out_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="FILE|NAME", required=True, help="a new file, or a name in workspace/loras")
    parser.add_argument("--replace", action="store_true", help="write over a file of that name")


def _form_arguments(parser: argparse.ArgumentParser) -> None:
    _out_arguments(parser)
    parser.add_argument("--format", choices=FORMATS, help="key names of the result (default: as it was)")
    parser.add_argument(
        "--precision", choices=[str(one) for one in SavePrecision], help="number format (default: as it was)"
    )


def _rank_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    what = "rank of linear layers; with --energy or --ratio the highest one"
    parser.add_argument("--rank", type=int, metavar="N", required=required, help=what)
    parser.add_argument("--conv-rank", type=int, metavar="N", help="rank of convolutions (see the note below)")
    keep = parser.add_mutually_exclusive_group()
    keep.add_argument(
        "--energy", type=float, metavar="SHARE", help="keep this share of each layer's energy, such as 0.95"
    )
    keep.add_argument("--ratio", type=float, metavar="X", help="drop singular values below the largest divided by X")


def _base_argument(parser: argparse.ArgumentParser, help_text: str) -> None:
    parser.add_argument("--base", metavar="MODEL", help=help_text)


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layers", action="store_true", help="tell what became of every layer")


NEEDS_BASE = "the model that the LoRA was trained on; needed for DoRA, OFT and BOFT layers"


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    _file_argument(parser)
    parser.add_argument("--layers", action="store_true", help="list every layer")
    parser.add_argument("--metadata", action="store_true", help="print all that the file says about itself")


def _edit_arguments(parser: argparse.ArgumentParser) -> None:
    _file_argument(parser)
    parser.add_argument(
        "--out", metavar="FILE|NAME", help="write the result there; without it, the file itself is edited"
    )
    parser.add_argument("--replace", action="store_true", help="with --out: write over a file of that name")
    for name, entry in FIELDS.items():
        help_text = f"set {entry}; an empty text takes it out"
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="TEXT", dest=f"field_{name}", help=help_text)
    groups = "; ".join(f"{group}: {words}" for group, words in REMOVALS.items())
    parser.add_argument(
        "--remove", action="append", default=[], metavar="GROUP|ENTRY",
        help=f"take out a group ({groups}), or entries by name or pattern (ss_bucket_*). May be given repeatedly",
    )  # fmt: skip


def _resize_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Without --conv-rank, convolutions stay as they are."
    _file_argument(parser)
    _rank_arguments(parser)
    _base_argument(parser, NEEDS_BASE)
    _form_arguments(parser)
    _report_arguments(parser)


def _merge_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Without --rank the merge is exact, and the ranks add up. With --rank and without --conv-rank, convolutions are "
        "merged exactly."
    )
    _weighted_argument(parser)
    _rank_arguments(parser, required=False)
    _base_argument(parser, NEEDS_BASE)
    _form_arguments(parser)
    _report_arguments(parser)


def _extract_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Without --conv-rank, convolutions are left out."
    parser.add_argument("tuned", metavar="TUNED", help="the model that was trained on: a name of the library or a path")
    parser.add_argument("base", metavar="BASE", help="the model that it was made from")
    _rank_arguments(parser)
    parser.add_argument("--no-text-encoders", action="store_true", help="look at the U-Net only")
    _form_arguments(parser)
    _report_arguments(parser)


def _bake_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="the base model: a name of the library or a path")
    _weighted_argument(parser)
    parser.add_argument("--name", metavar="NAME", help="name of the new model in the library")
    parser.add_argument("--out", type=Path, metavar="PATH", help="a new file or folder elsewhere instead")


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    _file_argument(parser)
    parser.add_argument(
        "--as-lora", type=int, metavar="RANK", help="also turn LoHa, LoKr, DoRA and other layers into LoRA of this rank"
    )
    _base_argument(parser, NEEDS_BASE)
    _form_arguments(parser)


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    _file_argument(parser)
    _base_argument(parser, "also look whether it fits this model: a name of the library or a path")


def list_all(options: argparse.Namespace) -> int:
    """Lists the LoRA files of workspace/loras and of the runs."""
    entries = list_loras(_workspace(options))
    if options.json:
        rows = [
            {"name": one.name, "run": one.run, "path": str(one.path), "num_bytes": one.num_bytes} for one in entries
        ]
        print(json.dumps(rows))
        return 0
    print_table([("LORA", "SIZE", "RUN"), *((one.name, gigabytes(one.num_bytes), one.run) for one in entries)])
    return 0


def inspect(options: argparse.Namespace) -> int:
    """Tells what is in a LoRA file: kind, ranks, strength, trigger words, settings, programs that load it."""
    return _look(options, None, verdict=False)


def verify(options: argparse.Namespace) -> int:
    """Checks a LoRA file: its numbers, its hash, which programs load it whole, and whether it fits a model."""
    base = _model(options, options.base) if options.base else None
    return _look(options, base, verdict=True)


def edit(options: argparse.Namespace) -> int:
    """Edits what a LoRA says about itself: title, trigger words, author; takes out captions and all that is personal."""
    entry = _entry(options, options.lora)
    texts = {name: text for name in FIELDS if (text := getattr(options, f"field_{name}")) is not None}
    groups = [Removal(one) for one in options.remove if one in list(Removal)]
    entries = [one for one in options.remove if one not in list(Removal)]
    if not (texts or groups or entries):
        raise SafelightError("Say what to change: --title, --trigger-words, --remove and so on (`lora edit --help`).")
    wanted = Edit(texts, groups, entries)
    if options.out is None and entry.run:
        raise SafelightError(
            f"{entry.name} belongs to a run, which knows its file by its hash. Give the edited one a name of its own with --out."
        )
    target = entry.path if options.out is None else _target(options)
    try:
        written, told = edit_file(entry.path, target, wanted, replace=options.out is None or options.replace)
    except MissingEntry as missing:
        raise SafelightError(f"{missing} Groups of entries are {', '.join(REMOVALS)}.") from None
    if options.json:
        print(json.dumps({"path": str(written.path), "changes": told, "sha256": written.sha256}))
    else:
        print(f"{written.path}: {changes_in_words(told)}. The hash of its numbers is {written.tensors_sha256[:12]}...")
    return 0


def resize(options: argparse.Namespace) -> int:
    """Makes a LoRA smaller: to a rank, or to what keeps a share of its energy; tells what each layer keeps."""
    from trainer.lora_files.operations import resize_lora

    source, base, target = _whole(options, options.lora), _base(options), _target(options)
    ranks, form = _ranks(options), _form(options)
    return _run(
        options, "Resizing", lambda control: resize_lora(source, target, ranks, form, base=base, control=control)
    )


def merge(options: argparse.Namespace) -> int:
    """Merges several LoRAs into one, each with a weight: exactly, or to a rank of choice."""
    from trainer.lora_files.operations import merge_loras

    sources, base, target = [_weighted(options, one) for one in options.loras], _base(options), _target(options)
    if options.rank is None and any(one is not None for one in (options.conv_rank, options.energy, options.ratio)):
        raise SafelightError("--conv-rank, --energy and --ratio need a --rank; without one the merge is exact.")
    ranks = _ranks(options) if options.rank is not None else None
    form = _form(options)
    return _run(
        options, "Merging", lambda control: merge_loras(sources, target, ranks, form, base=base, control=control)
    )


def extract(options: argparse.Namespace) -> int:
    """Extracts a LoRA from two models: what one of them changed in the other."""
    from trainer.lora_files.operations import Models, extract_lora

    models = Models(_model(options, options.tuned), _model(options, options.base), not options.no_text_encoders)
    target, ranks, form = _target(options), _ranks(options), _form(options)
    return _run(options, "Extracting", lambda control: extract_lora(models, target, ranks, form, control=control))


def bake(options: argparse.Namespace) -> int:
    """Bakes LoRAs into a base model: a new model of the library, or a file or folder elsewhere."""
    from trainer.lora_files.baked import bake_into_library
    from trainer.lora_files.operations import bake_loras

    if (options.name is None) == (options.out is None):
        raise SafelightError("Give the new model a --name in the library, or a place with --out; one of the two.")
    workspace = _workspace(options)
    sources = [_weighted(options, one) for one in options.loras]
    if options.name is not None:
        return _run(
            options,
            "Baking",
            lambda control: bake_into_library(workspace, options.model, sources, options.name, control=control),
        )
    base, target = _model(options, options.model), options.out.expanduser().absolute()
    if not target.parent.is_dir():
        raise SafelightError(f"{target.parent} is no folder. Make it first.")
    if base.is_file() and target.suffix != WEIGHT_SUFFIX:
        raise SafelightError(f"{options.out} does not end in {WEIGHT_SUFFIX}, and {base.name} is a single file.")
    return _run(options, "Baking", lambda control: bake_loras(base, sources, target, control=control))


def convert(options: argparse.Namespace) -> int:
    """Writes a LoRA under other key names (kohya, diffusers, comfyui) or in another number format."""
    from trainer.lora_files.operations import convert_lora

    source, base, target, form = _whole(options, options.lora), _base(options), _target(options), _form(options)
    as_lora = _same_ranks(options.as_lora) if options.as_lora is not None else None
    return _run(
        options,
        "Converting",
        lambda control: convert_lora(source, target, form, as_lora=as_lora, base=base, control=control),
    )


SUBCOMMANDS: dict[str, tuple[AddArguments, Run]] = {
    "list": (lambda parser: None, list_all),
    "inspect": (_inspect_arguments, inspect),
    "edit": (_edit_arguments, edit),
    "resize": (_resize_arguments, resize),
    "merge": (_merge_arguments, merge),
    "extract": (_extract_arguments, extract),
    "bake": (_bake_arguments, bake),
    "convert": (_convert_arguments, convert),
    "verify": (_verify_arguments, verify),
}


def lora_arguments(parser: argparse.ArgumentParser, add_workspace: AddArguments) -> None:
    """Adds the subcommands. Each gets --workspace and --json."""
    add_subcommands(parser, SUBCOMMANDS, add_workspace, as_option="run_lora")


def _workspace(options: argparse.Namespace) -> Workspace:
    return Workspace.open(options.workspace)


def _entry(options: argparse.Namespace, typed: str) -> LoraEntry:
    return locate_lora(_workspace(options), typed)


def _whole(options: argparse.Namespace, typed: str) -> Weighted:
    """A LoRA as it is."""
    from trainer.lora_files.operations import Weighted

    entry = _entry(options, typed)
    return Weighted(entry.path, entry.name)


def _weighted(options: argparse.Namespace, typed: str) -> Weighted:
    """A LoRA with the weight behind its last colon, 1 without one. Raises SafelightError for a weight that is no number."""
    from trainer.lora_files.merge import WEIGHT_RANGE
    from trainer.lora_files.operations import Weighted

    name, colon, number = typed.rpartition(":")
    try:
        return _whole(options, typed)  # a name may have a colon itself, as a path with a drive has
    except SafelightError:
        if not colon:
            raise
        entry = _found(options, name)
        if entry is None:  # then what was typed is told as a whole, unless the name before a weight is what is wrong
            entry = _entry(options, name if _is_number(number) else typed)
    if not _is_number(number):
        raise SafelightError(f"{number!r} behind {name}: is no weight. {WEIGHT_RANGE}, such as {name}:0.8.")
    return Weighted(entry.path, entry.name, float(number))


def _found(options: argparse.Namespace, typed: str) -> LoraEntry | None:
    try:
        return _entry(options, typed)
    except SafelightError:
        return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _model(options: argparse.Namespace, base: str) -> Path:
    """The base model of that name or path, checked. Raises SafelightError."""
    from trainer.models.library import find_model

    return find_model(_workspace(options), base).path


def _base(options: argparse.Namespace) -> Path | None:
    return _model(options, options.base) if options.base else None


def _target(options: argparse.Namespace) -> Path:
    """Where the result goes: a path, or a name in workspace/loras. Raises SafelightError if that is taken."""
    typed = Path(options.out).expanduser()
    if typed.suffix.lower() != WEIGHT_SUFFIX and len(typed.parts) == 1:
        return new_lora_place(_workspace(options), options.out, replace=options.replace)
    path = typed.absolute()
    if path.suffix.lower() != WEIGHT_SUFFIX:
        raise SafelightError(f"{options.out} does not end in {WEIGHT_SUFFIX}. Give the whole name of the new file.")
    if not path.parent.is_dir():
        raise SafelightError(f"{path.parent} is no folder. Make it first.")
    if path.exists() and not options.replace:
        raise SafelightError(f"{path} is there already. Choose another name, or write over it with --replace.")
    return path


def _ranks(options: argparse.Namespace) -> Ranks:
    from trainer.lora_files.changes import ranks_of

    return ranks_of(options.rank, options.conv_rank, energy=options.energy, ratio=options.ratio)


def _same_ranks(rank: int) -> Ranks:
    from trainer.lora_files.changes import ranks_of

    return ranks_of(rank, rank)


def _form(options: argparse.Namespace) -> Form:
    from trainer.lora_files.keys import FileFormat
    from trainer.lora_files.results import Form

    file_format = FileFormat(options.format) if options.format else None
    return Form(file_format, SavePrecision(options.precision) if options.precision else None, options.replace)


def _run(options: argparse.Namespace, title: str, work: Callable[[TaskControl], Outcome]) -> int:
    """Does it as a task with progress, which Ctrl+C cancels, and tells what came of it. Returns the exit code."""
    made: list[Outcome] = []

    def task(control: TaskControl) -> str:
        made.append(work(control))
        return made[0].sentence

    studio = Studio(_workspace(options))
    view = watch(studio, studio.tasks.start("lora", title, "", task, "compute"), quiet=options.json)
    if not made:
        raise (
            SafelightError(view.message)
            if view.state is TaskState.FAILED
            else SafelightError("Cancelled. Nothing was made.")
        )
    outcome = made[0]
    if options.json:
        values = {
            "path": str(outcome.path),
            "message": outcome.sentence,
            "notes": list(outcome.notes),
            "loads": outcome.loads,
            "kept": outcome.kept,
        }
        print(json.dumps({**values, "layers": outcome.rows()}))
        return 0
    lines = [outcome.sentence, outcome.loads, *outcome.notes, f"It is {outcome.path}"]
    print("\n".join(line for line in lines if line))
    if getattr(options, "layers", False):
        rows = [("LAYER", "BEFORE", "AFTER", "KEPT")]
        rows += [
            (row["layer"], str(row["before"] or ""), str(row["after"]), f"{row['kept']:.2%}") for row in outcome.rows()
        ]
        print_table(rows)
    return 0


def _look(options: argparse.Namespace, base: Path | None, *, verdict: bool) -> int:
    from trainer.lora_files.programs import told_in_words
    from trainer.lora_files.verify import look_at

    entry = _entry(options, options.lora)
    facts = look_at(entry.path, entry.name, base=base)
    code = 0 if facts.ok or not verdict else FAILED
    metadata = facts.file.metadata if facts.file is not None else {}
    if options.json:
        values = {
            "name": facts.name,
            "ok": facts.ok,
            "faults": facts.faults,
            "warnings": facts.warnings,
            "notes": facts.notes,
        }
        more = {
            "programs": dict(facts.programs),
            "facts": facts.summary(),
            "layers": facts.rows(),
            "metadata": metadata,
        }
        print(json.dumps(values | more))
        return code
    if not facts.ok and facts.file is None:
        raise SafelightError(" ".join(facts.faults))
    print(f"{'ok  ' if facts.ok else 'FAIL'}  {facts.name}" if verdict else facts.name)
    lines = [(name, value) for name, value in facts.summary().items()]
    lines += [("fault", one) for one in facts.faults] + [("warning", one) for one in facts.warnings]
    lines += [("note", one) for one in facts.notes] + [("programs", told_in_words(dict(facts.programs)))]
    print_table(lines)
    if getattr(options, "layers", False):
        rows = [("LAYER", "KIND", "RANK", "ALPHA", "NORM")]
        rows += [
            tuple(str(row[key] if row[key] is not None else "") for key in ("layer", "kind", "rank", "alpha", "norm"))
            for row in facts.rows()
        ]
        print_table(rows)
    if getattr(options, "metadata", False):
        print(json.dumps(dict(sorted(metadata.items())), indent=1, ensure_ascii=False))
    return code
