"""The form of the Train tab, made from the settings schema: components, their values, and where each fault belongs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import gradio as gr
from gradio.components import Component

from trainer.adapters.table import ADAPTERS, TOOLS
from trainer.config.files import ConfigError, Setting, SettingKind, config_values, iter_settings, parse_config
from trainer.config.schema import TrainConfig
from trainer.optimizers import OPTIMIZERS

SETTINGS: dict[str, Setting] = {setting.name: setting for setting in iter_settings()}
LIBRARY_SETTINGS = {
    "model.base": "models",
    "dataset.folder": "datasets",
    "validation.folder": "datasets",
    "lora.continue_from": "loras",
}
"""Settings that name something of the library: dropdowns whose choices come from there; paths may be typed as well."""
LABELS = {
    "model.base": "Model",
    "dataset.folder": "Dataset",
    "dataset.trigger_word": "Trigger word",
    "dataset.more": "More datasets",
    "dataset.regularisation": "Regularisation datasets",
    "dataset.min_bucket_pictures": "Fewest pictures of a size",
    "training.max_train_steps": "Steps",
    "sample.prompts": "Sample prompts",
    "sample.every_n_steps": "Draw samples every … steps",
    "sample.seed": "Seed of the samples",
    "validation.folder": "Held-out pictures",
    "validation.every_n_steps": "Measure the held-out loss every … steps",
    "save.every_n_steps": "Save every … steps",
    "save.precision": "Precision of the file",
    "model.precision": "Precision of the base",
    "embedding.word": "Word to learn",
    "embedding.num_vectors": "Tokens of the word",
    "embedding.init_words": "The word begins as",
    "embedding.learning_rate": "Learning rate of the word",
    "embedding.stop_step": "The word stops at step",
    "optimizer.name": "Optimizer",
    "optimizer.lora_plus_ratio": "LoRA+ ratio",
    "lora.rs_lora": "rs-LoRA",
    "lora.init": "Matrices begin",
    "lora.conv_rank": "Rank of convolutions",
    "lora.conv_alpha": "Alpha of convolutions",
    "lora.lokr_factor": "LoKr factor",
    "lora.targets": "Layers",
    "lora.target_patterns": "Layers by pattern",
    "lora.exclude_patterns": "Layers left out",
    "lora.block_ranks": "Ranks by pattern",
    "lora.block_learning_rates": "Learning rates by pattern",
    "lora.text_encoder_stop_step": "The text encoder stops at step",
    "lora.continue_from": "Go on from",
    "lora.merge_first": "LoRAs in the base",
}
"""Names of settings where the field's own name is not what a person would say."""
PROGRAM_NAMES = {"comfyui": "ComfyUI", "a1111": "A1111", "forge": "Forge", "diffusers": "diffusers"}
"""What LoRA files are loaded with, as people write it."""
LARGEST_SHOWN = 100_000
"""Bounds above this keep out nonsense only; they would make the help longer and no clearer."""
WHOLE_WORDS = {"snr": "SNR", "lora": "LoRA"}


def label(setting: Setting) -> str:
    """The setting's name on the page: `min_snr_gamma` becomes "Min SNR gamma"."""
    return LABELS.get(setting.name) or words_of(setting.field)


def about_choices(values: Mapping[str, Any]) -> dict[str, str]:
    """What the chosen adapter and optimizer are, by setting: their own rows in words."""
    told = {}
    if row := ADAPTERS.get(values["lora.adapter"]):
        where = ", ".join(PROGRAM_NAMES[tool] for tool in TOOLS if tool in row.loads_in)
        told["lora.adapter"] = (
            f"{row.title}: {row.help}. Time of a step: {row.cost[0].lower()}{row.cost[1:]} Loads in {where}."
        )
    if optimizer := OPTIMIZERS.get(values["optimizer.name"]):
        rate = f"{optimizer.band.usual:g}, from {optimizer.band.low:g} to {optimizer.band.high:g}"
        told["optimizer.name"] = f"{optimizer.title}: {optimizer.help} Usual learning rate {rate}."
    return told


def words_of(name: str) -> str:
    """A name in code as words, beginning with a capital letter."""
    text = " ".join(WHOLE_WORDS.get(word, word) for word in name.split("_"))
    return text[0].upper() + text[1:]


def element_id(name: str) -> str:
    """The id of a setting's component on the page."""
    return "set-" + name.replace(".", "-").replace("_", "-")


