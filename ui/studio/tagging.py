"""The panel "Tag pictures": which taggers are here, fetching one, and tagging as a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.config.files import SettingKind
from trainer.models.jobfiles import Download
from trainer.models.text import gigabytes
from trainer.tagging.base import Device, TaggerRow, TaggingOptions
from trainer.tagging.options import FOR_BOTH, FOR_SENTENCES, OPTIONS, tagging_options, title
from trainer.tagging.prompts import ready_prompts
from trainer.tagging.shelf import get_tagger, is_here, list_taggers
from ui.messages import ShownError
from ui.model_views import download_row
from ui.services import Services
from ui.studio.asked import dataset_of, help_of, names_of
from ui.studio.networks import NetworkDesk
from ui.studio.panels import Answer, Panel

LANE, KIND = "compute", "tag"


class TaggingDesk:
    """Answers the panel's script."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.networks = NetworkDesk(
            services, lambda name: get_tagger(services.workspace, name), KIND, "Pictures are being tagged."
        )

    def functions(self) -> Sequence[Answer]:
        """What the script calls."""
        return [self.tagging_form, self.tagging_state, self.tag_pictures, *self.networks.functions()]

    def tagging_form(self, _argument: Any = None) -> dict[str, Any]:
        """The options, as the form shows them."""
        return {"options": [_option(name) for name in OPTIONS]}

    def tagging_state(self, _argument: Any = None) -> dict[str, Any]:
        """The taggers, and what is being fetched of them."""
        downloads = {one.name: one for one in reversed(self.networks.downloads())}
        rows = [
            _tagger(one.row, here=one.is_here, own=one.is_own, download=downloads.get(one.row.name))
            for one in list_taggers(self.services.workspace)
        ]
        return {"taggers": rows, "fault": self.services.downloads.fault}

    def tag_pictures(self, argument: Any = None) -> dict[str, Any]:
        """Starts to tag the pictures of `names` with the values of `options`."""
        dataset = dataset_of(self.services, argument)
        dataset.refuse_builtin()
        values = argument.get("options")
        if not isinstance(values, Mapping):
            raise ShownError("The page sent no options. Reload the page.")
        options = tagging_options(dict(values))
        names = names_of(argument, dataset)
        rows = [get_tagger(self.services.workspace, name) for name in options.models]
        for row in rows:
            if not is_here(self.services.workspace, row):
                raise ShownError(f"{row.title} is not on this machine yet. Press Download first.")
        self._refuse_busy_gpu(rows, options)
        workspace, tasks = self.services.workspace, self.services.studio.tasks

        def work(control: Any) -> str:
            from trainer.tagging.run import tag_dataset  # numpy, and later onnxruntime or torch: not to draw the page

            self._refuse_busy_gpu(rows, options)  # a run may have begun while this waited for its turn
            return tag_dataset(workspace, dataset, names, options, control)

        heading = f"Tagging with {' and '.join(row.title for row in rows)}"
        return {"task": tasks.start(KIND, heading, dataset.name, work, lane=LANE)}

    def _refuse_busy_gpu(self, rows: Sequence[TaggerRow], options: TaggingOptions) -> None:
        if options.device is Device.CPU or self.services.jobs.active_run_id is None:
            return
        if options.device is Device.CUDA or self._takes_gpu(rows):
            raise ShownError(
                f"The run {self.services.jobs.active_run_id} trains on the GPU, which has no room for both. Wait for it, or "
                "choose the CPU for tagging."
            )

    def _takes_gpu(self, rows: Sequence[TaggerRow]) -> bool:
        """Whether `auto` would take a GPU."""
        if not self.services.machine.facts().gpus:
            return False
        if any(row.kind == "sentence" for row in rows):
            return True
        from trainer.tagging.onnx_session import gpu_is_usable

        return gpu_is_usable()


def _tagger(row: TaggerRow, *, here: bool, own: bool, download: Download | None) -> dict[str, Any]:
    shown = download_row(download) if download is not None and not here else None
    return {
        "name": row.name,
        "title": row.title,
        "kind": row.kind,
        "why": row.why,
        "size": gigabytes(row.num_bytes) if row.num_bytes else "",
        "licence": row.licence,
        "source": row.source,
        "here": here,
        "own": own,
        "takes_prompt": row.takes_prompt,
        "prompts": [list(entry) for entry in ready_prompts(row)],
        "fixed": "tasks" in row.settings,
        "download": shown,
    }


def _option(name: str) -> dict[str, Any]:
    setting = OPTIONS[name]
    is_list = setting.kind is SettingKind.LINES
    kinds = "both" if name in FOR_BOTH else "sentence" if name in FOR_SENTENCES else "tags"
    return {
        "name": name,
        "title": title(name),
        "help": help_of(setting),
        "kind": setting.kind.value,
        "choices": list(setting.choices),
        "minimum": setting.minimum,
        "maximum": setting.maximum,
        "default": list(setting.default) if is_list else setting.default,
        "for": kinds,
    }


TAGGING_PANEL = Panel("tagging", lambda services: TaggingDesk(services).functions())
