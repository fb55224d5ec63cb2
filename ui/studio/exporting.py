"""The panel "Export": a dataset as a zip file to download, or as a new folder or zip on this machine."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from security.errors import SafelightError
from security.names import sanitized_name
from security.roots import Root
from trainer.dataset.export import ZIP_SUFFIX, Layout, export_to, new_place
from trainer.tasks import TaskControl
from trainer.workspace import Workspace
from ui.machine import gigabytes
from ui.messages import ShownError, text_of
from ui.services import Services
from ui.studio.asked import dataset_of, names_of
from ui.studio.panels import Answer, Panel
from ui.views import FILES_PREFIX

FOLDER = "exports"
KEPT_SECONDS = 24 * 3600
"""How long a file is offered. It takes as much room as the dataset, and can be made again."""
_KEY = re.compile(r"[0-9a-f]{32}")
LAYOUTS = {
    Layout.FOLDERS: "the folders as they are",
    Layout.KOHYA: "folders of kohya's scripts: 10_trigger name, with the trigger word in every caption",
}


def _functions(services: Services) -> Sequence[Answer]:
    def export_form(argument: Any = None) -> dict[str, Any]:
        """What can be chosen, and the files that are ready."""
        dataset = dataset_of(services, argument)
        return {
            "layouts": [[layout.value, words] for layout, words in LAYOUTS.items()],
            "local": not services.access.open_to_others,
            "files": _ready(services.workspace, dataset.name),
        }

    def export_start(argument: Any = None) -> dict[str, Any]:
        """Starts an export; the file is listed by `export_form` when it is done."""
        dataset = dataset_of(services, argument)
        asked = text_of(argument, "layout")
        if asked not in list(Layout):
            raise ShownError("The page sent no layout. Reload the page.")
        names = names_of(argument, dataset) if argument.get("names") is not None else None
        typed = argument.get("place", "")
        if isinstance(typed, str) and typed.strip():
            if services.access.open_to_others:
                raise ShownError("While the page is open to others, nothing is written elsewhere on this machine.")
            place = new_place(typed, None)
        else:
            place = _new_file(services.workspace, dataset.name)

        def work(control: TaskControl) -> str:
            return export_to(dataset, place, Layout(asked), control, names).sentence

        title = f"Exporting {dataset.name}"
        return {"task": services.studio.tasks.start("export", title, dataset.name, work)}

    def export_remove(argument: Any = None) -> dict[str, Any]:
        """Deletes a file that is ready, to make room."""
        folder = _exports(services.workspace)
        key = text_of(argument, "key")
        if not _KEY.fullmatch(key) or not (folder.path / key).is_dir():
            raise ShownError("This file is gone already.")
        folder.remove_tree(folder.child(key))
        return {"text": "The file is deleted."}

    return [export_form, export_start, export_remove]


def _exports(workspace: Workspace) -> Root:
    folder = Root(workspace.cache_dir).child(FOLDER)
    folder.mkdir(mode=0o700, exist_ok=True)
    return Root(folder)


def _new_file(workspace: Workspace, dataset: str) -> Path:
    """Where the next file goes: behind a name that nobody guesses. Old ones are deleted first."""
    exports = _exports(workspace)
    for old in [path for path in exports.path.iterdir() if time.time() - path.lstat().st_mtime > KEPT_SECONDS]:
        exports.remove_tree(old)
    folder = exports.child(secrets.token_hex(16))
    folder.mkdir(mode=0o700)
    return folder / f"{sanitized_name(dataset, 'dataset')}{ZIP_SUFFIX}"


def _ready(workspace: Workspace, dataset: str) -> list[dict[str, Any]]:
    """The files of a dataset that can be downloaded, newest first."""
    name = f"{sanitized_name(dataset, 'dataset')}{ZIP_SUFFIX}"
    found = [path for path in _exports(workspace).path.glob(f"*/*{ZIP_SUFFIX}") if path.name == name and path.is_file()]
    found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return [
        {
            "key": path.parent.name,
            "name": path.name,
            "url": f"{FILES_PREFIX}/{FOLDER}/{path.parent.name}/{quote(path.name)}",
            "size": gigabytes(path.stat().st_size),
            "time": path.stat().st_mtime,
        }
        for path in found
    ]


def export_routes(services: Services) -> list[Route]:
    """The route that finished files are downloaded by."""

    def export_file(request: Request) -> Response:
        key, name = request.path_params["key"], request.path_params["name"]
        try:
            path = _exports(services.workspace).child(key, name)
        except (SafelightError, OSError):
            return PlainTextResponse("There is no such file.", status_code=404)
        if not _KEY.fullmatch(key) or path.suffix != ZIP_SUFFIX or not path.is_file():
            return PlainTextResponse("There is no such file. Files are kept for a day: export again.", status_code=404)
        headers = {"Cache-Control": "private, no-store", "X-Content-Type-Options": "nosniff"}
        return FileResponse(path, media_type="application/zip", filename=path.name, headers=headers)

    return [Route(f"/{FILES_PREFIX}/{FOLDER}/{{key}}/{{name}}", export_file, methods=["GET"])]


EXPORT_PANEL = Panel("export", _functions)
