"""Looking a LoRA file over: facts as the file has them, and every fault found where it was put."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from security.errors import Cancelled
from tests import tiny
from tests.trainer.test_lora_made import KERNEL, LINEAR, TEXT, layers, numbers, write
from trainer.lora_files.checkpoint import Checkpoint
from trainer.lora_files.layers import Decomposed, Layer, LowRank, Rotation
from trainer.lora_files.names import Place
from trainer.lora_files.verify import LoraFacts, look_at
from trainer.tasks import TaskControl


def changed(path: Path, target: Path, metadata: dict[str, str] | None = None, **tensors: Tensor) -> LoraFacts:
    """The facts of a copy of a file with other tensors (ends of keys) or metadata."""
    state = load_file(path)
    for end, value in tensors.items():
        (key,) = [key for key in state if key.endswith(end.replace("__", "."))]
        state[key] = value
    save_file(state, target, metadata or {"ss_base_model_version": "sd_v1"})
    return look_at(target, target.stem)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "one.safetensors", layers(4), words="mira").path


def test_facts_are_those_of_the_file(path: Path) -> None:
    facts = look_at(path, "one")
    assert facts.ok and not facts.warnings and "has the hash" not in facts.faults
    summary = facts.summary()
    assert summary["model family"] == "Stable Diffusion 1.x" and summary["rank"] == "4"
    assert summary["layers"] == "2 in the U-Net, 1 in the text encoder" and summary["trigger words"] == "mira"
    assert summary["kind"] == "lora, locon" and summary["number format"] == "fp32" and summary["key names"] == "kohya"
    own = layers(4)
    for row in facts.rows():
        place = next(place for place in own if place.module in row["layer"])
        assert row["norm"] == pytest.approx(float(own[place].delta().norm()), rel=1e-4) and row["relative"] is None
    assert set(facts.programs) >= {"comfyui", "a1111", "diffusers"}


def test_numbers_are_judged(path: Path, tmp_path: Path) -> None:
    zero = torch.zeros(64, 4)
    facts = changed(path, tmp_path / "a.safetensors", attn1_to_q__lora_up__weight=zero)
    assert facts.ok and "1 layers are zero" in facts.warnings[0] and LINEAR.module in facts.warnings[0]
    facts = changed(path, tmp_path / "b.safetensors", attn1_to_q__alpha=torch.tensor(0.0))
    assert any("1 layers have the alpha 0" in one for one in facts.warnings)
    facts = changed(path, tmp_path / "c.safetensors", attn1_to_q__alpha=torch.tensor(9999.0))
    assert any("times as strong as the others" in one for one in facts.warnings)
    facts = changed(path, tmp_path / "d.safetensors", attn1_to_q__lora_up__weight=zero / zero)
    assert not facts.ok and "no numbers" in facts.faults[0] and facts.summary() == {} and facts.rows() == []
    ups = {f"{one}__lora_up__weight": torch.zeros_like(two) for one, two in
           (("attn1_to_q", zero), ("conv1", torch.zeros(64, 4, 1, 1)), ("q_proj", torch.zeros(32, 4)))}  # fmt: skip
    facts = changed(path, tmp_path / "e.safetensors", **ups)
    assert facts.faults == ["every layer is zero: the file changes nothing"]


def test_damage_and_secrets_are_faults(path: Path, tmp_path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    (tmp_path / "hash.safetensors").write_bytes(data)
    assert "damaged or was changed" in look_at(tmp_path / "hash.safetensors", "x").faults[0]
    token = {"ss_base_model_version": "sd_v1", "ss_training_comment": "hf_" + "aB3" * 11}
    facts = changed(path, tmp_path / "token.safetensors", token)
    assert not facts.ok and "hf_aB3" not in facts.faults[0]
    tags = {"ss_base_model_version": "sd_v1", "ss_tag_frequency": "{}"}
    assert any("captions' tags" in one for one in changed(path, tmp_path / "tags.safetensors", tags).notes)


def test_keys_that_nobody_understands_are_listed(path: Path, tmp_path: Path) -> None:
    state = {**load_file(path), "lora_unet_strange.lora_up.weight": torch.zeros(2, 2)}
    save_file(state, tmp_path / "x.safetensors", {"ss_base_model_version": "sd_v1"})
    facts = look_at(tmp_path / "x.safetensors", "x")
    assert any("1 tensors are not understood: lora_unet_strange" in one for one in facts.warnings)
    assert facts.programs["diffusers"] and "no hash" in facts.notes[0]


def test_file_is_compared_with_a_model(path: Path, tmp_path: Path) -> None:
    base = tiny.tiny_sd15(tmp_path / "base")
    facts = look_at(path, "one", base=base)
    assert facts.ok
    with Checkpoint(base) as checkpoint:
        for place, layer in layers(4).items():
            share = float(layer.delta().norm() / checkpoint.weight(place).norm())
            assert facts.relative[place] == pytest.approx(share, rel=1e-4)
    assert "median" in facts.summary()["strength"]
    other = tiny.tiny_sdxl(tmp_path / "xl")
    assert look_at(path, "one", base=other).faults == ["it is for Stable Diffusion 1.x, xl is Stable Diffusion XL"]
    strange: dict[Place, Layer] = {
        LINEAR._replace(module=LINEAR.module.replace("mid_block.attentions.0", "up_blocks.3.attentions.2")): layers(4)[
            LINEAR
        ]
    }
    lost = write(tmp_path / "lost.safetensors", strange).path
    assert "1 of its 1 layers have no place in base" in look_at(lost, "x", base=base).faults[0]
    wide = write(tmp_path / "wide.safetensors", {LINEAR: LowRank(numbers(2, 32), numbers(64, 2), 1.0)}).path
    assert "(64, 32)" in look_at(wide, "x", base=base).faults[0]
    strong = write(tmp_path / "strong.safetensors", {LINEAR: LowRank(numbers(2, 64), numbers(64, 2), 5000.0)}).path
    assert any("well below 1" in one for one in look_at(strong, "x", base=base).warnings)
    v_pred = tiny.tiny_sd15(tmp_path / "v", prediction_type="v_prediction")
    said = {"ss_base_model_version": "sd_v1", "modelspec.prediction_type": "epsilon"}
    save_file(load_file(path), tmp_path / "said.safetensors", said)
    assert look_at(tmp_path / "said.safetensors", "x").summary()["predicts"] == "noise (epsilon)"
    assert any(
        "predicts velocity (v)" in one for one in look_at(tmp_path / "said.safetensors", "x", base=v_pred).warnings
    )


def test_kinds_that_need_the_model_are_measured_with_it(tmp_path: Path) -> None:
    base = tiny.tiny_sd15(tmp_path / "base")
    inner = layers(4)[LINEAR]
    assert isinstance(inner, LowRank)
    path = write(tmp_path / "dora.safetensors", {LINEAR: Decomposed(inner, numbers(64, 1).abs() + 1)}).path
    assert look_at(path, "x").norms == {} and set(look_at(path, "x", base=base).norms) == {LINEAR}


def test_alpha_of_a_rotation_is_told_only_where_it_is_a_limit(tmp_path: Path) -> None:
    for constraint, told in ((0.0, None), (0.5, 0.5)):
        path = write(tmp_path / f"{constraint}.safetensors", {LINEAR: Rotation(numbers(8, 8, 8), constraint)}).path
        facts = look_at(path, "x")
        assert facts.rows()[0]["alpha"] == told and ("alpha" in facts.summary()) == (told is not None)


def test_looking_can_be_cancelled(path: Path) -> None:
    control = TaskControl()
    control.cancel()
    with pytest.raises(Cancelled):
        look_at(path, "x", control=control)
    assert {KERNEL, TEXT} <= layers(1).keys()
