"""Captioners come from a hub as the catalog's rows say: the files that are needed, checked, and then they answer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from security.errors import SafelightError
from tests.hubs.huggingface import COMMIT, HuggingFacePlayer
from tests.hubs.server import Hubs
from tests.tiny_captioners import as_older_folder, pictures, tiny_captioner
from tests.trainer.downloading import Make
from trainer.models.jobfiles import Download, DownloadState
from trainer.tagging.base import TaggingOptions, taggers
from trainer.tagging.shelf import plan_tagger, tagger_files
from trainer.workspace import TAGGERS, Workspace

ROWS = ("blip-large", "blip2-opt-2.7b", "florence-2-base", "git-large-coco", "qwen3-vl-2b", "joycaption-beta-one")
DECOYS = {
    ".gitattributes": b"*.bin filter=lfs",
    "README.md": b"---\nlicense: mit\n---\n",
    "pytorch_model.bin": b"pickle",
    "modeling_evil.py": b"import os",
    "merges.txt": b"#version",
    "pytorch_model.bin.index.json": b'{"weight_map":{}}',
}


def repository(kind: str, folder: Path) -> dict[str, bytes]:
    """Files of a repository as the makers of the real ones have put them there."""
    tiny_captioner(kind, folder)
    if (folder / "processor_config.json").exists():
        as_older_folder(folder)
    elif (template := folder / "chat_template.jinja").exists():
        text = template.read_text(encoding="utf-8")
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": text}), encoding="utf-8")
        template.unlink()
    if not kind.startswith("qwen"):
        (folder / "special_tokens_map.json").write_text("{}", encoding="utf-8")
    if kind == "blip-2":  # its weights are split
        weights = folder / "model.safetensors"
        weights.rename(folder / "model-00001-of-00001.safetensors")
        index = {"metadata": {}, "weight_map": dict.fromkeys(_names(folder), "model-00001-of-00001.safetensors")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _names(folder: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(folder / "model-00001-of-00001.safetensors", "pt") as file:
        return list(file.keys())


def fetched(make: Make, hubs: Hubs, name: str, files: dict[str, bytes]) -> Download:
    row = replace(taggers()[name], revision=COMMIT, known={})
    decoys = {path: data for path, data in DECOYS.items() if name != "joycaption-beta-one" or ".index." not in path}
    HuggingFacePlayer(hubs, row.source, {**decoys, **files}).publish()
    downloads = make()
    job = downloads.start(plan_tagger(downloads.network, None, row), name=row.name, confirmed=True)
    assert downloads.wait(60)
    return downloads.get(job)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_fetches_what_its_captioner_needs(
    make: Make, hubs: Hubs, workspace: Workspace, tmp_path: Path, name: str
) -> None:
    files = repository(taggers()[name].settings["kind"], tmp_path / "repository")
    done = fetched(make, hubs, name, files)
    assert done.state is DownloadState.DONE, done.message
    row = replace(taggers()[name], known={})
    proven = tagger_files(workspace, row)
    assert not set(proven.sha256) & set(DECOYS)
    captioner = row.make(TaggingOptions(max_new_tokens=8))
    captioner.load(proven, "cpu")
    assert len(captioner.describe([captioner.prepare(picture) for picture in pictures(2)])) == 2


def test_a_captioner_with_code_in_its_settings_never_enters_the_workspace(
    make: Make, hubs: Hubs, workspace: Workspace, tmp_path: Path
) -> None:
    files = repository("git", tmp_path / "repository")
    config = json.loads(files["config.json"])
    files["config.json"] = json.dumps({**config, "auto_map": {"AutoModel": "modeling_evil.Evil"}}).encode()
    done = fetched(make, hubs, "git-large-coco", files)
    assert done.state is DownloadState.FAILED and "run the model's code" in done.message
    assert not list(workspace.on_shelf(TAGGERS).models_dir.iterdir())


def test_changed_weights_are_not_opened(make: Make, hubs: Hubs, workspace: Workspace, tmp_path: Path) -> None:
    files = repository("git", tmp_path / "repository")
    assert fetched(make, hubs, "git-large-coco", files).state is DownloadState.DONE
    weights = workspace.on_shelf(TAGGERS).models_dir / "git-large-coco" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(SafelightError, match=r"model\.safetensors has changed"):
        tagger_files(workspace, taggers()["git-large-coco"])
