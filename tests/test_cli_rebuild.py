"""`rebuild` on the command line: checks, refuses, trains and says whether the LoRA is the same one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from security.errors import SafelightError
from tests.trainer.test_rebuild import config_of, fill
from tests.trainer.test_training import only_run, trained
from trainer.logs import close_logging
from trainer.runs import RunFolder
from trainer.workspace import Workspace
from ui.cli import build_parser, split_settings
from ui.cli_lists import list_runs


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with a finished run."""
    workspace = Workspace.open(tmp_path_factory.mktemp("cli") / "space")
    fill(workspace)
    trained(config_of(training={"max_train_steps": 2}), workspace)
    return workspace


def rebuild(workspace: Workspace, path: Path, *arguments: str) -> int:
    flags, rest = split_settings(["rebuild", str(path), "--workspace", str(workspace.path), *arguments])
    options = build_parser().parse_args(rest)
    options.flags = flags
    try:
        code: int = options.run(options)
    finally:
        close_logging()
    return code


def test_a_check_says_that_everything_is_there(first: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert rebuild(first, only_run(first).rebuild_path, "--check") == 0
    assert "Everything is as it was" in capsys.readouterr().out


def test_it_trains_the_same_lora_and_says_so(
    first: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = Workspace.open(tmp_path / "second")
    fill(second)
    assert rebuild(second, only_run(first).rebuild_path, "--name", "again") == 0
    said = capsys.readouterr().out
    assert "The same LoRA, bit for bit: again-best.safetensors, again.safetensors." in said
    assert "Recommended: again-best.safetensors" in said
    assert only_run(second).config().name == "again"
    assert list_runs(second, as_json=True) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert listed["recommended"] == ["again-best.safetensors"] and listed["best_step"] in (1, 2)
    list_runs(second, as_json=False)
    assert f"{listed['best_loss']:.4f} at {listed['best_step']}" in capsys.readouterr().out


def test_what_would_be_another_lora_is_refused_until_it_is_meant(
    first: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = Workspace.open(tmp_path / "second")
    fill(second)
    for caption in (second.datasets_dir / "set").glob("*.txt"):
        caption.write_text("another text", encoding="utf-8")
    path = RunFolder.find(first, "tiny").rebuild_path
    assert rebuild(second, path, "--check", "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert told["possible"] and not told["same"]
    assert any("8 pictures have another caption" in one["text"] for one in told["differences"])
    with pytest.raises(SafelightError, match="--anyway trains it all the same"):
        rebuild(second, path)
    assert not list(second.runs_dir.iterdir())
    assert rebuild(second, path, "--anyway") == 1
    assert "Other numbers than in that run: tiny-best.safetensors, tiny.safetensors." in capsys.readouterr().out


def test_what_is_not_here_ends_in_the_flags_that_name_it(
    first: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SafelightError, match=r"--dataset.folder PATH"):
        rebuild(Workspace.open(tmp_path / "empty"), only_run(first).rebuild_path)
    assert "OTHER  There is no dataset named 'set'" in capsys.readouterr().out
