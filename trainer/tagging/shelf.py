"""The taggers of a workspace, `taggers/NAME`: which are here, fetching one, and proving its files before each use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from security.errors import SafelightError
from security.net import Network
from security.secrets import Secret
from trainer.models.checks import check_tagger_folder
from trainer.models.huggingface import plan_files
from trainer.models.library import remove_model
from trainer.models.plans import Plan, RefusedModel
from trainer.models.provenance import Provenance, read_provenance, record_provenance, verify_model
from trainer.models.sources import HuggingFaceSource
from trainer.models.text import gigabytes
from trainer.tagging.base import KnownFile, TaggerFiles, TaggerRow, find_tagger, taggers
from trainer.workspace import TAGGERS, Workspace

OWN_FILES = ("model.onnx", "selected_tags.csv")
OWN_SETTINGS = {"labels": "selected_tags.csv", "colours": "bgr"}
"""What a folder of a user's own has to hold to be a tagger, a network and its list of tags, and how it is read: as WD's."""


@dataclass(frozen=True)
class ShelvedTagger:
    """One tagger as the page and the terminal show it. `is_own`: put into the folder by the user, of no catalog."""

    row: TaggerRow
    is_here: bool
    is_own: bool = False


def list_taggers(workspace: Workspace) -> list[ShelvedTagger]:
    """Those of the catalog, in its order, then those that the user put into the folder."""
    folder = workspace.on_shelf(TAGGERS).models_dir
    here = {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    known = [ShelvedTagger(row, row.name in here) for row in taggers().values()]
    own = sorted(name for name in here - set(taggers()) if _is_tagger(workspace, name))
    return known + [ShelvedTagger(_own_row(name), is_here=True, is_own=True) for name in own]


def get_tagger(workspace: Workspace, name: str) -> TaggerRow:
    """A tagger of the catalog, or one of the user's own. Raises SafelightError with near names."""
    if name not in taggers() and _is_tagger(workspace, name):
        return _own_row(name)
    return find_tagger(name)


def is_here(workspace: Workspace, row: TaggerRow) -> bool:
    """Whether a tagger's files are in the workspace."""
    return (workspace.on_shelf(TAGGERS).models_dir / row.name).is_dir()


def plan_tagger(network: Network, token: Secret | None, row: TaggerRow) -> Plan:
    """What fetching a tagger will bring: exactly the commit and the files of the catalog. Asks the hub.

    Raises NeedsLogin, FailedDownload, or RefusedModel where the hub has something else than the catalog.
    """
    hashes = {path: file.sha256 for path, file in row.known.items() if file.sha256}
    plan = plan_files(network, token, HuggingFaceSource(row.source, row.revision or "main"), row.files, hashes)
    if row.revision and plan.revision != row.revision:
        raise RefusedModel(f"Refused: {row.source} answers with the commit {plan.revision}, not {row.revision}.")
    files = []
    for file in plan.files:
        known = row.known.get(file.path, KnownFile())
        for what, ours, theirs in (("SHA-256", known.sha256, file.sha256), ("size in bytes", known.size, file.size)):
            if ours and theirs and ours != theirs:
                raise RefusedModel(
                    f"Refused: the catalog knows {file.path} of {row.title} with the {what} {ours}; the hub has {theirs}. "
                    "The file was exchanged, or this version of Safelight is out of date."
                )
        files.append(replace(file, size=known.size or file.size))
    return replace(
        plan,
        shelf=TAGGERS,
        name=row.name,
        title=row.title,
        licence=plan.licence or row.licence,
        files=tuple(files),
        facts=(row.why, f"{len(files)} files", *(("Pinned by commit and SHA-256",) if row.revision else ())),
    )


def tagger_files(workspace: Workspace, row: TaggerRow) -> TaggerFiles:
    """The files of a tagger that is here, proven to be those that came. Unchanged files are not read again for that.

    A folder that the user put there is checked and recorded the first time. Raises SafelightError: not here, changed, or
    not what the catalog knows.
    """
    shelf = workspace.on_shelf(TAGGERS)
    folder = shelf.models_dir / row.name
    if not folder.is_dir() or folder.is_symlink():
        size = f" ({gigabytes(row.num_bytes)})" if row.num_bytes else ""
        raise SafelightError(
            f"{row.title} is not in the workspace yet{size}. Fetch it on the Dataset tab under 'Tag pictures', or with "
            f"`dataset tag --fetch {row.name}`."
        )
    record = read_provenance(shelf, row.name)
    if record is None:
        check_tagger_folder(folder)
        record = record_provenance(
            shelf, row.name, Provenance("put into the folder by hand", checked="as it was found")
        )
    elif faults := verify_model(shelf, row.name):
        raise SafelightError("\n".join(faults))
    hashes = {path.partition("/")[2]: one.sha256 for path, one in record.files.items()}
    _refuse_unknown(row, hashes)
    return TaggerFiles(folder, hashes)


def remove_tagger(workspace: Workspace, name: str) -> None:
    """Deletes a tagger with its record. Raises SafelightError: not here."""
    remove_model(workspace.on_shelf(TAGGERS), name)


def _refuse_unknown(row: TaggerRow, hashes: Mapping[str, str]) -> None:
    for path, known in row.known.items():
        if known.sha256 and path in hashes and hashes[path] != known.sha256:
            raise SafelightError(
                f"{path} in taggers/{row.name} is not the file of {row.title}: its SHA-256 is {hashes[path][:16]}…, not "
                f"{known.sha256[:16]}…. Delete the folder and fetch it, or give a tagger of your own another name."
            )


def _is_tagger(workspace: Workspace, name: str) -> bool:
    if not name or name.startswith(".") or any(sign in name for sign in "/\\\0:"):
        return False
    folder = workspace.on_shelf(TAGGERS).models_dir / name
    return not folder.is_symlink() and all((folder / file).is_file() for file in OWN_FILES)


def _own_row(name: str) -> TaggerRow:
    """A tagger of the user's own is read as WD taggers are."""
    return TaggerRow(
        name=name,
        title=name,
        kind="tags",
        loader="trainer.tagging.taggers:OnnxTagger",
        source="",
        why="Your own, from the folder taggers of the workspace.",
        files=OWN_FILES,
        settings=OWN_SETTINGS,
    )
