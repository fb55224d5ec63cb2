"""Importing on the page: files that the browser sends in pieces, folders and archives of this machine, addresses."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from security.errors import RefusedRequest
from security.policy import Service
from security.roots import resolve_user_path
from security.uploads import Uploads
from security.web import current_login
from trainer.dataset.addresses import plan_address
from trainer.dataset.fetched import AddressOptions, import_address
from trainer.dataset.importing import ARCHIVE_SUFFIX, check_name, import_files, import_paths
from trainer.dataset.incoming import WANTED_SUFFIXES
from trainer.dataset.studio import Studio
from trainer.models.files import WEIGHT_SUFFIX
from trainer.tasks import TaskControl, Work
from ui.messages import ShownError, number_of, text_of
from ui.services import IMPORT_FOLDER, Services
from ui.studio.panels import Answer, Panel
from ui.views import FILES_PREFIX

UPLOAD_PATH = f"/{FILES_PREFIX}/upload"
UPLOAD_SUFFIXES = (*WANTED_SUFFIXES, ARCHIVE_SUFFIX)
"""What a dataset takes. The Tools tab has LoRA files sent by the same way."""

_uploads: WeakKeyDictionary[Studio, Uploads] = WeakKeyDictionary()


def uploads_of(services: Services) -> Uploads:
    """What browsers are sending to this page."""
    studio = services.studio
    if studio not in _uploads:
        _uploads[studio] = Uploads((*UPLOAD_SUFFIXES, WEIGHT_SUFFIX), lambda: _staging(studio))
    return _uploads[studio]


@contextmanager
def _staging(studio: Studio) -> Iterator[Path]:
    """A folder for an upload: in the private one of a served page, which goes with the program or at the next start."""
    private = os.environ.get("GRADIO_TEMP_DIR", "")
    if not private or not Path(private).is_dir():
        with studio.staging() as folder:
            yield folder
        return
    with tempfile.TemporaryDirectory(prefix="upload-", dir=private, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def upload_route(services: Services) -> Route:
    """Takes a piece of a file: upload_id, name, at (its first byte) and size of the whole in the query, the bytes as body.

    Answers {"have": bytes that are here}: the next piece begins there.
    """

    async def take_piece(request: Request) -> Response:
        query = request.query_params
        try:
            at, size = _whole_number(query.get("at", "")), _whole_number(query.get("size", ""))
            upload = uploads_of(services).get(current_login(), query.get("upload_id", ""))
            have = await upload.take(query.get("name", ""), at, size, request.stream())
        except RefusedRequest as error:
            return JSONResponse({"error": str(error)}, error.status)
        except ClientDisconnect:
            return Response(status_code=400)
        return JSONResponse({"have": have})

    return Route(UPLOAD_PATH, take_piece, methods=["POST"])


def import_functions(services: Services) -> Sequence[Answer]:
    """What the panel's script calls."""

    def import_state(_argument: Any = None) -> dict[str, Any]:
        return {"where": _where(services), "suffixes": list(UPLOAD_SUFFIXES)}

    def import_sent(argument: Any = None) -> dict[str, Any]:
        name = _dataset(argument)
        upload = uploads_of(services).take_out(current_login(), text_of(argument, "upload"))
        if upload is None or len(upload.files()) != number_of(argument, "files"):
            if upload is not None:
                upload.close()
            raise ShownError(
                "Not all that was sent is here any more: Safelight was started anew meanwhile. Send it again."
            )

        def work(control: TaskControl) -> str:
            try:
                for missing in upload.unfinished():
                    control.skip(missing, "it did not come whole")
                return import_files(services.studio, name, upload.files(), control)
            finally:
                upload.close()

        return _started(services, name, f"Import into {name}", work)

    def drop_sent(argument: Any = None) -> dict[str, Any]:
        upload = uploads_of(services).take_out(current_login(), text_of(argument, "upload"))
        if upload is not None:
            upload.close()
        return {}

    def import_path(argument: Any = None) -> dict[str, Any]:
        name = _dataset(argument)
        path = resolve_user_path(text_of(argument, "path"), services.import_roots())
        work = functools.partial(import_paths, services.studio, name, [path])
        return _started(services, name, f"Import {path.name} into {name}", work)

    def look_at_address(argument: Any = None) -> dict[str, Any]:
        refuse_offline(services)
        token = services.tokens.get(Service.HUGGING_FACE)
        plan = plan_address(services.network, token, text_of(argument, "address"))
        return {
            "source": plan.source,
            "title": plan.title,
            "name": services.studio.free_name(plan.name),
            "facts": list(plan.facts),
            "warnings": list(plan.warnings),
        }

    def import_from(argument: Any = None) -> dict[str, Any]:
        refuse_offline(services)
        name, address = _dataset(argument), text_of(argument, "address")
        column = argument.get("column")
        options = AddressOptions(number_of(argument, "most"), column if isinstance(column, str) else "")

        def work(control: TaskControl) -> str:
            token = services.tokens.get(Service.HUGGING_FACE)
            return import_address(services.studio, services.network, token, name, address, options, control)

        return _started(services, name, f"Fetch into {name}", work, lane="network")

    return import_state, import_sent, drop_sent, import_path, look_at_address, import_from


def refuse_offline(services: Services) -> None:
    """Raises SafelightError when this program may fetch nothing, with the reason."""
    if services.downloads.fault:
        raise ShownError(services.downloads.fault)


def _dataset(argument: Any) -> str:
    name = text_of(argument, "dataset").strip()
    check_name(name)
    return name


def _started(services: Services, name: str, title: str, work: Work, lane: str = "disk") -> dict[str, Any]:
    return {"task": services.studio.tasks.start("import", title, name, work, lane), "name": name}


def _where(services: Services) -> str:
    if services.access.open_to_others:
        return f"A path inside the folder {IMPORT_FOLDER} of the workspace. Pictures are copied; the folder stays as it is."
    return "Its whole path. Pictures are copied, without their metadata; the folder stays as it is."


def _whole_number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 16):
        raise RefusedRequest("The address needs a size and a position in bytes.", 400)
    return int(text)


IMPORT_PANEL = Panel("import", import_functions)
