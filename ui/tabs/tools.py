"""The Tools tab: what is done with finished LoRAs. The files at hand, one form for each tool, and what came of it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import gradio as gr

from security.roots import resolve_user_file
from security.web import current_login
from trainer.config.choices import SavePrecision
from trainer.lora_files.edit import FIELDS, Edit, Removal, changes_in_words, edit_file
from trainer.lora_files.shelf import LoraEntry, bring_in, find_lora, list_loras, new_lora_place, remove_lora
from trainer.models.files import WEIGHT_SUFFIX
from trainer.models.text import gigabytes
from trainer.tasks import TaskControl
from trainer.workspace import Workspace
from ui.messages import ShownError, text_of
from ui.services import IMPORT_FOLDER, Services
from ui.studio.importing import uploads_of
from ui.studio.rows import task_row
from ui.task_views import LORA_KIND
from ui.tool_forms import TOOLS, Asked
from ui.views import FILES_PREFIX
from ui.widgets import drawn_view

if TYPE_CHECKING:
    from trainer.lora_files.operations import Weighted
    from trainer.lora_files.results import Form, Outcome

MAX_RESULTS = 50
SHOWN_LAYERS = 2000

Report = dict[str, Any]
Made = Callable[[TaskControl], tuple[str, Report]]
"""The work of a tool: returns a sentence, and what to show below it."""


class ToolDesk:
    """Answers the tab's script. What the tools found is kept here until so many others came after it."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self._guard = threading.Lock()
        self._reports: OrderedDict[str, Report] = OrderedDict()

    @property
    def workspace(self) -> Workspace:
        """Where everything lies."""
        return self.services.workspace

    def functions(self) -> list[Callable[[Any], dict[str, Any]]]:
        """Everything that the script calls."""
        return [
            *(self.tools_state, self.tool_forms, self.tool_start, self.tool_report, self.tool_task),
            *(self.lora_look, self.lora_sent, self.lora_drop, self.lora_path, self.lora_remove),
        ]

    # -- looking --

    def tools_state(self, _argument: Any = None) -> dict[str, Any]:
        """The files, the models to choose from, and the tasks of this tab."""
        tasks = [task_row(task) for task in self.services.studio.tasks.all() if task.kind == LORA_KIND]
        with self._guard:
            known = {task["id"]: self._reports.get(task["id"], {}) for task in tasks}
        return {
            "loras": [_row(entry) for entry in list_loras(self.workspace)],
            "models": [info.name for info in self.services.library.models() if not info.problem],
            "tasks": [
                {**task, "report": bool(known[task["id"]]), "result": known[task["id"]].get("result")} for task in tasks
            ],
        }

    def tool_forms(self, _argument: Any = None) -> dict[str, Any]:
        """The tools with their fields, and where a path may lead."""
        return {"tools": [tool.plain() for tool in TOOLS.values()], "where": _where(self.services)}

    def lora_look(self, argument: Any = None) -> dict[str, Any]:
        """What is in a file, and the texts that it carries, to be edited; `name`: a free one for what is made of it."""
        from trainer.lora_files.verify import look_at

        entry = find_lora(self.workspace, text_of(argument, "name"))
        facts = look_at(entry.path, entry.name)
        metadata = facts.file.metadata if facts.file is not None else {}
        return {
            **_facts(facts),
            "texts": {name: metadata.get(key, "") for name, key in FIELDS.items()},
            "metadata": dict(sorted(metadata.items())),
        }

    def tool_report(self, argument: Any = None) -> dict[str, Any]:
        """What a task has found, layer by layer."""
        with self._guard:
            report = self._reports.get(text_of(argument, "id"))
        if report is None:
            raise ShownError("The report of this is not kept any more.")
        return report

    # -- doing --

    def tool_start(self, argument: Any = None) -> dict[str, Any]:
        """Starts a tool with what its form says; the answer names the task."""
        tool = TOOLS.get(text_of(argument, "tool"))
        if tool is None:
            raise ShownError("The page asked for a tool that there is not. Reload the page.")
        title, made = _STARTS[tool.id](self, Asked(tool, argument.get("values")))
        ids: list[str] = []
        named = threading.Event()

        def work(control: TaskControl) -> str:
            sentence, report = made(control)
            named.wait()  # a quick one may be done before it has its id
            self._keep(ids[0], report)
            self.services.library.forget()
            return sentence

        ids.append(self.services.studio.tasks.start(LORA_KIND, title, "", work, "compute"))
        named.set()
        return {"task": ids[0]}

    def tool_task(self, argument: Any = None) -> dict[str, Any]:
        """Cancels a task of this tab, or puts its report away; `dismiss_all` does so with all that are over."""
        tasks = self.services.studio.tasks
        if text_of(argument, "action") == "dismiss_all":
            for task in tasks.all():
                if task.kind == LORA_KIND and not task.state.is_active:
                    tasks.dismiss(task.id)
            return {}
        task_id = text_of(argument, "id")
        actions: dict[str, Callable[[str], None]] = {"cancel": tasks.cancel, "dismiss": tasks.dismiss}
        action = text_of(argument, "action")
        if action not in actions or tasks.get(task_id).kind != LORA_KIND:
            raise ShownError("The page asked for what can't be done with this. Reload the page.")
        actions[action](task_id)
        return {}

    def lora_sent(self, argument: Any = None) -> dict[str, Any]:
        """Takes files that the browser has sent into workspace/loras."""
        upload = uploads_of(self.services).take_out(current_login(), text_of(argument, "upload"))
        if upload is None:
            raise ShownError("What was sent is not here any more: Safelight was started anew meanwhile. Send it again.")
        try:
            files = [path for name, path in upload.files() if name.lower().endswith(WEIGHT_SUFFIX)]
            if not files or upload.unfinished():
                raise ShownError("The file did not come whole. Send it again.")
            names = [bring_in(self.workspace, path).name for path in files]
        finally:
            upload.close()
        return {"text": f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} here.", "names": names}

    def lora_drop(self, argument: Any = None) -> dict[str, Any]:
        """Deletes what has come of files whose sending was given up."""
        upload = uploads_of(self.services).take_out(current_login(), text_of(argument, "upload"))
        if upload is not None:
            upload.close()
        return {}

    def lora_path(self, argument: Any = None) -> dict[str, Any]:
        """Copies a file of this machine into workspace/loras."""
        path = resolve_user_file(text_of(argument, "path"), self.services.import_roots())
        entry = bring_in(self.workspace, path)
        return {"text": f"{entry.name} is here.", "names": [entry.name]}

    def lora_remove(self, argument: Any = None) -> dict[str, Any]:
        """Deletes a file of workspace/loras."""
        name = text_of(argument, "name")
        remove_lora(self.workspace, name)
        return {"text": f"{name} is deleted."}

    # -- what the tools share --

    def known_model(self, name: str) -> str:
        """The name of a model of the library, or an empty one; paths are not followed. Raises ShownError for others."""
        if name and name not in {info.name for info in self.services.library.models()}:
            raise ShownError(f"There is no model {name[:100]!r} in the library. Fetch or import it on the Models tab.")
        return name

    def model(self, name: str) -> Path:
        """Where a model of the library lies, checked, which may take a while. Raises SafelightError."""
        from trainer.models.library import find_model

        return find_model(self.workspace, self.known_model(name)).path

    def optional_model(self, name: str) -> Path | None:
        """The same, None for none."""
        return self.model(name) if name else None

    def weighted(self, name: str, weight: float = 1.0) -> Weighted:
        """A LoRA by its name. Raises SafelightError."""
        from trainer.lora_files.operations import Weighted

        entry = find_lora(self.workspace, name)
        return Weighted(entry.path, entry.name, weight)

    def _keep(self, task_id: str, report: Report) -> None:
        with self._guard:
            self._reports[task_id] = report
            while len(self._reports) > MAX_RESULTS:
                self._reports.popitem(last=False)


