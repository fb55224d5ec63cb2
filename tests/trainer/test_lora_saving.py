"""What a run says of its files: which it writes for its adapter, who loads them, in the log, on the page and at the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from security.weights import check_safetensors
from tests.tiny import tiny_dataset, tiny_sd15
from trainer import events
from trainer.config.choices import AdapterName
from trainer.config.files import ConfigError, parse_config
from trainer.inputs import find_inputs
from trainer.jobs import Control
from trainer.loop import train
from trainer.lora_files.programs import PROGRAMS, told_in_words
from trainer.lora_files.writing import LOADS_ENTRY
from trainer.run_log import describe
from trainer.runs import Progress, RunFolder, RunState
from trainer.workspace import Workspace
from ui.cli_run import Follower
from ui.views import run_detail


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd15(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("pictures") / "set", 2)


def values(base: Path, pictures: Path, adapter: str, key_format: str) -> dict[str, Any]:
    return {
        "name": "tiny",
        "model": {"base": str(base), "precision": "fp32"},
        "dataset": {"folder": str(pictures), "resolution": 64},
        "lora": {"adapter": adapter, "rank": 4, "alpha": 2.0, "block_size": 4, "targets": "cross-attention"},
        "training": {"max_train_steps": 1, "device": "cpu"},
        "save": {"key_format": key_format},
    }


def saved_by(folder: RunFolder, workspace: Workspace, settings: dict[str, Any]) -> list[events.Event]:
    seen: list[events.Event] = []
    config = parse_config(settings)
    train(config, find_inputs(config, workspace), folder, workspace, seen.append, Control())
    return seen


@pytest.mark.parametrize("adapter", ["lora", "loha"])
def test_a_run_writes_the_files_that_have_readers_and_says_so(
    workspace: Workspace, base: Path, pictures: Path, adapter: str
) -> None:
    settings = values(base, pictures, adapter, "both")
    folder = RunFolder.create(workspace, parse_config(settings))
    seen = saved_by(folder, workspace, settings)
    saved = [event for event in seen if isinstance(event, events.LoraSaved)]
    names = {"lora": ["tiny.safetensors", "tiny_diffusers.safetensors"], "loha": ["tiny.safetensors"]}[adapter]
    assert [event.path for event in saved] == names
    assert sorted(path.name for path in folder.path.glob("*.safetensors")) == names
    warnings = [event.message for event in seen if isinstance(event, events.Warned)]
    assert any(
        "Only the file with kohya's names will be written: diffusers has no reader" in one for one in warnings
    ) is (adapter == "loha")
    for event in saved:
        assert event.loads_in.keys() == PROGRAMS.keys() and events.from_json(events.to_json(event)) == event
        words = told_in_words(event.loads_in)
        assert words.startswith("Loads whole in ") and describe(event, 1).endswith(words)
        assert check_safetensors(folder.path / event.path).metadata[LOADS_ENTRY] == words


@pytest.mark.parametrize("adapter", [name for name in AdapterName if name not in ("lora", "locon")])
def test_a_format_without_a_reader_is_refused_before_the_training(base: Path, pictures: Path, adapter: str) -> None:
    with pytest.raises(ConfigError, match=r"save\.key_format is diffusers but lora\.adapter is .*Set save\.key_format"):
        parse_config(values(base, pictures, adapter, "diffusers"))
    parse_config(values(base, pictures, adapter, "kohya"))


LOADS = {"comfyui": "", "a1111": "", "forge": "Forge refuses it.", "diffusers": "diffusers has no reader."}


def test_the_list_of_files_tells_who_loads_each() -> None:
    told = events.LoraSaved(5, "new.safetensors", "kohya", 7, "ab", LOADS)
    older = events.LoraSaved(3, "old.safetensors", "diffusers", 7)
    new, old = run_detail(Progress("r", "r", RunState.FINISHED, loras=(older, told)))["files"]
    assert new["fits"] == "ComfyUI and A1111"
    assert new["unfit"] == ["Forge refuses it.", "diffusers has no reader."]
    assert old["fits"] == "diffusers and peft" and old["unfit"] == []
    nowhere = events.LoraSaved(5, "x.safetensors", "kohya", 7, "ab", dict.fromkeys(LOADS, "No."))
    (file,) = run_detail(Progress("r", "r", RunState.FINISHED, loras=(nowhere,)))["files"]
    assert file["fits"] == "nothing whole" and file["unfit"] == ["No."], "the same reason is told once"


def test_the_terminal_tells_at_the_end_who_loads_the_file(
    workspace: Workspace, base: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from trainer.jobs import Jobs

    config = parse_config(values(base, pictures, "lora", "kohya"))
    folder = RunFolder.create(workspace, config)
    folder.append(events.LoraSaved(0, "tiny.safetensors", "kohya", 7, "ab", LOADS))
    folder.append(events.Finished(0, stopped=False))
    jobs = Jobs(workspace)
    assert Follower(jobs, folder.path.name, as_json=False).follow()[1] == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"LoRA: {folder.path / 'tiny.safetensors'}" in lines
    assert "  Loads whole in ComfyUI and A1111. Forge refuses it. diffusers has no reader." in lines
