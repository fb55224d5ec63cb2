"""What a LoRA file says about itself is edited without touching a number; and the shelf that such files lie on."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from security.errors import RefusedConfig, RefusedFile, RefusedName, RefusedPath, SafelightError
from security.integrity import check_own_hash
from security.policy import MAX_WEIGHT_METADATA_BYTES
from security.weights import check_safetensors
from trainer.lora_files import placing, shelf
from trainer.lora_files.edit import FIELDS, NEEDED, REMOVALS, Edit, Removal, changes_in_words, edit_file, edited
from trainer.workspace import Workspace

TOKEN = "hf_" + "aB3" * 11
METADATA = {
    "format": "pt",
    "ss_base_model_version": "sd_v1",
    "ss_network_dim": "4",
    "ss_tag_frequency": '{"mira": {"red hair": 3}}',
    "ss_sd_model_name": "model.safetensors",
    "ss_vae_name": "vae.pt",
    "ss_note": "from /home/mira/pictures",
    "ss_windows": "C:\\Users\\mira",
    "ss_learning_rate": "0.0001",
    "modelspec.title": "old",
    "modelspec.author": "Mira",
    "sshs_model_hash": "0" * 64,
    "sshs_legacy_hash": "12345678",
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.safetensors"
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file({f"{stem}.lora_up.weight": torch.randn(4, 2).half(), f"{stem}.alpha": torch.tensor(0.7)}, path, METADATA)
    return path


def test_edited_file_says_what_was_typed_and_keeps_every_number(source: Path, tmp_path: Path) -> None:
    texts = {"title": " Mira ", "trigger_words": "mira_v1,  red hair ,", "description": "line\nline", "author": ""}
    target = tmp_path / "new.safetensors"
    _, told = edit_file(source, target, Edit(texts))
    after = check_safetensors(target).metadata
    assert after["modelspec.title"] == "Mira" and after["modelspec.trigger_phrase"] == "mira_v1, red hair"
    assert after["modelspec.description"] == "line\nline" and "modelspec.author" not in after
    assert after["ss_learning_rate"] == "0.0001"
    for key, value in load_file(source).items():
        assert torch.equal(value, load_file(target)[key])
    # the wrong hash of the source is not copied, and the one that nobody can tell is gone
    assert check_own_hash(target) and "sshs_legacy_hash" not in after
    assert "modelspec.author taken out" in told and "modelspec.title set" in told and len(told) == 4


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_set_and_taken_out(name: str) -> None:
    after = edited(METADATA, Edit({name: "some words"}), "x")
    assert after[FIELDS[name]] == "some words"
    assert FIELDS[name] not in edited(after, Edit({name: " "}), "x")


REMOVED = {
    Removal.CAPTIONS: {"ss_tag_frequency"},
    Removal.PERSONAL: {
        "ss_tag_frequency",
        "ss_sd_model_name",
        "ss_vae_name",
        "ss_note",
        "ss_windows",
        "modelspec.author",
    },
    Removal.TRAINING: {key for key in METADATA if key.startswith("ss_")} - NEEDED,
    Removal.ALL: METADATA.keys() - NEEDED,
}


@pytest.mark.parametrize("group", Removal)
def test_groups_take_out_what_they_say(group: Removal) -> None:
    assert group in REMOVALS
    after = edited(METADATA, Edit(groups=[group]), "x")
    assert METADATA.keys() - after.keys() == REMOVED[group]


PATHS = ["/tmp/x.png", '{"dir": "/srv/data/b"}', "made in /opt/x with care", "/Volumes/My Disk/x", "/var/lib/y"]
PATHS += ["file:///home/a", "D:/x", "C:\\\\x", "\\\\\\\\host\\\\x", "~/x"]


@pytest.mark.parametrize("text", PATHS)
def test_texts_with_a_path_are_personal(text: str) -> None:
    assert "ss_note" not in edited({"ss_note": text, "ss_x": "1"}, Edit(groups=[Removal.PERSONAL]), "x")


@pytest.mark.parametrize("text", ["https://a.b/c/d", "stable-diffusion-v1/lora", "1/2", "and/or", "s://x", "/sdapi"])
def test_texts_without_a_path_stay(text: str) -> None:
    kept = edited({"ss_note": text, "ss_session_id": "1"}, Edit(groups=[Removal.PERSONAL]), "x")
    assert kept["ss_note"] == text and "ss_session_id" not in kept


def test_single_entries_and_patterns() -> None:
    after = edited(METADATA, Edit(entries=["ss_note", "ss_win*"]), "x")
    assert METADATA.keys() - after.keys() == {"ss_note", "ss_windows"}
    with pytest.raises(
        SafelightError, match=r"has no entry 'ss_nothing'.*Inspect on the Tools tab.*launch.py lora inspect"
    ):
        edited(METADATA, Edit(entries=["ss_nothing"]), "x")


def test_many_changes_are_counted_rather_than_listed() -> None:
    told = [f"ss_{number} taken out" for number in range(11)]
    assert changes_in_words(told[:8]) == "; ".join(told[:8])
    assert changes_in_words(told) == "; ".join(told[:8]) + " and 3 more"


def test_bad_texts_are_refused() -> None:
    for text, words in (
        ("a\x07b", "control characters"),
        ("a\ud800b", "broken signs"),
        ("x" * 20_000, "20000 characters"),
    ):
        with pytest.raises(SafelightError, match=words):
            edited(METADATA, Edit({"title": text}), "x")
    with pytest.raises(SafelightError, match="would be over"):
        edited({"a": "x" * MAX_WEIGHT_METADATA_BYTES}, Edit({"title": "y"}), "x")


def test_token_is_refused_wherever_it_stands(source: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedConfig):
        edit_file(source, tmp_path / "new.safetensors", Edit({"description": f"fetched with {TOKEN}"}))
    with pytest.raises(RefusedConfig):  # one that was in the file before is not written on either
        edited({**METADATA, "ss_training_comment": TOKEN}, Edit({"title": "y"}), "x")
    assert edited({**METADATA, "ss_training_comment": TOKEN}, Edit(groups=[Removal.PERSONAL]), "x")
    assert [path.name for path in tmp_path.iterdir()] == ["source.safetensors"]


def test_edit_without_a_change_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(SafelightError, match="nothing to change"):
        edit_file(source, tmp_path / "new.safetensors", Edit({"title": "old"}))


def test_edit_in_place(source: Path) -> None:
    before = load_file(source)
    edit_file(source, source, Edit({"title": "new"}), replace=True)
    assert check_safetensors(source).metadata["modelspec.title"] == "new"
    assert all(torch.equal(value, load_file(source)[key]) for key, value in before.items())


# ---- the shelf ---------------------------------------------------------------------------------------------------------


def test_shelf_lists_what_is_there(workspace: Workspace, source: Path) -> None:
    (workspace.runs_dir / "mira").mkdir()
    for target in (
        workspace.loras_dir / "own.safetensors",
        workspace.runs_dir / "mira" / "mira-step000100.safetensors",
    ):
        target.write_bytes(source.read_bytes())
    (workspace.loras_dir / ".partial-0123456789abcdef").write_bytes(b"half")
    (workspace.loras_dir / "notes.txt").write_text("x")
    (workspace.loras_dir / "link.safetensors").symlink_to(source)
    assert [one.name for one in shelf.list_loras(workspace)] == ["own", "mira/mira-step000100"]
    assert shelf.find_lora(workspace, "mira/mira-step000100").run == "mira"
    with pytest.raises(SafelightError, match="Did you mean own"):
        shelf.find_lora(workspace, "owm")
    for name in ("../own", "/etc/passwd", str(source), "link", ""):
        with pytest.raises(SafelightError):
            shelf.find_lora(workspace, name)


def test_files_are_brought_in_under_a_name_of_their_own(workspace: Workspace, source: Path, tmp_path: Path) -> None:
    assert shelf.bring_in(workspace, source).name == "source"
    assert shelf.bring_in(workspace, source).name == "source-2"
    with pytest.raises(RefusedName, match="a LoRA named source already"):
        shelf.bring_in(workspace, source, "source")
    with pytest.raises(RefusedName):
        shelf.bring_in(workspace, source, "../up")
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(RefusedFile):
        shelf.bring_in(workspace, bad)
    for key, words in (("decoder.conv_in.bias", "has no keys of a LoRA of"), ("emb_params", "textual inversion")):
        save_file({key: torch.zeros(4)}, bad)
        with pytest.raises(RefusedFile, match=words):
            shelf.bring_in(workspace, bad)
    assert {path.name for path in workspace.loras_dir.iterdir()} == {"source.safetensors", "source-2.safetensors"}


def test_removing_leaves_the_files_of_runs(workspace: Workspace, source: Path) -> None:
    shelf.bring_in(workspace, source)
    (workspace.runs_dir / "mira").mkdir()
    (workspace.runs_dir / "mira" / "mira.safetensors").write_bytes(source.read_bytes())
    shelf.remove_lora(workspace, "source")
    with pytest.raises(SafelightError, match="belongs to the run mira"):
        shelf.remove_lora(workspace, "mira/mira")
    assert [one.name for one in shelf.list_loras(workspace)] == ["mira/mira"]


def test_addresses_reach_nothing_else(workspace: Workspace, source: Path) -> None:
    shelf.bring_in(workspace, source)
    assert shelf.file_of(workspace, "source.safetensors").is_file()
    (workspace.loras_dir / "notes.txt").write_text("x")
    (workspace.loras_dir / "link.safetensors").symlink_to(source)
    for name in ("notes.txt", "link.safetensors", "../runs/x.safetensors", "none.safetensors", "", "."):
        with pytest.raises(RefusedPath):
            shelf.file_of(workspace, name)


def test_what_a_killed_program_left_goes_when_it_is_old(workspace: Workspace) -> None:
    young, old = (workspace.loras_dir / f".partial-{sign * 16}" for sign in "ab")
    for path in (young, old):
        path.write_bytes(b"half")
    os.utime(old, (0, time.time() - 2 * placing.PARTIAL_SECONDS))
    shelf.new_lora_place(workspace, "new")
    assert young.exists() and not old.exists()


def test_a_folder_is_never_replaced_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").mkdir()
    with pytest.raises(RefusedPath, match="is a folder"):
        placing.refuse_taken(tmp_path / "x.safetensors", replace=True)