def component(setting: Setting) -> Component:
    """The component to type a setting in. Ranges are checked by the schema, which names them at the field."""
    bounded = not setting.choices and (setting.maximum or setting.below or math.inf) <= LARGEST_SHOWN
    allowed = f" Allowed: {setting.range_text}." if bounded else ""
    common: dict[str, Any] = {
        "label": label(setting),
        "info": setting.help + allowed,
        "value": shown(setting, setting.default),
        "interactive": True,
        "elem_id": element_id(setting.name),
        "min_width": 240,
    }
    if setting.name in LIBRARY_SETTINGS:
        return gr.Dropdown([], allow_custom_value=True, **common)
    match setting.kind:
        case SettingKind.SWITCH:
            return gr.Checkbox(**common)
        case SettingKind.CHOICE:
            return gr.Dropdown(list(setting.choices), **common)
        case SettingKind.INTEGER | SettingKind.NUMBER:
            return gr.Number(step=_arrow_step(setting), **common)
        case SettingKind.LINES:
            return gr.Textbox(lines=3, max_lines=10, **common)
        case SettingKind.TEXT:
            return gr.Textbox(max_lines=1, **common)


def _arrow_step(setting: Setting) -> float:
    """How far the arrow keys move a number: one, or a tenth of the default's own size."""
    if setting.kind is SettingKind.INTEGER:
        return setting.multiple_of or 1
    return 10.0 ** (math.floor(math.log10(setting.default)) - 1) if setting.default else 0.01


def shown(setting: Setting, value: Any) -> Any:
    """A setting's value as its component shows it."""
    return "\n".join(map(str, value)) if setting.kind is SettingKind.LINES else value


def plain(setting: Setting, value: Any) -> Any:
    """A component's value as the config has it. Nothing is rounded, cut or filled in: the schema judges it."""
    if setting.kind is SettingKind.LINES:
        return [line.strip() for line in str(value or "").splitlines() if line.strip()]
    if setting.kind is SettingKind.TEXT:
        return str(value or "").strip()
    if setting.kind is SettingKind.INTEGER and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def flat(config: TrainConfig) -> dict[str, Any]:
    """A config as `section.field` -> plain value."""
    nested = config_values(config)
    return {
        name: nested[setting.section][setting.field] if setting.section else nested[setting.field]
        for name, setting in SETTINGS.items()
    }


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse of `flat`."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        setting = SETTINGS[name]
        (result.setdefault(setting.section, {}) if setting.section else result)[setting.field] = value
    return result


class ConfigForm:
    """Every setting of the schema as a component. The tab places them: `place(name)` or `place_section(section)`."""

    def __init__(self) -> None:
        self.fields: dict[str, Component] = {}

    def place(self, name: str) -> Component:
        """Creates the component of a setting where the layout stands now."""
        self.fields[name] = component(SETTINGS[name])
        return self.fields[name]

    def place_section(self, section: str) -> None:
        """Creates the components of a section that have no place yet."""
        for name, setting in SETTINGS.items():
            if setting.section == section and name not in self.fields:
                self.place(name)

    @property
    def inputs(self) -> set[Component]:
        """All components: handlers get their values keyed by component."""
        return set(self.fields.values())

    @property
    def outputs(self) -> list[Component]:
        """All components in the schema's order, as `show` and `show_values` fill them."""
        return [self.fields[name] for name in SETTINGS]

    def plain_values(self, values: Mapping[Component, Any]) -> dict[str, Any]:
        """What is typed in, as `section.field` -> plain value, right or wrong."""
        return {name: plain(SETTINGS[name], values.get(field)) for name, field in self.fields.items()}

    def read(self, values: Mapping[Component, Any]) -> TrainConfig:
        """The config that is typed in. Raises ConfigError with every fault."""
        return parse_config(nested(self.plain_values(values)))

    def faults(self, values: Mapping[Component, Any]) -> list[dict[str, Any]]:
        """The validator of the Start button: for each component, whether it is right and, if not, why."""
        messages: dict[str, list[str]] = {}
        try:
            self.read(values)
        except ConfigError as error:
            for fault in error.faults:
                messages.setdefault(fault.setting, []).append(fault.message)
        by_component = {field: messages.get(name, []) for name, field in self.fields.items()}
        ordered = sorted(self.inputs, key=lambda field: field._id)  # the order in which gradio passes a set of inputs
        return [gr.validate(not by_component[field], " ".join(by_component[field])) for field in ordered]

    def show(self, config: TrainConfig) -> list[Any]:
        """The values of `outputs` for a config."""
        values = flat(config)
        return [shown(setting, values[name]) for name, setting in SETTINGS.items()]

    def show_some(self, values: Mapping[str, Any]) -> list[Any]:
        """As `show` for a part of the settings; the others stay as they are."""
        return [shown(SETTINGS[name], values[name]) if name in values else gr.skip() for name in SETTINGS]
