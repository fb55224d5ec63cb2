"""Files of runs and datasets over HTTP: sample pictures, thumbnails, LoRA files, logs, settings.

Own routes instead of Gradio's `/file=`: addresses hold no path of this machine, nothing is copied into a cache, and only
what is listed here is served. They are part of the same app, so the login and the checks of `security.web` come first.
"""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from security.errors import SafelightError
from security.policy import IMAGE_SUFFIXES
from security.roots import Root
from trainer.dataset.scan import dataset_names, find_dataset
from trainer.dataset.thumbnails import thumbnail_of
from trainer.lora_files.shelf import file_of
from trainer.runs import RunFolder
from trainer.workspace import Workspace
from ui.services import Services
from ui.studio.exporting import export_routes
from ui.studio.importing import upload_route
from ui.views import FILES_PREFIX

DOWNLOAD_SUFFIXES = frozenset({".safetensors", ".toml", ".json"})
IMAGE_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".bmp": "image/bmp",
}
HEADERS = {"Cache-Control": "private, no-cache", "X-Content-Type-Options": "nosniff"}


def routes(services: Services) -> list[Route]:
    """The routes to hand to the app."""

    def run_file(request: Request) -> Response:
        run_id, path = request.path_params["run"], request.path_params["path"]
        try:
            folder = RunFolder.find(services.workspace, run_id)
            if path == "log.txt":
                text = "\n".join(line for _, line in services.jobs.lines(run_id))
                return PlainTextResponse(text + "\n", headers={**HEADERS, **_as_download(f"{run_id}-log.txt")})
            progress = services.jobs.progress(run_id)
            samples, loras = (saved.path for saved in progress.samples), (saved.path for saved in progress.loras)
            shown = {"config.toml", folder.rebuild_path.name, *samples, *loras}
            if path not in shown:
                return PlainTextResponse("There is no such file.", status_code=404)
            whole = Root(folder.path).child(*path.split("/"))
            return _send(services.workspace, whole, thumbnail="thumb" in request.query_params)
        except (SafelightError, OSError):
            return PlainTextResponse("There is no such file.", status_code=404)

    def dataset_file(request: Request) -> Response:
        try:
            folder = _library_folder(services.workspace, request.path_params["dataset"])
            parts = request.path_params["path"].split("/")
            path = Root(folder).child(*parts)
            if path.suffix.lower() not in IMAGE_SUFFIXES or any(part.startswith(".") for part in parts):
                return PlainTextResponse("There is no such picture.", status_code=404)
            return _send(services.workspace, path, thumbnail="thumb" in request.query_params)
        except (SafelightError, OSError):
            return PlainTextResponse("There is no such picture.", status_code=404)

    def lora_file(request: Request) -> Response:
        try:
            path = file_of(services.workspace, request.path_params["name"])
        except (SafelightError, OSError):
            return PlainTextResponse("There is no such file.", status_code=404)
        return _send(services.workspace, path, thumbnail=False)

    return [
        Route(f"/{FILES_PREFIX}/runs/{{run}}/{{path:path}}", run_file, methods=["GET"]),
        Route(f"/{FILES_PREFIX}/datasets/{{dataset}}/{{path:path}}", dataset_file, methods=["GET"]),
        Route(f"/{FILES_PREFIX}/loras/{{name}}", lora_file, methods=["GET"]),
        *export_routes(services),
        upload_route(services),
    ]


def _library_folder(workspace: Workspace, dataset: str) -> Path:
    """The folder of a dataset of the library, by name only: an address must not reach other folders.

    Asked for every thumbnail, so no dataset's pictures are counted for it.
    """
    if dataset not in dataset_names(workspace):
        raise SafelightError(f"There is no dataset named {dataset!r}.")
    return find_dataset(workspace, dataset)


def _send(workspace: Workspace, path: Path, *, thumbnail: bool) -> Response:
    suffix = path.suffix.lower()
    if suffix in IMAGE_TYPES and path.is_file():
        if thumbnail:
            path = thumbnail_of(workspace, path)
        return FileResponse(path, media_type=IMAGE_TYPES[path.suffix.lower()], headers=HEADERS)
    if suffix in DOWNLOAD_SUFFIXES and path.is_file():
        return FileResponse(path, media_type="application/octet-stream", filename=path.name, headers=HEADERS)
    return PlainTextResponse("There is no such file.", status_code=404)


def _as_download(name: str) -> dict[str, str]:
    ascii_name = name.encode("ascii", "replace").decode().replace('"', "'")
    return {"Content-Disposition": f'attachment; filename="{ascii_name}"'}
