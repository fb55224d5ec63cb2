"""`lora ...` on the command line: from typed words to files, and words for what can't be done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from security.weights import check_safetensors
from tests import tiny
from tests.trainer.test_lora_made import layers, write
from trainer.lora_files.reading import read_lora
from trainer.models.library import find_model
from trainer.models.provenance import read_provenance
from trainer.workspace import Workspace
from ui import cli
from ui.cli_lora import SUBCOMMANDS


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    workspace = Workspace.open(tmp_path / "space")
    write(workspace.loras_dir / "one.safetensors", layers(6), words="mira")
    write(workspace.loras_dir / "two.safetensors", layers(4, seed=50))
    (workspace.runs_dir / "mira").mkdir()
    write(workspace.runs_dir / "mira" / "mira.safetensors", layers(2))
    return workspace


@pytest.fixture
def run(space: Workspace, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*words: str, code: int = 0, as_json: bool = False) -> Any:
        more = ["--json"] if as_json else []
        assert cli.main(["lora", words[0], "--workspace", str(space.path), *more, *words[1:]]) == code
        told = capsys.readouterr()
        return json.loads(told.out) if as_json else told.out + told.err

    return run


def test_list_and_inspect(run: Any) -> None:
    assert {row["name"] for row in run("list", as_json=True)} == {"one", "two", "mira/mira"}
    told = run("inspect", "one", "--layers", "--metadata")
    for words in ("Stable Diffusion 1.x", "trigger words", "mira", "attn1.to_q", "locon", "ss_network_dim", "ComfyUI"):
        assert words in told, words
    facts = run("inspect", "mira/mira", as_json=True)
    assert facts["facts"]["rank"] == "2" and len(facts["layers"]) == 3


def test_edit(run: Any, space: Workspace, tmp_path: Path) -> None:
    path = space.loras_dir / "one.safetensors"
    before = load_file(path)
    told = run("edit", "one", "--title", "Mira", "--tags", "a,b", "--remove", "ss_network_dim", "--remove", "captions")
    metadata = check_safetensors(path).metadata
    assert metadata["modelspec.title"] == "Mira" and metadata["modelspec.tags"] == "a, b"
    assert "ss_network_dim" not in metadata and "modelspec.title set" in told
    assert all(bool((value == load_file(path)[key]).all()) for key, value in before.items())
    assert "belongs to a run" in run("edit", "mira/mira", "--title", "x", code=2)
    run("edit", "mira/mira", "--title", "x", "--out", "copy")
    assert check_safetensors(space.loras_dir / "copy.safetensors").metadata["modelspec.title"] == "x"
    told = run("edit", "one", "--remove", "nonsense", code=2)
    assert "no entry 'nonsense'" in told and "captions, personal, training, all" in told
    assert "Say what to change" in run("edit", "one", code=2)
    assert "token" in run("edit", "one", "--author", "hf_" + "aB3" * 11, code=2)


def test_resize_merge_and_convert(run: Any, space: Workspace, tmp_path: Path) -> None:
    told = run("resize", "one", "--rank", "2", "--conv-rank", "1", "--out", "small", "--layers")
    assert "keeps" in told and "KEPT" in told and "Loads" in told
    assert {layer.rank for layer in read_lora(space.loras_dir / "small.safetensors").layers.values()} == {1, 2}
    assert "There is a LoRA named small already" in run("resize", "one", "--rank", "3", "--out", "small", code=2)
    run("resize", "one", "--rank", "3", "--out", "small", "--replace", "--energy", "0.5")
    elsewhere = tmp_path / "both.safetensors"
    made = run(
        "merge", "one:0.5", str(space.loras_dir / "two.safetensors") + ":-1", "--out", str(elsewhere), as_json=True
    )
    assert made["path"] == str(elsewhere) and made["kept"] == 1 and made["layers"][0]["after"] == 10
    run("convert", "one", "--format", "diffusers", "--precision", "fp16", "--out", "d")
    assert "lora_A.weight" in " ".join(load_file(space.loras_dir / "d.safetensors"))


def test_bake_extract_and_verify(run: Any, space: Workspace, tmp_path: Path) -> None:
    folder = tiny.tiny_sd15(tmp_path / "base")
    base = tiny.as_single_file(folder)
    assert "0.8 x one" in run("bake", str(base), "one:0.8", "--name", "mixed")
    baked = find_model(space, "mixed")  # with the tokenizer that lay beside the base, and unchanged since
    recorded = read_provenance(space, "mixed")
    assert baked.kind == "single_file" and recorded is not None and "0.8 x one" in recorded.source
    assert (baked.path.parent / "tokenizer" / "vocab.json").is_file()
    assert "There is a model named mixed already" in run("bake", str(base), "one", "--name", "mixed", code=2)
    run("bake", str(folder), "one", "--out", str(tmp_path / "folder"))
    assert (tmp_path / "folder" / "unet").is_dir()
    run("extract", "mixed", str(folder), "--rank", "6", "--conv-rank", "6", "--out", "again")
    assert read_lora(space.loras_dir / "again.safetensors", "sd15").layers.keys() == layers(1).keys()
    assert run("verify", "one", "--base", str(folder)).startswith("ok")
    other = tiny.tiny_sdxl(tmp_path / "xl")
    assert "FAIL" in run("verify", "one", "--base", str(other), code=1)
    assert run("verify", "one", as_json=True)["ok"] is True


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("inspect", "none"), "There is no LoRA 'none'"),
        (("inspect", "none.safetensors"), "does not exist"),
        (("resize", "one", "--rank", "0", "--out", "x"), "The rank is 0"),
        (("resize", "one", "--rank", "4", "--energy", "7", "--out", "x"), "energy to keep is 7"),
        (("resize", "one", "--rank", "4", "--ratio", "0.5", "--out", "x"), "ratio is 0.5"),
        (("resize", "one", "--rank", "4", "--ratio", "-2", "--out", "x"), "ratio is -2"),
        (("resize", "one", "--rank", "4", "--ratio", "0", "--out", "x"), "ratio is 0"),
        (("resize", "one", "--rank", "4", "--out", "../x"), "../x does not end in .safetensors"),
        (("resize", "one:0.5", "--rank", "4", "--out", "x"), "There is no LoRA 'one:0.5' here"),
        (("merge", "one:abc", "two", "--out", "x"), "'abc' behind one: is no weight. Give a number from -10 to 10"),
        (("merge", "one:", "two", "--out", "x"), "'' behind one: is no weight"),
        (("merge", "none:0.5", "two", "--out", "x"), "There is no LoRA 'none' here"),
        (("merge", "none:abc", "two", "--out", "x"), "There is no LoRA 'none:abc' here"),
        (("merge", "one", "one:-1", "--out", "x"), "cancel each other"),
        (("bake", "demo", "one:1e9", "--name", "x"), "The weight of one is 1e+09. Give a number from -10 to 10"),
        (("resize", "one", "--rank", "4", "--out", "/none/x.safetensors"), "is no folder"),
        (("merge", "one:0", "two", "--out", "x"), "The weight of one is 0"),
        (("merge", "one", "--out", "x"), "1 LoRAs are named"),
        (("merge", "one", "two", "--energy", "0.5", "--out", "x"), "need a --rank"),
        (("bake", "none", "one", "--name", "x"), "no model 'none'"),
        (("bake", "none", "one"), "one of the two"),
        (("extract", "demo", "demo", "--rank", "4", "--out", "x"), "are equal"),
        (("convert", "one", "--out", "x"), "nothing to convert"),
    ],
)
def test_what_cannot_be_done_is_told(run: Any, space: Workspace, words: tuple[str, ...], told: str) -> None:
    assert told in run(*words, code=2)
    assert not (space.loras_dir / "x.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("convert", "one", "--format", "nonsense", "--out", "x"), "--format is nonsense, which is none of kohya, diffusers,"),
        (("convert", "one", "--format", "koya", "--out", "x"), "Did you mean kohya?"),
        (("resize", "one", "--rank", "abc", "--out", "x"), "--rank is abc, which is no whole number."),
        (("resize", "one", "--rank", "4", "--energy", "much", "--out", "x"), "--energy is much, which is no number."),
        (("resise", "one"), "resise is not a command. Did you mean resize?"),
    ],
)  # fmt: skip
def test_mistyped_options_are_told_by_their_names(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["lora", *words])
    assert ended.value.code == 2 and told in capsys.readouterr().err


def test_a_name_may_have_a_colon(run: Any, space: Workspace) -> None:
    write(space.loras_dir / "a:2.safetensors", layers(3, seed=9))
    made = run("merge", "a:2", "a:2:0.5", "--out", "x", as_json=True)
    assert "1 x a:2 + 0.5 x a:2" in made["message"]


def test_every_subcommand_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in SUBCOMMANDS:
        with pytest.raises(SystemExit) as ended:
            cli.main(["lora", name, "--help"])
        assert ended.value.code == 0 and "--workspace" in capsys.readouterr().out
