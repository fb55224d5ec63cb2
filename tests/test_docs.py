"""The documentation says what the code does: generated parts are up to date, links lead somewhere, commands exist.

With SAFELIGHT_UPDATE_DOCS set, the generated parts are written instead of compared.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
from pathlib import Path

import pytest

from trainer.adapters.table import ADAPTERS, TOOLS
from trainer.config.files import SettingKind, iter_settings
from trainer.config.schema import TrainConfig
from trainer.lora_files.programs import PROGRAMS
from trainer.optimizers import OPTIMIZERS
from ui import cli

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
OTHER_FILES = {
    ".ci/run": "Everything that a change must pass.",
    ".github/lock.py": "Makes the requirements with their hashes from the versions that a person chose.",
    ".github/workflows/checks.yml": "The same on GitHub, and the tests on Windows and macOS.",
    "docs/": "Guides; docs/settings.md is made from the schema.",
    "pyproject.toml": "Settings of ruff, mypy and pytest.",
    "requirements.txt": "Every package at one exact version, with the SHA-256 of its files.",
    "security/requirements-cu126.txt": "What torch brings with its build for older NVIDIA drivers.",
    "requirements-test.txt": "The same for the tests and checks.",
    "tests/": "Mirror the packages; tests/tiny.py builds real models at tiny sizes; tests/browser/ drives Chromium.",
    "trainer/demo/base/": "The embedded model, as a diffusers folder.",
    "trainer/demo/ink/": "The embedded dataset: black ink icons with captions.",
    "trainer/demo/ink_heldout/": "Pictures of the same style that training never sees.",
    "ui/assets/": "Styles and scripts of the page.",
}
"""What stands in the README's file tree besides the modules, whose lines are their docstrings."""
KIND_WORDS = {
    SettingKind.TEXT: "text",
    SettingKind.INTEGER: "whole number",
    SettingKind.NUMBER: "number",
    SettingKind.SWITCH: "on or off",
    SettingKind.CHOICE: "one of",
    SettingKind.LINES: "lines",
}


