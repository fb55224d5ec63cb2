"""The commands `settings import`, `settings export` and `settings presets`: files of other programs, and presets."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from security.errors import RefusedPath, SafelightError
from security.roots import Root
from trainer.config.files import dump_config, load_config
from trainer.config.foreign.reading import SUFFIXES, read_settings
from trainer.config.foreign.report import Imported, Outcome
from trainer.config.foreign.sd_scripts_export import export_sd_scripts
from trainer.config.presets import (
    Preset,
    config_of,
    delete_preset,
    own_presets,
    rename_preset,
    save_preset,
    shipped_presets,
)
from trainer.workspace import Workspace
from ui.settings_files import library_paths, named_file, surroundings
from ui.subcommands import add_subcommands


def settings_arguments(
    parser: argparse.ArgumentParser, add_workspace: Callable[[argparse.ArgumentParser], None]
) -> None:
    """Adds the three commands below `settings`."""
    add_subcommands(parser, COMMANDS, add_workspace, as_option="run_settings")


def _import_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE",
        help=f"the settings ({', '.join(SUFFIXES)}); for sd-scripts its dataset and prompt files too",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="RUN.toml", help="write the run there")
    parser.add_argument("--preset", metavar="NAME", help="keep the settings as a preset of your own")


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="RUN.toml", help="a run of Safelight")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the files there (default: print them)")


def _presets_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="show this preset")
    parser.add_argument("--out", type=Path, metavar="RUN.toml", help="write a run with the preset NAME there")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--rename", nargs=2, metavar=("OLD", "NEW"), help="give a preset of your own another name")
    what.add_argument("--delete", metavar="NAME", help="delete a preset of your own")


def run_import(workspace: Workspace, options: argparse.Namespace) -> int:
    """Reads settings of kohya_ss, sd-scripts, OneTrainer, ai-toolkit or a preset, and tells what became of each."""
    result = read_settings([named_file(path) for path in options.files], surroundings(workspace))
    if options.out is not None:
        _write(options.out, dump_config(result.config))
    saved = save_preset(workspace.path, options.preset, result.values) if options.preset else None
    if options.json:
        print(json.dumps(report_values(result), indent=1, ensure_ascii=False))
        return 0
    print("\n".join(result.report.lines()))
    if options.out is not None:
        print(f"\nWritten to {options.out}. `python launch.py train {options.out}` trains it.")
    if saved is not None:
        print(f"\nKept as the preset {saved.stem}.")
    return 0


def report_values(result: Imported) -> dict[str, Any]:
    """An import as plain values."""
    entries = {
        outcome.value: [
            {key: value for key, value in asdict(entry).items() if key != "outcome" and value}
            for entry in result.report.of(outcome)
        ]
        for outcome in Outcome
    }
    return {"program": result.report.program, "notes": list(result.report.notes), "values": result.values, **entries}


def run_export(workspace: Workspace, options: argparse.Namespace) -> int:
    """Writes a run as files for sd-scripts, and tells what they cannot say."""
    config = load_config(named_file(options.config))
    paths, is_sdxl = library_paths(workspace, config)
    exported = export_sd_scripts(config, paths, is_sdxl=is_sdxl)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        for name, text in exported.files.items():
            _write(options.out / name, text)
    if options.json:
        print(json.dumps(asdict(exported), indent=1, ensure_ascii=False))
        return 0
    if options.out is None:
        print("\n".join(f"# {name}\n{text}" for name, text in exported.files.items()))
    else:
        print(f"Written to {options.out}: {', '.join(exported.files)}")
    print("\n".join([f"Train it with: {exported.command}", *exported.notes]))
    if exported.lost:
        print(f"\nsd-scripts cannot say ({len(exported.lost)}):")
        print("\n".join(f"  {entry.line()}" for entry in exported.lost))
    return 0


def run_presets(workspace: Workspace, options: argparse.Namespace) -> int:
    """Lists the presets by purpose, base and memory, and your own; shows, renames or deletes one."""
    if options.rename:
        print(f"Renamed to {rename_preset(workspace.path, *options.rename).stem}.")
        return 0
    if options.delete:
        delete_preset(workspace.path, options.delete)
        print(f"Deleted the preset {options.delete}.")
        return 0
    own, faults = own_presets(workspace.path)
    presets = [*shipped_presets(), *own]
    if options.name:
        presets = [preset for preset in presets if preset.name == options.name]
        if not presets:
            raise SafelightError(f"There is no preset {options.name}. `python launch.py settings presets` lists them.")
    if options.out is not None:
        if not options.name:
            raise SafelightError("Name the preset to write: settings presets NAME --out RUN.toml.")
        _write(options.out, dump_config(config_of(presets[0])))
    if options.json:
        print(json.dumps([_shown(preset) for preset in presets], indent=1, ensure_ascii=False))
        return 0
    for preset in presets:
        print(
            f"{preset.name}: {preset.title}\n  {preset.reason}" if preset.reason else f"{preset.name}: {preset.title}"
        )
        if options.name:
            print("\n".join(f"  {name} = {json.dumps(value)}" for name, value in preset.values.items()))
    print("\n".join(faults) if faults else "", end="\n" if faults else "")
    return 0


def _shown(preset: Preset) -> dict[str, Any]:
    return {"name": preset.name, "title": preset.title, "reason": preset.reason, "values": dict(preset.values)}


def _write(path: Path, text: str) -> None:
    if path.exists():
        raise RefusedPath(f"{path} is there already. Choose another name, or delete it first.")
    Root(path.absolute().parent).write_text_atomic(path.absolute(), text)


COMMANDS: dict[
    str, tuple[Callable[[argparse.ArgumentParser], None], Callable[[Workspace, argparse.Namespace], int]]
] = {
    "import": (_import_arguments, run_import),
    "export": (_export_arguments, run_export),
    "presets": (_presets_arguments, run_presets),
}
