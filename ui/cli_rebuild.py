"""`rebuild`: trains a run again from the one file that describes it, and says what is other and what came of it."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from security.errors import SafelightError
from trainer.config.files import iter_settings
from trainer.jobs import Jobs
from trainer.logs import configure_logging
from trainer.rebuild import PLACES, Checked, check_rebuild, compare_results, read_recipe, rebuild_config
from trainer.runs import RunFolder, RunState
from trainer.workspace import Workspace
from ui.cli_run import Follower
from ui.settings_files import named_file

NOT_THE_SAME = 1
"""Exit code when a check found, or a rebuild gave, something other than the file says."""


def rebuild_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `rebuild` takes."""
    from ui.cli import setting_help

    parser.usage = (
        "python launch.py rebuild FILE [--check] [--anyway] [--section.field VALUE ...] [--workspace DIR] [--json]"
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="rebuild.json of a run's folder")
    parser.add_argument(
        "--check", action="store_true", help="only say what is other than in that run; 1 if the LoRA will be"
    )
    parser.add_argument("--anyway", action="store_true", help="train although pictures or the base are not the same")
    parser.add_argument(
        "--json", action="store_true", help="print the differences, every event and the result as JSON lines"
    )
    places = parser.add_argument_group("where things lie here (everything else is as in that run)")
    settings = {setting.name: setting for setting in iter_settings()}
    for name in PLACES:  # only for the help: the command line takes settings out before
        places.add_argument(f"--{name}", metavar=settings[name].kind.value.upper(), help=setting_help(settings[name]))


def rebuild(workspace: Workspace, options: argparse.Namespace) -> int:
    """Compares, trains and compares the result. Raises SafelightError where something is missing or decisively other."""
    as_json: bool = options.json
    recipe = read_recipe(named_file(options.file))
    checked = check_rebuild(workspace, recipe, rebuild_config(recipe, options.flags))
    _tell(checked, as_json=as_json)
    if options.check:
        return 0 if checked.is_same and checked.possible else NOT_THE_SAME
    if not checked.possible:
        raise SafelightError(
            "The run can't be rebuilt here: see above what is missing. Where it lies under another name, say so: "
            "--model.base PATH, --dataset.folder PATH (`rebuild --help` has all of them)."
        )
    if not (checked.is_same or options.anyway):
        raise SafelightError("The LoRA would be another one: see above why. --anyway trains it all the same.")
    configure_logging(workspace)
    jobs = Jobs(workspace)
    progress, code = Follower(jobs, jobs.submit(checked.config), as_json=as_json).follow()
    if code != 0 or progress.state not in (RunState.FINISHED, RunState.STOPPED) or not recipe.results:
        return code
    folder = RunFolder.find(workspace, progress.run_id)
    same, other = compare_results(recipe, folder.path, checked.config.name)
    if as_json:
        print(json.dumps({"event": "Rebuilt", "run": progress.run_id, "same": same, "other": other}))
    else:
        if same:
            print(f"The same LoRA, bit for bit: {', '.join(same)}.")
        if other:
            print(f"Other numbers than in that run: {', '.join(other)}.")
    return NOT_THE_SAME if other else 0


def _tell(checked: Checked, *, as_json: bool) -> None:
    if as_json:
        told = {"possible": checked.possible, "differences": [asdict(one) for one in checked.differences]}
        print(json.dumps({"event": "RebuildChecked", "same": checked.is_same, **told}))
        return
    if not checked.differences:
        print("Everything is as it was: pictures, captions, base, settings, versions.")
    for one in checked.differences:
        print(f"{'OTHER' if one.decisive else 'note '}  {one.text}")
