"""A token never gets into what a run leaves behind; a LoRA file that would hold one is refused before the training."""

from __future__ import annotations

from typing import Any

import pytest
from safetensors import safe_open

from security.errors import RefusedConfig
from security.redaction import register
from tests.tiny import tiny_dataset, tiny_sd15
from trainer import events
from trainer.config.files import config_text, dump_config, parse_config
from trainer.jobs import Jobs
from trainer.runs import RunFolder, RunState
from trainer.workspace import Workspace

TOKEN = "hf_" + "CaptionCanary0" * 3
LOOKALIKE = "hf_" + "LooksLikeAToken9" * 2
register(TOKEN, "Hugging Face token")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace.open(tmp_path_factory.mktemp("tokens") / "workspace")
    tiny_sd15(made.models_dir / "tiny")
    tiny_dataset(made.datasets_dir / "clean", 2)
    folder = tiny_dataset(made.datasets_dir / "caption", 2)
    caption = sorted(folder.rglob("*.txt"))[0]
    caption.write_text(f"{caption.read_text()}, {TOKEN}")
    return made


def values(dataset: str, **sections: Any) -> dict[str, Any]:
    return {
        "name": dataset,
        "model": {"base": "tiny", "precision": "fp32"},
        "dataset": {"folder": dataset, "resolution": 64},
        "training": {"max_train_steps": 2, "device": "cpu"},
        "save": {"save_captions": True},
        **sections,
    }


def train(workspace: Workspace, dataset: str, **sections: Any) -> tuple[Jobs, RunFolder]:
    jobs = Jobs(workspace)
    run_id = jobs.submit(parse_config(values(dataset, **sections)))
    assert jobs.wait(120)
    return jobs, RunFolder.find(workspace, run_id)


def holding(folder: RunFolder) -> list[str]:
    return [
        path.name for path in folder.path.rglob("*") if path.is_file() and TOKEN.encode()[1:-1] in path.read_bytes()
    ]


def test_a_caption_with_a_token_stops_the_run_before_its_first_step(workspace: Workspace) -> None:
    jobs, folder = train(workspace, "caption")
    progress = jobs.progress(folder.run_id)
    assert (progress.state, progress.step, progress.error_id) == (RunState.FAILED, 0, "")
    assert "metadata of caption.safetensors would hold Hugging Face token" in progress.message
    assert not list(folder.path.glob("*.safetensors"))
    assert holding(folder) == []


def test_without_captions_in_the_file_the_same_dataset_trains(workspace: Workspace) -> None:
    jobs, folder = train(workspace, "caption", save={"save_captions": False})
    assert jobs.progress(folder.run_id).state is RunState.FINISHED
    assert holding(folder) == []
    with safe_open(next(folder.path.glob("*.safetensors")), "pt") as file:
        assert file.metadata()["ss_steps"] == "2" and TOKEN not in str(file.metadata())


@pytest.mark.parametrize("text", [TOKEN, LOOKALIKE, TOKEN[1:-1]], ids=["registered", "by its shape", "cut"])
@pytest.mark.parametrize(
    "section",
    [{"sample": {"prompts": ["a cat, {}"]}}, {"dataset": {"folder": "clean", "trigger_word": "{}"}}],
    ids=["prompt", "trigger word"],
)
def test_settings_with_a_token_start_no_run_and_make_no_file(
    workspace: Workspace, section: dict[str, Any], text: str
) -> None:
    filled = {
        name: {key: [one.format(text) for one in value] if isinstance(value, list) else value.format(text)}
        for name, fields in section.items()
        for key, value in fields.items()
    }
    config = parse_config({"name": "refused", **filled})
    with pytest.raises(RefusedConfig, match="settings of refused would hold") as error:
        Jobs(workspace).submit(config)
    assert text not in str(error.value)
    assert not (workspace.runs_dir / "refused").exists()
    with pytest.raises(RefusedConfig):
        dump_config(config)
    assert text in config_text(config)


def test_an_error_with_a_token_reaches_the_user_without_it(workspace: Workspace) -> None:
    folder = RunFolder.create(workspace, parse_config({"name": "told"}))
    folder.append(events.Failed(f"The hub refused {TOKEN}.", 3, "ABC123"))
    folder.append(events.Warned(f"Authorization: Bearer {LOOKALIKE}"))
    lines = [text for _, text in Jobs(workspace).lines("told")]
    assert "failed at step 3: The hub refused ***. (id ABC123)" in lines[-2]
    assert "Authorization: Bearer ***" in lines[-1]
    with pytest.raises(RefusedConfig, match="event SampleSaved of this run"):
        folder.append(events.SampleSaved(1, 0, f"a cat {TOKEN}", 1, "a.png"))
    assert holding(folder) == []
