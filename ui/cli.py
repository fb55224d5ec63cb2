"""The command line: the page, and the same jobs without it. Flags and help of settings come from the schema."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from security.environment import private_files
from security.errors import SafelightError
from security.hosts import check_host_name
from security.output import drain, install, lost_output
from security.policy import MAX_SHARE_HOURS, MIN_SHARE_HOURS, SHARE_HOURS
from security.sharing import check_share_hours
from security.tokens import TokenStore, take_tokens
from security.versions import version_faults
from trainer.config.files import Setting, SettingKind, iter_settings
from trainer.jobs import TRAINER_THREAD
from trainer.logs import close_logging
from trainer.workspace import REPOSITORY_DIR, Workspace
from ui.cli_processes import add_process_options, machines_of, process_flags
from ui.endpoints import add_endpoint_options, endpoints_of
from ui.subcommands import COMMAND, mistake_in_words

TAKES_SETTINGS = ("train", "resume", "check", "rebuild")
"""Commands to which any setting of a run can be given as a flag."""
MAX_TEST_PROCESSES = 4
"""More would stand in each other's way: several tests serve pages or start programs."""
USER_FAULT = 2
"""Exit code when the user can put it right; 1 is a run or a check that failed, 0 all is well."""
SHARE_HOURS_HELP = (
    f"close the share link after N hours ({MIN_SHARE_HOURS} to {MAX_SHARE_HOURS}, default: {SHARE_HOURS})"
)


class Parser(argparse.ArgumentParser):
    """Argument parser that answers a mistake with one sentence and the nearest word it knows."""

    def error(self, message: str) -> NoReturn:
        """Ends with exit code 2."""
        sys.stderr.write(f"safelight: {mistake_in_words(message)} (`{self.prog} --help` tells more)\n")
        sys.exit(USER_FAULT)