def first_sentence(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.split(r"(?<!al)\. ", text.split("\n")[0])[0].removesuffix(".") + "."


def file_tree() -> str:
    """One line for each file of the product."""
    modules = [
        ROOT / "launch.py",
        *(path for name in ("ui", "trainer", "security") for path in (ROOT / name).rglob("*.py")),
    ]
    lines = dict(OTHER_FILES)
    for path in modules:
        name = path.relative_to(ROOT).as_posix()
        lines[name.removesuffix("__init__.py")] = first_sentence(path)
    width = max(len(name) for name in lines) + 2
    return "```\n" + "\n".join(f"{name.ljust(width)}{text}" for name, text in sorted(lines.items())) + "\n```\n"


def settings_page() -> str:
    """docs/settings.md."""
    parts = [
        "# Settings of a run\n\n"
        "Made from `trainer/config/sections.py`: do not edit. Each one is a field of the Train tab, a line of a run's\n"
        "`config.toml`, and a flag: `python launch.py train run.toml --lora.rank 8`.\n"
    ]
    section = None
    for setting in iter_settings():
        if setting.section != section:
            section = setting.section
            model = TrainConfig.model_fields[section].annotation if section else TrainConfig
            title = f"`[{section}]`" if section else "The run"
            text = (model.__doc__ or "").splitlines()[0]
            parts.append(
                f"\n## {title}\n\n{text}\n\n| setting | values | default | what it does |\n|---|---|---|---|\n"
            )
        values = f"{KIND_WORDS[setting.kind]} {setting.range_text}".strip().replace("one of ", "")
        default = cli.default_text(setting) if setting.default not in ("", ()) else ""
        cells = [f"`{setting.name}`", values, f"`{default}`" if default else "empty", setting.help]
        parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return "".join(parts)


def adapters_table() -> str:
    """The adapters of docs/training.md."""
    rows = ["| `lora.adapter` | | a step takes | loads in |", "|---|---|---|---|"]
    for name, row in ADAPTERS.items():
        programs = ", ".join(PROGRAMS[tool].label for tool in TOOLS if tool in row.loads_in)
        rows.append(f"| `{name}` | **{row.title}**: {row.help} | {row.cost[0].lower()}{row.cost[1:]} | {programs} |")
    return "\n".join(rows) + "\n"


def optimizers_table() -> str:
    """The optimizers of docs/training.md."""
    rows = ["| `optimizer.name` | | usual rate | from | to |", "|---|---|---|---|---|"]
    for name, row in OPTIMIZERS.items():
        rates = " | ".join(f"{rate:g}" for rate in (row.band.usual, row.band.low, row.band.high))
        rows.append(f"| `{name}` | **{row.title}**: {row.help} | {rates} |")
    return "\n".join(rows) + "\n"


def with_part(text: str, mark: str, part: str) -> str:
    """A page with what stands between `<!-- mark -->` and `<!-- /mark -->` made anew."""
    before, _, rest = text.partition(f"<!-- {mark} -->\n")
    _, end, after = rest.partition(f"<!-- /{mark} -->")
    assert end, f"the page has no place for {mark}"
    return f"{before}<!-- {mark} -->\n{part}<!-- /{mark} -->{after}"


def assert_or_write(path: Path, wanted: str) -> None:
    """Compares a generated page, or writes it where SAFELIGHT_UPDATE_DOCS is set."""
    if os.environ.get("SAFELIGHT_UPDATE_DOCS"):
        path.write_text(wanted, encoding="utf-8")
    way = "run: SAFELIGHT_UPDATE_DOCS=1 python launch.py test tests/test_docs.py"
    assert path.read_text(encoding="utf-8") == wanted, f"{path.name} is not up to date; {way}"


def test_settings_page_is_up_to_date() -> None:
    assert_or_write(ROOT / "docs" / "settings.md", settings_page())


def test_settings_page_has_every_setting() -> None:
    text = settings_page()
    for setting in iter_settings():
        assert text.count(f"| `{setting.name}` |") == 1 and setting.help.replace("|", "\\|") in text


def test_file_tree_is_up_to_date() -> None:
    path = ROOT / "README.md"
    assert_or_write(path, with_part(path.read_text(encoding="utf-8"), "tree", file_tree()))


def test_tables_of_the_training_page_are_up_to_date() -> None:
    path = ROOT / "docs" / "training.md"
    text = with_part(path.read_text(encoding="utf-8"), "adapters", adapters_table())
    assert_or_write(path, with_part(text, "optimizers", optimizers_table()))


def test_listed_files_exist() -> None:
    assert [name for name in OTHER_FILES if not (ROOT / name).exists()] == []
    assert all(line.split(maxsplit=1)[1].strip() for line in file_tree().splitlines()[1:-1])


def commands_of(page: Path) -> list[str]:
    """Every `python launch.py ...` in a page, in a block or between backticks."""
    text = page.read_text(encoding="utf-8")
    lines = re.findall(r"^(?:[A-Z_]+=\S+ )?(python launch\.py.*)$", text, re.MULTILINE)
    return lines + re.findall(r"`(python launch\.py[^`\n]*)`", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_exist(page: Path) -> None:
    for command in commands_of(page):
        arguments = [word for word in shlex.split(command)[2:] if word not in ("--no-venv", "COMMAND")]
        if arguments[:1] == ["test"]:
            continue
        takes_settings = arguments and arguments[0] in cli.TAKES_SETTINGS
        flags, rest = cli.split_settings(arguments) if takes_settings else ([], arguments)
        assert {flag.removeprefix("--") for flag in flags[::2]} <= {setting.name for setting in iter_settings()}, (
            command
        )
        options = cli.build_parser().parse_args(rest)
        assert callable(options.run), command


def test_readme_has_every_command_and_the_two_first() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in cli.COMMANDS:
        assert f"| `python launch.py {name}" in text
    blocks = re.findall(r"```bash\n(.+?)```", text, re.DOTALL)
    assert blocks == ["python launch.py\n", "python launch.py test\n"]
    assert "python3 launch.py test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_named_environment_variables_are_documented() -> None:
    """Every SAFELIGHT_ variable that the code reads stands in docs/installation.md, and no other."""
    files = [ROOT / "launch.py", ROOT / ".ci" / "run", *(ROOT / "tests").rglob("*.py")]
    files += [path for name in ("ui", "trainer", "security") for path in (ROOT / name).rglob("*.py")]
    used = {name for path in files for name in re.findall(r"SAFELIGHT_[A-Z_]+", path.read_text(encoding="utf-8"))}
    table = (ROOT / "docs" / "installation.md").read_text(encoding="utf-8")
    assert used - {"SAFELIGHT_"} == set(re.findall(r"^\| `(SAFELIGHT_[A-Z_]+)`", table, re.MULTILINE))


def test_sentences_about_failures_are_those_of_the_door() -> None:
    """The table in docs/installation.md quotes what launch.py says."""
    table = (ROOT / "docs" / "installation.md").read_text(encoding="utf-8").split("## When it fails")[1]
    source = (ROOT / "launch.py").read_text(encoding="utf-8")
    quoted: list[str] = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    assert len(quoted) >= 7
    for text in quoted:
        words = [part.strip() for part in re.split(r"\d+(?:\.\d+)?|\.\.\.", text) if len(part.strip()) > 8]
        assert words and any(part in source for part in words), text


def test_changelog_has_an_open_section() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "Keep a Changelog" in text and "## [Unreleased]" in text
    headings = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert headings <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
