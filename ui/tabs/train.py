"""The Train tab: a form made from the settings schema, what the plan means, and the Start button."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from security.configs import read_json
from security.errors import SafelightError
from trainer.config.files import MAX_CONFIG_BYTES, ConfigError, dump_config, load_config, parse_config
from trainer.config.foreign.reading import SUFFIXES, read_settings
from trainer.config.inactive import inactive_settings
from trainer.config.presets import PERSONAL
from trainer.config.schema import Section, TrainConfig
from trainer.dataset.scan import list_datasets
from trainer.lora_files.shelf import list_loras
from trainer.preflight.estimates import is_alike
from trainer.rebuild import check_rebuild, is_recipe, read_recipe, rebuild_config
from trainer.runs import Progress, RunFolder
from ui.checks import CheckDesk
from ui.form import LIBRARY_SETTINGS, SETTINGS, ConfigForm, about_choices, flat, nested, words_of
from ui.messages import shown_to_the_user
from ui.rates import rates_view
from ui.recipes import (
    LOOKS,
    OWN_LENGTH,
    DatasetSizes,
    Start,
    changes,
    follow,
    no_pictures,
    plan_line,
    recipe,
    steps_for,
)
from ui.services import Services
from ui.settings_files import import_told, sd_scripts_files, surroundings, uploaded
from ui.tabs.train_start import StartChooser
from ui.views import rebuild_told
from ui.widgets import drawn_view

FIRST_BASE = "demo"
READ_DRAFT, KEEP_DRAFTS = "() => window.safelight.draft()", "() => window.safelight.keep_drafts()"
"""What the page's script does: read at once, for a component may not be there yet; kept only after it was read."""
Values = Mapping[Component, Any]


