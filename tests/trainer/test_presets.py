"""Presets that come with the program, and those of one's own: what they hold, and that nothing odd gets in or lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from security.errors import RefusedConfig, RefusedName, SafelightError
from trainer.config.files import iter_settings
from trainer.config.foreign.taking import flat
from trainer.config.presets import (
    MEMORY,
    OWN_FOLDER,
    PERSONAL,
    PRESETS_DIR,
    Purpose,
    config_of,
    delete_preset,
    kind_of_base,
    memory_level,
    own_preset,
    own_presets,
    read_preset,
    rename_preset,
    save_preset,
    shipped_preset,
    shipped_presets,
)
from trainer.config.schema import TrainConfig

DEFAULTS = flat(TrainConfig())


@pytest.mark.parametrize("path", sorted(PRESETS_DIR.glob("*.toml")), ids=lambda path: path.stem)
def test_every_file_says_why_and_only_what_differs_from_the_defaults(path: Path) -> None:
    preset = read_preset(path)
    assert preset.title and preset.reason.endswith(".") and len(preset.reason) > 40
    assert preset.values and not PERSONAL & preset.values.keys()
    same = [name for name, value in preset.values.items() if DEFAULTS[name] == value]
    assert not same, "a preset repeats a default"


def test_there_is_a_preset_for_each_purpose_kind_of_base_and_memory() -> None:
    presets = {preset.name: preset for preset in shipped_presets()}
    wanted = {
        f"{purpose}-{kind}-{level}gb" for purpose in Purpose for kind, levels in MEMORY.items() for level in levels
    }
    assert presets.keys() == wanted
    used = {f"{purpose}-{kind}" for purpose in Purpose for kind in MEMORY}
    used |= {f"memory-{kind}-{level}gb" for kind, levels in MEMORY.items() if kind != "sdxl-v" for level in levels}
    assert {path.stem for path in PRESETS_DIR.glob("*.toml")} == used, (
        "a file that no preset uses, or one that is missing"
    )
    for preset in presets.values():
        config = config_of(preset)
        assert config.dataset.resolution == (512 if "sd15" in preset.name else 1024)
        assert {name for name, value in flat(config).items() if value != DEFAULTS[name]} == set(preset.values)


def test_purposes_and_memory_change_what_they_say() -> None:
    style, face = shipped_preset(Purpose.STYLE, "sdxl"), shipped_preset(Purpose.CHARACTER, "sdxl")
    assert style.values["lora.rank"] > DEFAULTS["lora.rank"]
    assert style.values["optimizer.learning_rate"] < DEFAULTS["optimizer.learning_rate"]
    assert "loss.min_snr_gamma" in face.values
    assert "loss.min_snr_gamma" not in shipped_preset(Purpose.CHARACTER, "sdxl-v").values
    small = shipped_preset(Purpose.STYLE, "sdxl", 8)
    assert small.values["memory.checkpointing"] == "blocks" and small.values["optimizer.name"] == "adamw_8bit"
    assert small.values["lora.rank"] == 8, "memory comes after the purpose"
    assert shipped_preset(Purpose.STYLE, "sdxl", 24).values["training.batch_size"] == 4
    tiny = shipped_preset(Purpose.STYLE, "sdxl", 6)
    assert tiny.values == small.values and "6 are too few" in tiny.reason


def test_kinds_of_base_and_levels_of_memory() -> None:
    assert kind_of_base("sdxl", "v_prediction") == "sdxl-v" and kind_of_base("sdxl", "epsilon") == "sdxl"
    assert kind_of_base("sd15", "v_prediction") == "sd15" and kind_of_base("flux", "epsilon") == ""
    cards = {8_188: 8, 12_282: 12, 16_376: 12, 24_564: 24, 6_144: 6, 4_096: 0, 143_771: 24}
    assert {mib: memory_level(mib * 2**20) for mib in cards} == cards


def test_a_preset_of_ones_own_is_kept_renamed_and_deleted(tmp_path: Path) -> None:
    path = save_preset(tmp_path, " My style ", {**DEFAULTS, "lora.rank": 64, "name": "x"}, "for ink")
    assert path == tmp_path / OWN_FOLDER / "My style.toml"
    preset = own_preset(tmp_path, "My style")
    assert dict(preset.values) == {"lora.rank": 64} and preset.reason == "for ink", (
        "only what differs, nothing personal"
    )
    with pytest.raises(RefusedName, match="already"):
        save_preset(tmp_path, "My style", {"lora.rank": 8})
    save_preset(tmp_path, "other", {"dataset.more_resolutions": [768], "sample.prompts": ["a cat"]})
    with pytest.raises(RefusedName, match="already"):
        rename_preset(tmp_path, "other", "My style")
    rename_preset(tmp_path, "My style", "Ink")
    assert [preset.name for preset in own_presets(tmp_path)[0]] == ["Ink", "other"]
    assert own_preset(tmp_path, "Ink").values == preset.values and own_preset(tmp_path, "Ink").reason == "for ink"
    delete_preset(tmp_path, "Ink")
    with pytest.raises(RefusedName, match="There are: other"):
        delete_preset(tmp_path, "Ink")
    assert dict(own_preset(tmp_path, "other").values) == {
        "dataset.more_resolutions": [768],
        "sample.prompts": ["a cat"],
    }


@pytest.mark.parametrize("name", ["", "../out", "a/b", "a\\b", "nul", ".hidden", "x" * 65, "a\x00b", "-rf", "a."])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    for work in (lambda: save_preset(tmp_path, name, {"lora.rank": 8}), lambda: delete_preset(tmp_path, name)):
        with pytest.raises(RefusedName):
            work()
    save_preset(tmp_path, "fine", {"lora.rank": 8})
    with pytest.raises(RefusedName):
        rename_preset(tmp_path, "fine", name)
    assert [path.name for path in tmp_path.rglob("*.toml")] == ["fine.toml"]


def test_odd_files_are_told_and_stop_nothing(tmp_path: Path) -> None:
    folder = tmp_path / OWN_FOLDER
    folder.mkdir()
    (folder / "broken.toml").write_text("[lora\n")
    (folder / "typo.toml").write_text("[lora]\nrnak = 3\n")
    (folder / "personal.toml").write_text('[model]\nbase = "x"\n')
    (folder / "loose.toml").write_text("rank = 3\n")
    (folder / "fine.toml").write_text("[loss]\nnoise_offset = 0.05\n")
    (folder / "link.toml").symlink_to(folder / "fine.toml")
    presets, faults = own_presets(tmp_path)
    assert [(preset.name, dict(preset.values)) for preset in presets] == [("fine", {"noise.offset": 0.05})], (
        "renamed settings"
    )
    assert len(faults) == 5 and any("lora.rank" in fault for fault in faults)
    with pytest.raises(SafelightError):
        own_preset(tmp_path, "link")


def test_what_can_not_be_a_setting_or_is_a_token_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(RefusedConfig, match="rank is 999"):
        save_preset(tmp_path, "a", {"lora.rank": 999})
    with pytest.raises(RefusedConfig):
        save_preset(tmp_path, "b", {"sample.prompts": ["hf_" + "a" * 34]})
    with pytest.raises(RefusedConfig, match="reason has"):
        save_preset(tmp_path, "c", {"lora.rank": 8}, "x" * 501)
    assert not list(tmp_path.rglob("*.toml"))


def test_every_setting_can_be_kept(tmp_path: Path) -> None:
    config = config_of(shipped_preset(Purpose.STYLE, "sdxl", 8))
    path = save_preset(tmp_path, "all", flat(config))
    assert flat(config_of(read_preset(path))) == flat(config)
    assert {setting.name for setting in iter_settings()} == DEFAULTS.keys()