def main(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code."""
    if list(arguments[:1]) == ["test"] and list(arguments[1:]) not in (["--help"], ["-h"]):
        return run_tests(arguments[1:])
    private_files()
    install()
    take_tokens()
    try:
        flags, rest = (
            split_settings(arguments) if arguments and arguments[0] in TAKES_SETTINGS else ([], list(arguments))
        )
        options = build_parser().parse_args(rest)
        options.flags = flags
        command: Callable[[argparse.Namespace], int] = options.run
        if command not in (show_doctor, run_tests) and (faults := version_faults()):
            raise SafelightError("\n".join(faults))
        code = command(options)
        if not training_has_ended():
            close_logging()
            drain()
            os._exit(code)  # the thread is inside torch: an orderly end would wait for it, or crash and hide the code
        if fault := lost_output():
            sys.stderr.write(f"safelight: what was printed could not be written: {fault}\n")
            return code or 1
        return code
    except SafelightError as error:
        sys.stderr.write(f"safelight: {error}\n")
        return USER_FAULT
    except BrokenPipeError:  # the reader of our output (head, less) has seen enough; nothing more may be flushed to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def training_has_ended() -> bool:
    """Whether no run is left that did not end in time."""
    return not any(thread.name == TRAINER_THREAD and thread.is_alive() for thread in threading.enumerate())


def build_parser() -> Parser:
    """The whole command line."""
    parser = Parser(
        prog="python launch.py",
        description="Trains LoRAs for image diffusion models. Without a command it serves the page.",
        epilog="Everything a user owns is in one workspace folder: --workspace, $SAFELIGHT_WORKSPACE, or workspace/. "
        "--no-venv (before or after a command) uses the Python that runs this instead of .venv.",
        allow_abbrev=False,
    )
    parser.set_defaults(run=serve_page, workspace=None)
    _add_page_options(parser)
    _add_workspace(parser)
    commands = parser.add_subparsers(title="commands", metavar=COMMAND, parser_class=Parser)
    for name, (add_arguments, run) in COMMANDS.items():
        help_text = (run.__doc__ or "").splitlines()[0]
        command = commands.add_parser(name, help=help_text, description=help_text, allow_abbrev=False)
        command.set_defaults(run=run)
        add_arguments(command)
    return parser


def _add_page_options(parser: argparse.ArgumentParser) -> None:
    page = parser.add_argument_group("the page")
    page.add_argument("--port", type=_port, default=7860, help="port to serve on (default: 7860; 0 takes a free one)")
    page.add_argument("--listen", action="store_true", help="let other machines in the network in; needs a password")
    page.add_argument("--share", action="store_true", help="make a public link for some hours; needs a password")
    page.add_argument("--no-browser", action="store_true", help="do not open a browser")
    page.add_argument("--password-file", type=Path, metavar="FILE", help="use this password instead of a random one")
    page.add_argument(
        "--host-name", type=_host_name, action="append", default=[], metavar="NAME", dest="host_names",
        help="answer under this name too, as a proxy or your network uses it; needs a password. May be given repeatedly",
    )  # fmt: skip
    page.add_argument("--share-hours", type=_hours, metavar="N", default=SHARE_HOURS, help=SHARE_HOURS_HELP)
    page.add_argument("--allow-root", action="store_true", help="let --share run as root, as in a container")
    add_endpoint_options(parser, is_command=False)


def _port(text: str) -> int:
    number = int(text) if text.isdigit() else -1
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port; take one from 1024 to 65535, or 0 for any free one")
    return number


def _hours(text: str) -> float:
    try:
        return check_share_hours(int(text) if text.isdecimal() else 0)
    except SafelightError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _host_name(text: str) -> str:
    try:
        return check_host_name(text)
    except SafelightError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _add_workspace(parser: argparse.ArgumentParser) -> None:
    # no default of its own: a command's default would hide what was given before the command
    parser.add_argument("--workspace", type=Path, metavar="DIR", default=argparse.SUPPRESS, help="workspace folder")


def _add_json(parser: argparse.ArgumentParser, help_text: str) -> None:
    parser.add_argument("--json", action="store_true", help=help_text)


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    _add_workspace(parser)
    _add_json(parser, "print every event, and the result, as a line of JSON")
    parser.add_argument("--steps", type=int, metavar="N", help="optimizer steps (default: as the page's sample set)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="copy the LoRA, samples and contact sheet there")


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "python launch.py train RUN.toml [--section.field VALUE ...] [--gpus N] [--workspace DIR] [--json]"
    _add_workspace(parser)
    _add_json(parser, "print every event as a line of JSON")
    add_process_options(parser)
    _run_arguments(parser)


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "python launch.py check RUN.toml [--section.field VALUE ...] [--no-dry-run] [--workspace DIR] [--json]"
    )
    _add_workspace(parser)
    _add_json(parser, "print JSON")
    parser.add_argument("--no-dry-run", action="store_true", help="load no model: only what can be told without it")
    _run_arguments(parser)


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", type=Path, metavar="RUN.toml", help="settings of the run; what it leaves out is default"
    )
    groups: dict[str, argparse._ArgumentGroup] = {}
    for setting in iter_settings():  # only for the help: split_settings takes them out before
        section = setting.section or "run"
        group = groups.setdefault(section, parser.add_argument_group(f"settings: {section}"))
        group.add_argument(f"--{setting.name}", metavar=setting.kind.value.upper(), help=setting_help(setting))


def _resume_arguments(parser: argparse.ArgumentParser) -> None:
    _add_workspace(parser)
    _add_json(parser, "print every event as a line of JSON")
    parser.usage = "python launch.py resume RUN [--section.field VALUE ...] [--workspace DIR] [--json]"
    parser.description = "Settings given here replace the run's own from its last checkpoint on; see `train --help`."
    parser.add_argument("run_id", metavar="RUN", help="name of the run, as `runs` lists it")
    add_process_options(parser)


def _rebuild_arguments(parser: argparse.ArgumentParser) -> None:
    from ui.cli_rebuild import rebuild_arguments

    _add_workspace(parser)
    rebuild_arguments(parser)


def _list_arguments(parser: argparse.ArgumentParser) -> None:
    _add_workspace(parser)
    _add_json(parser, "print JSON")


def _fetch_arguments(parser: argparse.ArgumentParser) -> None:
    from ui.cli_fetch import fetch_arguments

    _add_workspace(parser)
    fetch_arguments(parser)


def _models_arguments(parser: argparse.ArgumentParser) -> None:
    _list_arguments(parser)
    parser.add_argument("--catalog", action="store_true", help="list the models that are suggested instead")


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="the checkpoint: .ckpt, .pt, .pth or .bin; it stays as it is"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="the new file (default: FILE's name as .safetensors)")


def _tokens_arguments(parser: argparse.ArgumentParser) -> None:
    _add_json(parser, "print JSON")
    parser.add_argument("--check", action="store_true", help="ask each hub whose token it is and what it may do")


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    _list_arguments(parser)
    parser.add_argument("names", nargs="*", metavar="FILE|MODEL", help="LoRA files and models (default: all models)")
    parser.add_argument(
        "--public-key", type=Path, metavar="KEY", help="check the signature beside the file with this key"
    )


def _sign_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="the finished LoRA")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--key", type=Path, metavar="KEY", help="sign with this private key; no connection is made")
    what.add_argument("--new-key", type=Path, metavar="KEY", help="make a key: KEY for yourself, KEY.pub to give away")
    parser.add_argument("--passphrase-file", type=Path, metavar="FILE", help="file with the passphrase of the key")


def _dataset_arguments(parser: argparse.ArgumentParser) -> None:
    from ui.cli_dataset import dataset_arguments

    _add_workspace(parser)
    dataset_arguments(parser, _add_workspace)


def _lora_arguments(parser: argparse.ArgumentParser) -> None:
    from ui.cli_lora import lora_arguments

    _add_workspace(parser)
    lora_arguments(parser, _add_workspace)


def _settings_arguments(parser: argparse.ArgumentParser) -> None:
    from ui.cli_settings import settings_arguments

    settings_arguments(parser, _add_workspace)


def _sbom_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, metavar="FILE", help="write it there instead of printing it")


def _test_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("arguments", nargs="*", metavar="PYTEST_ARGUMENT", help="handed to pytest as they are")


def setting_help(setting: Setting) -> str:
    """Help, allowed values and default of one setting; argparse formats it with %."""
    allowed = f" Allowed: {setting.range_text}." if setting.range_text else ""
    default = "nothing" if setting.default in ("", ()) else default_text(setting)
    return f"{setting.help}{allowed} Default: {default}.".replace("%", "%%")


def default_text(setting: Setting) -> str:
    """The default as it is typed."""
    if setting.kind is SettingKind.SWITCH:
        return "on" if setting.default else "off"
    return f"{setting.default:g}" if isinstance(setting.default, float) else str(setting.default)


def split_settings(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes `--section.field VALUE` out of a command line. Returns these flags and the rest, both in order."""
    alone = {setting.name for setting in iter_settings() if not setting.section}
    flags: list[str] = []
    rest: list[str] = []
    position = 0
    while position < len(arguments):
        name, equals, _ = arguments[position].partition("=")
        is_setting = name.startswith("--") and ("." in name or name[2:] in alone)
        taken = 2 if is_setting and not equals else 1
        (flags if is_setting else rest).extend(arguments[position : position + taken])
        position += taken
    return flags, rest


def open_workspace(options: argparse.Namespace) -> Workspace:
    """The workspace that the command line names, else the usual one."""
    return Workspace.open(options.workspace)


def serve_page(options: argparse.Namespace) -> int:
    """Serves the page until Ctrl+C."""
    from ui.server import ServeOptions, serve

    return serve(
        ServeOptions(
            port=options.port,
            listen=options.listen,
            share=options.share,
            workspace=options.workspace,
            open_browser=not options.no_browser,
            password_file=options.password_file,
            host_names=tuple(options.host_names),
            share_hours=options.share_hours,
            allow_root=options.allow_root,
            endpoints=endpoints_of(options),
        )
    )


def run_demo(options: argparse.Namespace) -> int:
    """Trains the demo LoRA on the embedded model and dataset, without a page."""
    from ui.cli_run import demo

    return demo(open_workspace(options), options.steps, options.out, as_json=options.json)


def run_train(options: argparse.Namespace) -> int:
    """Trains a LoRA as a TOML file says; any setting can be given as a flag instead."""
    from ui.cli_run import train

    machines = machines_of(options)
    return train(open_workspace(options), options.config, process_flags(options), machines, as_json=options.json)


def run_check(options: argparse.Namespace) -> int:
    """Checks a run before it starts: every fault and warning, and the time, memory and disk that it will need."""
    from ui.cli_check import check

    return check(
        open_workspace(options), options.config, options.flags, dry_run=not options.no_dry_run, as_json=options.json
    )


def run_resume(options: argparse.Namespace) -> int:
    """Lets a paused, stopped, failed or interrupted run go on from its last checkpoint."""
    from ui.cli_run import resume

    machines = machines_of(options)
    return resume(open_workspace(options), options.run_id, process_flags(options), machines, as_json=options.json)


def run_rebuild(options: argparse.Namespace) -> int:
    """Trains a run again from its rebuild.json, and says exactly what is other than it was."""
    from ui.cli_rebuild import rebuild

    return rebuild(open_workspace(options), options)


def show_runs(options: argparse.Namespace) -> int:
    """Lists the runs of the workspace, newest first."""
    from ui.cli_lists import list_runs

    return list_runs(open_workspace(options), as_json=options.json)


def run_fetch(options: argparse.Namespace) -> int:
    """Fetches a base model from Hugging Face or Civitai into the library, checked and pinned."""
    from ui.cli_fetch import fetch

    return fetch(open_workspace(options), options)


def show_models(options: argparse.Namespace) -> int:
    """Lists the base models at hand."""
    from ui.cli_lists import list_base_models, list_catalog

    if options.catalog:
        return list_catalog(as_json=options.json)
    return list_base_models(open_workspace(options), as_json=options.json)


def show_doctor(options: argparse.Namespace) -> int:
    """Checks Python, packages, torch, disk and workspace, and says what to mend."""
    from ui.cli_doctor import doctor

    return doctor(options.workspace, as_json=options.json)


def run_convert(options: argparse.Namespace) -> int:
    """Turns a PyTorch checkpoint into a safetensors file, in a sandbox where it can do no harm (Linux)."""
    from ui.cli_convert import convert

    return convert(options.file, options.out)


def show_tokens(options: argparse.Namespace) -> int:
    """Lists where tokens for the hubs are looked for and found; shows no part of them."""
    from security.net import Network
    from ui.cli_tokens import list_tokens

    return list_tokens(TokenStore(), Network() if options.check else None, as_json=options.json)


def run_verify(options: argparse.Namespace) -> int:
    """Checks whether models of the library and finished LoRAs are still what they were, and their signatures."""
    from ui.cli_integrity import verify

    return verify(open_workspace(options), options.names, options.public_key, as_json=options.json)


def run_sign(options: argparse.Namespace) -> int:
    """Signs a finished LoRA with a key of yours, so that others can check that it comes from you."""
    from ui.cli_integrity import new_key, sign

    if options.new_key is not None:
        if options.file is not None:
            raise SafelightError("--new-key makes a key and signs nothing. Sign afterwards: sign FILE --key KEY.")
        return new_key(options.new_key, options.passphrase_file)
    if options.file is None:
        raise SafelightError("Name the file to sign: sign FILE --key KEY.")
    return sign(options.file, options.key, options.passphrase_file)


def show_sbom(options: argparse.Namespace) -> int:
    """Lists every installed package with version, licence and hashes as a CycloneDX bill of materials."""
    from ui.cli_integrity import sbom

    return sbom(options.out)


def run_dataset(options: argparse.Namespace) -> int:
    """Lists, fills, tags, checks, exports datasets, and takes changes back: what the Dataset tab does."""
    command: Callable[[argparse.Namespace], int] = options.run_dataset
    return command(options)


def run_lora(options: argparse.Namespace) -> int:
    """Inspects, edits, resizes, merges, extracts, bakes, converts and verifies LoRAs: what the Tools tab does."""
    command: Callable[[argparse.Namespace], int] = options.run_lora
    return command(options)


def run_settings(options: argparse.Namespace) -> int:
    """Reads settings of other trainers, writes runs for sd-scripts, and lists, keeps and names presets."""
    command: Callable[[Workspace, argparse.Namespace], int] = options.run_settings
    return command(open_workspace(options), options)


def run_tests(arguments: Sequence[str]) -> int:
    """Runs the test suite with pytest, which takes all further arguments; without any, in several processes at once."""
    import pytest

    os.chdir(REPOSITORY_DIR)
    if arguments:
        return int(pytest.main(list(arguments)))
    cores = os.cpu_count() or 1
    workers = min(cores, MAX_TEST_PROCESSES)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // workers)))
    return int(pytest.main(["--numprocesses", str(workers), "--dist", "loadscope"]))


COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], Callable[..., int]]] = {
    "demo": (_demo_arguments, run_demo),
    "train": (_train_arguments, run_train),
    "check": (_check_arguments, run_check),
    "resume": (_resume_arguments, run_resume),
    "rebuild": (_rebuild_arguments, run_rebuild),
    "runs": (_list_arguments, show_runs),
    "models": (_models_arguments, show_models),
    "fetch": (_fetch_arguments, run_fetch),
    "dataset": (_dataset_arguments, run_dataset),
    "lora": (_lora_arguments, run_lora),
    "convert": (_convert_arguments, run_convert),
    "tokens": (_tokens_arguments, show_tokens),
    "verify": (_verify_arguments, run_verify),
    "sign": (_sign_arguments, run_sign),
    "settings": (_settings_arguments, run_settings),
    "sbom": (_sbom_arguments, show_sbom),
    "doctor": (_list_arguments, show_doctor),
    "test": (_test_arguments, run_tests),
}