def tools_tab(services: Services) -> gr.HTML:
    """Draws the tab."""
    return drawn_view("tools", functions=ToolDesk(services).functions())


def _row(entry: LoraEntry) -> dict[str, Any]:
    folder = f"runs/{quote(entry.run)}" if entry.run else "loras"
    return {
        "name": entry.name,
        "run": entry.run,
        "size": gigabytes(entry.num_bytes),
        "url": f"{FILES_PREFIX}/{folder}/{quote(entry.path.name)}",
    }


def _where(services: Services) -> str:
    if services.access.open_to_others:
        return f"A path inside the folder {IMPORT_FOLDER} of the workspace. The file is checked and copied."
    return "Its whole path. The file is checked and copied; nothing in it is run."


def _facts(facts: Any) -> Report:
    from trainer.lora_files.programs import PROGRAMS

    return {
        "ok": facts.ok,
        "facts": [[name, str(value)] for name, value in facts.summary().items()],
        "faults": list(facts.faults),
        "warnings": list(facts.warnings),
        "notes": list(facts.notes),
        "programs": [[PROGRAMS[name].label, why] for name, why in facts.programs.items()],
        "head": ["Layer", "Kind", "Rank", "Alpha", "Norm", "Of the weight"],
        "layers": [
            [row["layer"], row["kind"], row["rank"], row["alpha"], row["norm"], _percent(row["relative"])]
            for row in facts.rows()[:SHOWN_LAYERS]
        ],
    }


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.2%}"