class TrainTab:
    """The form, its draft in the browser, and the buttons. What leads to other tabs is connected in ui/app.py."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.form = ConfigForm()
        self.desk = CheckDesk(services)
        self.chooser = StartChooser(services)
        self.sizes = DatasetSizes(services.workspace)
        self.draft = gr.JSON(
            visible=False
        )  # the script of `tools` keeps it in the browser: settings only, nothing secret
        self._configs: dict[tuple[str, float], TrainConfig] = {}
        self._lay_out()
        self._connect()

    # -- layout --

    def _lay_out(self) -> None:
        form = self.form
        gr.Markdown("## What to train")
        with gr.Row():
            form.place("name")
            form.place("model.base")
            form.place("dataset.folder")
            form.place("dataset.trigger_word")
        self.chooser.place()
        with gr.Row():
            self.length = gr.Radio(
                [*LOOKS, OWN_LENGTH],
                value=OWN_LENGTH,
                label="How long?",
                info="How often every picture is seen: 20, 60 or 150 times.",
                interactive=True,
                elem_id="how-long",
                scale=2,
            )
            form.place("training.max_train_steps")
        with gr.Row():
            form.place("sample.prompts")
            form.place("sample.every_n_steps")
        self.tools = drawn_view("form", events=["reset"])
        with gr.Column(elem_id="all-settings"):
            for section, info in TrainConfig.model_fields.items():
                if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
                    self._section(section, info.annotation)
        with gr.Row(elem_id="train-buttons"):
            self.start = gr.Button("Start training", variant="primary", elem_id="start-training", scale=2)
            self.check = gr.Button("Check before training", elem_id="check-run")
            self.export = gr.Button("Export as TOML", elem_id="export-config")
            self.export_others = gr.Button("Export for sd-scripts", elem_id="export-sd-scripts")
            self.load = gr.UploadButton(
                "Import", file_count="multiple", file_types=[*SUFFIXES], elem_id="import-config"
            )
        self.checks = drawn_view("check", functions=self.desk.functions())
        for field, value in zip(form.outputs, form.show_some(self._first_values()), strict=True):
            field.value = value

    def _section(self, section: str, schema: type[Section]) -> None:
        with gr.Column(elem_id=f"section-{section}", elem_classes="sl-section"):
            gr.Markdown(f"### {words_of(section)}\n{schema.__doc__}")
            self.form.place_section(section)

    def _first_values(self) -> dict[str, Any]:
        return {**self._recipe(FIRST_BASE), "name": "my_lora"}

    def _recipe(self, base: str, start: Start | None = None) -> dict[str, Any]:
        return recipe(self.services.library.models(), base, start)

    @property
    def watched(self) -> set[Component]:
        """The fields of the settings and those that say what the form starts from."""
        return self.form.inputs | {*self.chooser.fields}

    # -- events --

    def _connect(self) -> None:
        form = self.form
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
        watched, told = self.watched, [self.tools, self.draft]
        fields = [
            field for name, field in form.fields.items() if name not in ("model.base", "training.max_train_steps")
        ]
        typed = [field.input for field in fields]
        # a text field's `input` comes with keys alone, not with what is pasted or dropped
        typed += [field.change for field in fields if isinstance(field, gr.Textbox)]
        gr.on(typed, self.look, watched, told, trigger_mode="always_last", **quiet)
        base = form.fields["model.base"]
        base.input(self.follow_model, {*watched, self.draft}, form.outputs, **quiet).then(
            self.look, watched, told, **quiet
        )
        steps = form.fields["training.max_train_steps"]
        steps.input(lambda: OWN_LENGTH, None, self.length, **quiet)
        steps.input(self.look, watched, told, trigger_mode="always_last", **quiet)
        self.length.input(self.set_length, {*form.inputs, self.length}, steps, **quiet).then(
            self.look, watched, told, **quiet
        )
        self.tools.reset(self.reset, watched, form.outputs, **quiet).then(self.look, watched, told, **quiet)
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}  # no "Error" over the fields
        checked: dict[str, Any] = {**private, "validator": form.faults}
        self.export.click(self.export_text, form.inputs, self.tools, **checked)
        self.export_others.click(self.export_for_others, form.inputs, self.tools, **checked)
        self.check.click(self.check_run, form.inputs, self.checks, **checked)
        self.load.upload(self.import_files, {*form.inputs, self.load}, [*form.outputs, self.tools], **private).then(
            self.look, watched, told, **quiet
        )
        chooser = self.chooser
        gr.on(
            [field.input for field in chooser.fields], self.follow_model, {*watched, self.draft}, form.outputs, **quiet
        ).then(self.look, watched, told, **quiet)
        chooser.view.save(self.save_preset, watched, [chooser.view, chooser.own], **private)
        chooser.view.changed(chooser.refresh, chooser.own, chooser.own, **quiet).then(self.look, watched, told, **quiet)

    def look(self, values: Values) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the form as it stands means: the plan, the changes, and the draft that survives a reload."""
        typed, start = self.form.plain_values(values), self.chooser.start_of(values)
        changed = changes(typed, self._recipe(typed["model.base"], start))
        told = {
            "plan": self._plan(values),
            "changed": changed,
            "inactive": self._inactive(values),
            "about": about_choices(typed),
        }
        models = {info.name: info for info in self.services.library.models()}
        told["start"] = self.chooser.reason(start, models.get(typed["model.base"]))
        kept = {"purpose": start.purpose, "memory": start.memory, "own": start.own}
        draft = {"values": typed, "start": kept}
        return {**told, "rates": self._rates(values), "draft": draft}, draft

    def _rates(self, values: Values) -> dict[str, Any] | None:
        """The learning rate over the run; None while the form has a mistake."""
        try:
            return rates_view(self.form.read(values))
        except ConfigError:
            return None

    def _inactive(self, values: Values) -> dict[str, str] | None:
        """Settings without effect and why; None while the form has a mistake, so that it can't be told."""
        try:
            config = self.form.read(values)
        except ConfigError:
            return None
        families = {info.name: info.family for info in self.services.library.models()}
        return inactive_settings(config, family=families.get(config.model.base) or None)

    def _plan(self, values: Values) -> dict[str, str]:
        try:
            config = self.form.read(values)
            self.services.refuse_paths(config)
            size = self.sizes.of(flat(config))
            if not size.pictures:
                raise no_pictures(config.dataset.folder)
        except ConfigError as error:
            more = f" ({len(error.faults) - 1} more)" if len(error.faults) > 1 else ""
            return {"text": error.faults[0].message + more, "tone": "bad"}
        except SafelightError as error:
            return {"text": str(error), "tone": "bad"}
        return {"text": plan_line(config, size, self._seconds_per_step(config)), "tone": "good"}

    def _seconds_per_step(self, config: TrainConfig) -> float | None:
        """The speed of the newest run that was like it."""
        for run in self.services.jobs.runs()[:5]:
            if run.seconds_per_step is None:
                continue
            try:
                if is_alike(config, self._config_of(run)):
                    return run.seconds_per_step
            except SafelightError:
                continue  # deleted just now, or of a version whose settings can't be read any more
        return None

    def _config_of(self, run: Progress) -> TrainConfig:
        """A run's settings; they never change, and the form asks at every key."""
        key = (run.run_id, run.created)
        if key not in self._configs:
            self._configs[key] = RunFolder.find(self.services.workspace, run.run_id).config()
        return self._configs[key]

    def follow_model(self, values: Values) -> list[Any]:
        """A new model or purpose brings its recipe along, for the settings that were not touched; the draft has the old one.

        A preset of one's own that is chosen now brings all its settings.
        """
        typed, start = self.form.plain_values(values), self.chooser.start_of(values)
        draft, before = _drafted(values[self.draft]), self.chooser.drafted(values[self.draft])
        old = self._recipe(draft.get("model.base", FIRST_BASE), before)
        followed = follow(typed, old, self._recipe(typed["model.base"], start))
        return self.form.show_some({**followed, **(start.values if start.own != before.own else {})})

    def set_length(self, values: Values) -> Any:
        """Steps for the chosen number of looks at each picture."""
        looks = LOOKS.get(values[self.length])
        if looks is None:
            return gr.skip()
        with shown_to_the_user():
            typed = self.form.plain_values(values)
            if self.services.access.open_to_others:  # the steps are what is asked for: they need not be right
                self.services.refuse_paths(parse_config(nested({**typed, "training.max_train_steps": 1})))
            size = self.sizes.of(typed)
            if not size.pictures:
                raise no_pictures(typed["dataset.folder"])
            return steps_for(looks, size.samples + size.prior, typed)

    def reset(self, values: Values, event: gr.EventData) -> list[Any]:
        """One setting, or all of them, back to where the form started."""
        start = self._recipe(values[self.form.fields["model.base"]], self.chooser.start_of(values))
        name = getattr(event, "name", "")
        return self.form.show_some({name: start[name]} if name in start else {})

    def check_run(self, values: Values) -> dict[str, str]:
        """Starts a check of the run as the form stands; the script follows it."""
        with shown_to_the_user():
            return {"task": self.desk.start(self.form.read(values))}

    def export_text(self, values: Values) -> dict[str, Any]:
        """The run as a file, and the command that trains it without a page."""
        with shown_to_the_user():
            config = self.form.read(values)
            return {
                "export": {
                    "name": f"{config.name}.toml",
                    "text": dump_config(config),
                    "command": f"python launch.py train {config.name}.toml",
                }
            }

    def export_for_others(self, values: Values) -> dict[str, Any]:
        """The run as files for sd-scripts; where things lie on this machine is told to who sits at it."""
        with shown_to_the_user():
            config = self.form.read(values)
            is_alone = not self.services.access.open_to_others
            return {"files": sd_scripts_files(self.services.workspace, config, show_paths=is_alone)}

    def save_preset(self, values: Values, event: gr.EventData) -> tuple[dict[str, str], Any]:
        """Keeps the settings of the form as a preset of one's own."""
        with shown_to_the_user():
            typed = self.form.plain_values(values)
            self.form.read(values)  # a preset has only settings that can be trained with
            name, reason = str(getattr(event, "name", "")), str(getattr(event, "reason", ""))
            saved = self.chooser.save(name, reason, typed, self._recipe(typed["model.base"]))
            return {"saved": saved}, self.chooser.refresh(values[self.chooser.own])

    def import_files(self, values: Values) -> list[Any]:
        """The form filled from files of ours or of another program; the latter with what became of each setting."""
        with shown_to_the_user():
            paths = uploaded(values[self.load])
            if len(paths) == 1 and _is_ours(paths[0]):
                return self.import_file(str(paths[0]))
            models = self.services.library.models()
            is_open = self.services.access.open_to_others
            around = surroundings(self.services.workspace, models, library_only=is_open)
            typed = self.form.plain_values(values)
            result = read_settings(paths, around, typed)
            whole = {} if result.is_partial else flat(result.config)
            kept = {name: value for name, value in whole.items() if name not in PERSONAL or not result.report.entries}
            shown = self.form.show_some({**kept, **result.values})  # what is trained stays unless the file says it
            return [*shown, {"foreign": import_told(result)} if result.report.entries else gr.skip()]

    def import_file(self, path: str) -> list[Any]:
        """The form filled from a TOML file or the file that rebuilds a run; the latter with what is other here."""
        with shown_to_the_user():
            if Path(path).suffix.lower() == ".json":
                return self._import_rebuild(Path(path))
            return [*self.form.show(load_config(Path(path))), gr.skip()]

    def _import_rebuild(self, path: Path) -> list[Any]:
        recipe = read_recipe(path)
        config = rebuild_config(recipe)
        self.services.refuse_paths(config)
        checked = check_rebuild(self.services.workspace, recipe, config)
        return [*self.form.show(config), {"imported": rebuild_told(checked)}]

    def fill_from_run(self, run_id: str) -> list[Any]:
        """The form with the settings of a run."""
        with shown_to_the_user():
            return self.form.show(RunFolder.find(self.services.workspace, run_id).config())

    def restore(self, draft: Any) -> list[Any]:
        """The form as this browser left it."""
        return self.form.show_some(_drafted(draft))

    def restore_all(self, draft: Any) -> list[Any]:
        """The form, and what it started from, as this browser left them."""
        return [*self.restore(draft), *self.chooser.shown(self.chooser.drafted(draft))]

    def library_choices(self) -> list[Any]:
        """Fresh choices for the dropdowns that name models and datasets."""
        models = [
            (f"{info.name} ({info.family_label})", info.name)
            for info in self.services.library.models()
            if not info.problem
        ]
        datasets = [
            (f"{info.name} ({info.num_pictures} pictures)", info.name)
            for info in list_datasets(self.services.workspace)
        ]
        loras = ["", *(one.name for one in list_loras(self.services.workspace))]
        choices = {"models": models, "datasets": datasets, "loras": loras}
        return [gr.Dropdown(choices=choices[kind]) for kind in LIBRARY_SETTINGS.values()]

    @property
    def library_fields(self) -> list[Component]:
        """The dropdowns that `library_choices` fills."""
        return [self.form.fields[name] for name in LIBRARY_SETTINGS]

    def submit(self, values: Values) -> str:
        """Starts the run, or queues it. Returns its id. Raises SafelightError."""
        config = self.form.read(values)
        self.services.refuse_paths(config)
        if not self.sizes.of(flat(config)).pictures:
            raise no_pictures(config.dataset.folder)
        return self.services.jobs.submit(config)

    def start_label(self) -> Any:
        """What the Start button says: that there is a run already, if there is."""
        jobs = self.services.jobs
        active = (jobs.active_run_id is not None) + len(jobs.waiting)
        return gr.Button(f"Add to queue ({active} running or waiting)" if active else "Start training")


def _is_ours(path: Path) -> bool:
    """Whether a file is JSON that rebuilds a run of ours: only those are large. Raises RefusedConfig for odd JSON."""
    if path.suffix.lower() != ".json":
        return False
    return path.stat().st_size > MAX_CONFIG_BYTES or is_recipe(read_json(path, MAX_CONFIG_BYTES))


def _drafted(draft: Any) -> dict[str, Any]:
    """The values of a draft out of a browser's storage; what no longer fits a setting is left out."""
    values = draft.get("values") if isinstance(draft, dict) else None
    if not isinstance(values, dict):
        return {}
    return {name: value for name, value in values.items() if name in SETTINGS and _fits(name, value)}


def _fits(name: str, value: Any) -> bool:
    """Whether a value from a browser's storage has the type that the setting's component takes."""
    default = SETTINGS[name].default
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, int | float):
        return isinstance(value, int | float)
    if isinstance(default, tuple | list):
        return isinstance(value, list) and all(isinstance(line, str) for line in value)
    return isinstance(value, str)
