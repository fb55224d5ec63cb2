"""The Dataset tab: pictures with their captions, and bringing in new ones from the browser or from a folder here."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.events import Dependency

from security.errors import SafelightError
from security.policy import IMAGE_SUFFIXES
from security.redaction import redact, visible_lines
from security.roots import Root, resolve_user_path
from trainer.dataset.scan import (
    ImportReport,
    collect_sources,
    import_pictures,
    unpack_sources,
)
from ui.messages import ShownError, known_errors
from ui.services import IMPORT_FOLDER, Services
from ui.studio.grid import StudioDesk
from ui.studio.panels import Panel
from ui.studio.tags import TAGS_PANEL
from ui.widgets import drawn_view

ARCHIVE_SUFFIX = ".zip"
STALE_SECONDS = 24 * 3600

PANELS: tuple[Panel, ...] = (TAGS_PANEL,)
"""The panels of the tab in the order of their buttons, which is the order of work: import, tagging, tags, quality, sizes,
masks, prepare, export. A row here and the script's name in ui/widgets.py place one."""


@dataclass(frozen=True)
class DatasetTab:
    """What other tabs connect to: `view` triggers `use` with a dataset's name; `imported` are over when pictures came in;
    `panels` holds the view of each row of PANELS by its id."""

    view: gr.HTML
    upload_button: gr.Button
    folder_button: gr.Button
    imported: tuple[Dependency, Dependency]
    panels: dict[str, gr.HTML]


def dataset_tab(services: Services) -> DatasetTab:
    """Draws the tab."""

    desk = StudioDesk(services)
    with gr.Column(elem_id="studio"):
        view = drawn_view("dataset", functions=desk.functions(), events=["use"])
        panels = {
            panel.id: drawn_view(f"studio_{panel.id}", functions=panel.functions(services), events=panel.events)
            for panel in PANELS
        }
        drawn_view("studio_grid")
    gr.Markdown("## Add pictures")
    name = gr.Textbox(
        label="Dataset name",
        info="A new name makes a new dataset; the name of one that is here adds to it.",
        max_lines=1,
        elem_id="dataset-name",
    )
    with gr.Row():
        with gr.Column(min_width=280):
            files = gr.File(
                label="Pictures with their .txt captions, or a .zip of them",
                file_count="multiple",
                file_types=[*IMAGE_SUFFIXES, ".txt", ARCHIVE_SUFFIX],
                height=180,
                elem_id="dataset-files",
            )
            upload_button = gr.Button("Import these files", elem_id="import-files")
        with gr.Column(min_width=280):
            folder = gr.Textbox(
                label="Folder or .zip on this machine", info=_where(services), max_lines=1, elem_id="dataset-folder"
            )
            folder_button = gr.Button("Import this folder", elem_id="import-folder")

    def bring_uploads(typed_name: str, paths: list[str] | None) -> tuple[dict[str, Any], None]:
        return _report(lambda: _import_uploads(services, typed_name, [Path(path) for path in paths or []])), None

    def bring_folder(typed_name: str, typed_folder: str) -> dict[str, Any]:
        return _report(lambda: _import_folder(services, typed_name, typed_folder or ""))

    from_browser = upload_button.click(
        bring_uploads, [name, files], [view, files], api_visibility="private", show_progress="minimal"
    )
    from_folder = folder_button.click(
        bring_folder, [name, folder], view, api_visibility="private", show_progress="minimal"
    )
    return DatasetTab(view, upload_button, folder_button, (from_browser, from_folder), panels)


def _where(services: Services) -> str:
    if services.access.open_to_others:
        return f"A path inside the folder {IMPORT_FOLDER} of the workspace. Pictures are copied; the folder stays as it is."
    return "Its whole path. Pictures are copied, without their metadata; the folder stays as it is."


