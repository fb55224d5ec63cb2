"""What the panels that use networks (taggers, captioners, masks) share: fetching one, watching that, removing it."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

from security.errors import SafelightError
from security.policy import Service
from trainer.models.jobfiles import Download
from trainer.tagging.base import TaggerRow
from trainer.tagging.shelf import plan_tagger, remove_tagger
from trainer.workspace import TAGGERS
from ui.machine import gigabytes
from ui.messages import ShownError, text_of
from ui.services import Services
from ui.studio.panels import Answer
from ui.tabs.models import download_action


class NetworkDesk:
    """Answers a panel's script. `find` gives the row of a name; `kind` is that of the tasks that use networks, and `busy`
    the words for one going on."""

    def __init__(self, services: Services, find: Callable[[str], TaggerRow], kind: str, busy: str) -> None:
        self._services, self._find, self._kind, self._busy = services, find, kind, busy

    def functions(self) -> list[Answer]:
        """What the script calls."""
        return [self.fetch_network, self.network_action, self.remove_network]

    def fetch_network(self, argument: Any = None) -> dict[str, Any]:
        """Asks the hub what a network brings and starts to fetch it; or answers with what has to be agreed to first."""
        downloads = self._services.downloads
        if downloads.fault:
            raise SafelightError(downloads.fault)
        row = self._find(text_of(argument, "name"))
        plan = plan_tagger(self._services.network, self._services.tokens.get(Service.HUGGING_FACE), row)
        if plan.confirm and argument.get("confirmed") is not True:
            return {"confirm": list(plan.confirm)}
        downloads.start(plan, name=row.name, confirmed=True)
        size = f" ({gigabytes(plan.num_bytes)})" if plan.num_bytes else ""
        return {"text": f"{row.title} is being fetched{size}. You can close this page meanwhile."}

    def network_action(self, argument: Any = None) -> dict[str, Any]:
        """Does what a button of a network's download says."""
        wanted = text_of(argument, "id")
        if wanted not in {one.id for one in self.downloads()}:
            raise ShownError("This download is not known any more. Reload the page.")
        return download_action(self._services, wanted, text_of(argument, "action"))

    def remove_network(self, argument: Any = None) -> dict[str, Any]:
        """Deletes a network's files."""
        row = self._find(text_of(argument, "name"))
        if any(task.kind == self._kind and task.state.is_active for task in self._services.studio.tasks.all()):
            raise ShownError(f"{self._busy} Wait for it or cancel it first.")
        remove_tagger(self._services.workspace, row.name)
        return {"text": f"{row.title} is removed from this machine."}

    def downloads(self, names: Container[str] | None = None) -> list[Download]:
        """Downloads of networks, newest first; of these `names` alone if given."""
        shelf = self._services.downloads.on_shelf(TAGGERS)
        every = [one for one in self._services.downloads.all() if one.id in shelf]
        return every if names is None else [one for one in every if one.name in names]