def _made(outcome: Outcome, result: dict[str, str] | None = None) -> tuple[str, Report]:
    """The sentence and the report of a file that was made. `result`: what to offer of it."""
    path = outcome.path
    own = {"name": path.stem, "url": f"{FILES_PREFIX}/loras/{quote(path.name)}"} if result is None else result
    return outcome.sentence, {
        "result": own,
        "loads": outcome.loads,
        "notes": list(outcome.notes),
        "head": ["Layer", "Rank before", "Rank now", "Energy kept"],
        "layers": [
            [row["layer"], row["before"], row["after"], f"{row['kept']:.2%}"] for row in outcome.rows()[:SHOWN_LAYERS]
        ],
    }


# ---- the tools: each reads its form at once, so that mistakes are told before anything waits, and returns its work -----


def _start_verify(desk: ToolDesk, asked: Asked) -> tuple[str, Made]:
    entry, base = find_lora(desk.workspace, asked.text("lora")), desk.known_model(asked.text("base"))

    def made(control: TaskControl) -> tuple[str, Report]:
        from trainer.lora_files.verify import look_at

        facts = look_at(entry.path, entry.name, base=desk.optional_model(base), control=control)
        verdict = "is in order" if facts.ok else f"has faults: {'; '.join(facts.faults)}"
        more = f" {len(facts.warnings)} warning{'s' if len(facts.warnings) > 1 else ''}." if facts.warnings else ""
        return f"{entry.name} {verdict.rstrip('.')}.{more}", _facts(facts)

    return f"Verify {entry.name}", made


def _start_edit(desk: ToolDesk, asked: Asked) -> tuple[str, Made]:
    entry = find_lora(desk.workspace, asked.text("lora"))
    texts = {name: asked.text(name) for name in FIELDS if asked.given(name)}
    group = asked.choice("remove")
    patterns = [part.strip() for part in asked.text("entries").split(",") if part.strip()]
    edit = Edit(texts, [Removal(group)] if group else [], patterns)
    in_place = asked.tick("in_place")
    if in_place and entry.run:
        raise ShownError(
            f"{entry.name} belongs to a run, which knows its file by its hash. Write the result as a new file."
        )
    target = entry.path if in_place else new_lora_place(desk.workspace, asked.text("name"))

    def made(control: TaskControl) -> tuple[str, Report]:
        def progress(done: int, total: int) -> None:
            control.raise_if_cancelled()
            control.progress(done, total, "Writing")

        _, told = edit_file(entry.path, target, edit, replace=in_place, progress=progress)
        result = {"name": target.stem, "url": f"{FILES_PREFIX}/loras/{quote(target.name)}"}
        return f"{target.stem}: {changes_in_words(told)}.", {"result": result, "notes": [], "head": [], "layers": []}

    return f"Edit {entry.name}", made


def _start_resize(desk: ToolDesk, asked: Asked) -> tuple[str, Made]:
    from trainer.lora_files.changes import ranks_of
    from trainer.lora_files.operations import resize_lora

    source, form, target = desk.weighted(asked.text("lora")), _form(asked), _target(desk, asked)
    ranks, base = (
        ranks_of(asked.rank("rank") or 0, asked.rank("conv_rank"), **asked.keep()),
        desk.known_model(asked.text("base")),
    )

    def made(control: TaskControl) -> tuple[str, Report]:
        return _made(resize_lora(source, target, ranks, form, base=desk.optional_model(base), control=control))

    return f"Resize {source.name}", made