def _report(work: Any) -> dict[str, Any]:
    """The outcome of an import for the view: a sentence, and every file that was left out with the reason."""
    try:
        with known_errors():
            report: ImportReport = work()
    except SafelightError as error:
        text = redact(visible_lines(str(error)))
        return {"text": text, "tone": "bad", "skipped": [], "select": "", "stamp": secrets.token_hex(4)}
    pictures = f"{len(report.added)} picture{'' if len(report.added) == 1 else 's'}"
    return {
        "text": f"{pictures} added to {report.name}." + (f" {len(report.skipped)} left out:" if report.skipped else ""),
        "tone": "good" if report.added else "bad",
        "skipped": [[redact(visible_lines(text)) for text in entry] for entry in report.skipped],
        "select": report.name,
        "stamp": secrets.token_hex(4),  # two imports with the same outcome are still two
    }


def _import_folder(services: Services, name: str, typed: str) -> ImportReport:
    source = resolve_user_path(typed, services.import_roots())
    if not source.is_dir():
        with _staging(services) as staging:
            return _import_groups(services, name, [_unpacked(source, staging)])
    sources = collect_sources(source)
    if not sources:
        raise ShownError(f"{source} has no pictures ({', '.join(IMAGE_SUFFIXES)}).")
    return import_pictures(services.workspace, (name or "").strip(), sources, source)


def _import_uploads(services: Services, name: str, uploads: Sequence[Path]) -> ImportReport:
    """Uploads lie in one folder each; a caption finds its picture by lying beside it, so they are gathered first."""
    if not uploads:
        raise ShownError("Choose pictures first, then import them.")
    with _staging(services) as staging:
        archives = [path for path in uploads if path.suffix.lower() == ARCHIVE_SUFFIX]
        others = [path for path in uploads if path not in archives]
        groups = [_unpacked(archive, staging) for archive in archives]
        return _import_groups(services, name, [*groups, _Group(_gather(others, staging / "files"))])


@dataclass(frozen=True)
class _Group:
    """Files to import together. Pictures keep their folders below `base`; `skipped` is known to be left out already."""

    sources: list[Path]
    base: Path | None = None
    skipped: tuple[tuple[str, str], ...] = ()


def _unpacked(archive: Path, staging: Path) -> _Group:
    folder = staging / secrets.token_hex(4)
    sources, skipped = unpack_sources(archive, folder)
    return _Group(sources, folder, skipped)


def _import_groups(services: Services, name: str, groups: Sequence[_Group]) -> ImportReport:
    if not any(group.sources for group in groups):
        raise ShownError(f"There are no pictures in it ({', '.join(IMAGE_SUFFIXES)}).")
    chosen = (name or "").strip()
    reports = [import_pictures(services.workspace, chosen, group.sources, group.base) for group in groups]
    added = tuple(path for report in reports for path in report.added)
    skipped = [entry for group in groups for entry in group.skipped]
    skipped += [entry for report in reports for entry in report.skipped]
    return ImportReport(chosen, added, tuple(skipped))


@contextmanager
def _staging(services: Services) -> Iterator[Path]:
    """A folder for the files of one import, gone afterwards, as are those that a killed program left a day ago."""
    root = Root(services.workspace.cache_dir)
    uploads = root.child("uploads")
    uploads.mkdir(mode=0o700, exist_ok=True)
    for left in [path for path in uploads.iterdir() if time.time() - path.lstat().st_mtime > STALE_SECONDS]:
        root.remove_tree(left)
    staging = root.child("uploads", secrets.token_hex(8))
    staging.mkdir(mode=0o700)
    try:
        yield staging
    finally:
        root.remove_tree(staging)


def _gather(uploads: Sequence[Path], staging: Path) -> list[Path]:
    """Moves files into `staging`; the second file of a name goes to a second folder, beside the second of its pair."""
    gathered = []
    for upload in uploads:
        number = 0
        while (target := staging / str(number) / upload.name).exists():
            number += 1
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(upload, target)
        gathered.append(target)
    return gathered