def _start_merge(desk: ToolDesk, asked: Asked) -> tuple[str, Made]:
    from trainer.lora_files.changes import ranks_of
    from trainer.lora_files.operations import merge_loras

    sources = [desk.weighted(name, weight) for name, weight in asked.weighted()]
    if len(sources) < 2:
        raise ShownError("LoRAs and their weights: choose two or more.")
    rank, conv_rank, keep = asked.rank("rank"), asked.rank("conv_rank"), asked.keep()
    if rank is None and (conv_rank is not None or keep):
        raise ShownError(
            "Rank: type one, or leave the rank of convolutions and how much to keep alone for an exact sum."
        )
    ranks = ranks_of(rank, conv_rank, **keep) if rank is not None else None
    form, target, base = _form(asked), _target(desk, asked), desk.known_model(asked.text("base"))

    def made(control: TaskControl) -> tuple[str, Report]:
        return _made(merge_loras(sources, target, ranks, form, base=desk.optional_model(base), control=control))

    return f"Merge {' and '.join(source.name for source in sources[:3])}", made


def _start_bake(desk: ToolDesk, asked: Asked) -> tuple[str, Made]:
    from trainer.lora_files.baked import bake_into_library, check_model_name

    base = desk.known_model(asked.text("base"))
    sources = [desk.weighted(name, weight) for name, weight in asked.weighted()]
    if not sources:
        raise ShownError("LoRAs and their weights: choose one or more.")
    name = check_model_name(desk.workspace, asked.text("name"))

    def made(control: TaskControl) -> tuple[str, Report]:
        return _made(bake_into_library(desk.workspace, base, sources, name, control=control), {"name": name, "url": ""})

    return f"Bake {' and '.join(source.name for source in sources[:3])} into {base}", made


def _start_extract(desk: ToolDesk, asked: Asked) -> tuple[str, Made]:
    from trainer.lora_files.changes import ranks_of
    from trainer.lora_files.operations import Models, extract_lora
    from trainer.lora_files.results import Form

    tuned, base = desk.known_model(asked.text("tuned")), desk.known_model(asked.text("base"))
    ranks = ranks_of(asked.rank("rank") or 0, asked.rank("conv_rank"), **asked.keep())
    target, precision, text_encoders = _target(desk, asked), asked.choice("precision"), asked.tick("text_encoders")

    def made(control: TaskControl) -> tuple[str, Report]:
        models = Models(desk.model(tuned), desk.model(base), text_encoders)
        form = Form(precision=SavePrecision(precision) if precision else None)
        return _made(extract_lora(models, target, ranks, form, control=control))

    return f"Extract {target.stem}", made


def _start_convert(desk: ToolDesk, asked: Asked) -> tuple[str, Made]:
    from trainer.lora_files.changes import ranks_of
    from trainer.lora_files.operations import convert_lora

    source, form, target = desk.weighted(asked.text("lora")), _form(asked), _target(desk, asked)
    rank, base = asked.rank("as_lora"), desk.known_model(asked.text("base"))
    as_lora = ranks_of(rank, rank) if rank is not None else None

    def made(control: TaskControl) -> tuple[str, Report]:
        found = desk.optional_model(base)
        return _made(convert_lora(source, target, form, as_lora=as_lora, base=found, control=control))

    return f"Convert {source.name}", made


_STARTS: dict[str, Callable[[ToolDesk, Asked], tuple[str, Made]]] = {
    "verify": _start_verify,
    "edit": _start_edit,
    "resize": _start_resize,
    "merge": _start_merge,
    "bake": _start_bake,
    "extract": _start_extract,
    "convert": _start_convert,
}
assert _STARTS.keys() == TOOLS.keys()


def _target(desk: ToolDesk, asked: Asked) -> Path:
    return new_lora_place(desk.workspace, asked.text("name"))


def _form(asked: Asked) -> Form:
    from trainer.lora_files.keys import FileFormat
    from trainer.lora_files.results import Form

    file_format, precision = asked.choice("format"), asked.choice("precision")
    return Form(FileFormat(file_format) if file_format else None, SavePrecision(precision) if precision else None)
