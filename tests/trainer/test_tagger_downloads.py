"""Taggers come from a hub through the same downloads as base models: pinned, checked, recorded, proven before each use."""

from __future__ import annotations

from dataclasses import replace

import pytest

from security.errors import RefusedName, SafelightError
from tests.hubs.huggingface import COMMIT, HuggingFacePlayer
from tests.hubs.models import sha256
from tests.hubs.server import Hubs
from tests.taggers import colour_tagger, row_of
from tests.trainer.downloading import Make
from trainer.models.downloads import Downloads
from trainer.models.jobfiles import Download, DownloadState
from trainer.models.plans import RefusedModel, plan_from, plan_values
from trainer.models.provenance import read_provenance
from trainer.tagging.base import KnownFile, TaggerRow
from trainer.tagging.shelf import is_here, list_taggers, plan_tagger, remove_tagger, tagger_files
from trainer.workspace import TAGGERS, Workspace

REPO = "someone/colours"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = colour_tagger(tmp_path_factory.mktemp("colours"))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def row(content: dict[str, bytes], **changes: object) -> TaggerRow:
    known = {name: KnownFile(len(data), sha256(data), "https://x") for name, data in content.items()}
    values = {"name": "colours", "source": REPO, "files": tuple(content), "known": known, "revision": COMMIT}
    return replace(row_of(), **{**values, **changes})


def fetched(downloads: Downloads, wanted: TaggerRow) -> Download:
    plan = plan_tagger(downloads.network, None, wanted)
    job = downloads.start(plan, name=wanted.name)
    assert downloads.wait(30)
    return downloads.get(job)


def test_a_tagger_comes_onto_its_own_shelf_and_is_ready(
    make: Make, hubs: Hubs, workspace: Workspace, files: dict[str, bytes]
) -> None:
    HuggingFacePlayer(hubs, REPO, {**files, "README.md": b"text", "model.safetensors": b"not asked for"}).publish()
    downloads, wanted = make(), row(files)
    assert not is_here(workspace, wanted)
    done = fetched(downloads, wanted)
    assert (done.state, done.message) == (DownloadState.DONE, "")
    shelf = workspace.on_shelf(TAGGERS)
    assert {path.name: path.read_bytes() for path in (shelf.models_dir / "colours").iterdir()} == files
    assert list(workspace.models_dir.iterdir()) == []
    record = read_provenance(shelf, "colours")
    assert record is not None and record.revision == COMMIT and "Hugging Face" in record.source
    proven = tagger_files(workspace, wanted)
    assert proven.sha256 == {name: sha256(data) for name, data in files.items()}
    assert next(one for one in list_taggers(workspace) if one.row.name == "colours").is_here
    assert downloads.on_shelf(TAGGERS) == {done.id}
    with pytest.raises(RefusedName, match="already"):
        downloads.start(plan_tagger(downloads.network, None, wanted), name="colours")
    remove_tagger(workspace, "colours")
    assert not is_here(workspace, wanted) and list(shelf.models_dir.iterdir()) == []


def test_what_was_not_looked_up_is_recorded_at_the_first_download(
    make: Make, hubs: Hubs, workspace: Workspace, files: dict[str, bytes]
) -> None:
    HuggingFacePlayer(hubs, REPO, files).publish()
    wanted = row(files, known={}, revision="")
    assert fetched(make(), wanted).state is DownloadState.DONE
    (workspace.on_shelf(TAGGERS).models_dir / "colours" / "selected_tags.csv").write_text("name,category\nx,0\n")
    with pytest.raises(SafelightError, match=r"selected_tags\.csv has changed since it came"):
        tagger_files(workspace, wanted)


@pytest.mark.parametrize(
    ("known", "fault"),
    [
        (KnownFile(0, "0" * 64, "https://x"), "SHA-256 0000"),
        (KnownFile(17, "", "https://x"), "size in bytes 17"),
    ],
)
def test_another_file_than_the_catalog_knows_is_refused_before_the_first_byte(
    known: KnownFile, fault: str, make: Make, hubs: Hubs, files: dict[str, bytes]
) -> None:
    HuggingFacePlayer(hubs, REPO, files).publish()
    with pytest.raises(RefusedModel, match=fault):
        plan_tagger(make().network, None, row(files, known={"model.onnx": known}))


def test_a_file_without_a_checksum_of_the_hub_is_held_to_the_catalogs(
    make: Make, hubs: Hubs, workspace: Workspace, files: dict[str, bytes]
) -> None:
    player = HuggingFacePlayer(hubs, REPO, files)
    player.changes["selected_tags.csv"] = {"blobId": ""}
    player.replies["selected_tags.csv"] = {"body": files["selected_tags.csv"].replace(b"painter", b"paintee")}
    player.publish()
    done = fetched(make(), row(files))
    assert done.state is DownloadState.FAILED and "not the file that was announced" in done.message
    assert list(workspace.on_shelf(TAGGERS).models_dir.iterdir()) == []


def test_a_missing_file_and_an_unsafe_one_are_refused(make: Make, hubs: Hubs, files: dict[str, bytes]) -> None:
    player = HuggingFacePlayer(hubs, REPO, files).publish()
    with pytest.raises(RefusedModel, match=r"has no file other\.onnx"):
        plan_tagger(make().network, None, row(files, files=("other.onnx",)))
    player.issue("model.onnx", "unsafe")
    with pytest.raises(RefusedModel, match="unsafe"):
        plan_tagger(make().network, None, row(files))


def test_a_network_that_leads_to_other_files_never_leaves_the_quarantine(
    make: Make, hubs: Hubs, workspace: Workspace, files: dict[str, bytes]
) -> None:
    import onnx

    model = onnx.load_from_string(files["model.onnx"])
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")
    evil = {**files, "model.onnx": model.SerializeToString()}
    HuggingFacePlayer(hubs, REPO, evil).publish()
    done = fetched(make(), row(evil))
    assert done.state is DownloadState.FAILED and "external data" in done.message
    assert list(workspace.on_shelf(TAGGERS).models_dir.iterdir()) == []


def test_a_jobs_shelf_is_one_that_exists(make: Make, hubs: Hubs, files: dict[str, bytes]) -> None:
    HuggingFacePlayer(hubs, REPO, files).publish()
    values = plan_values(plan_tagger(make().network, None, row(files)))
    assert plan_from(values).shelf == TAGGERS
    assert plan_from({name: value for name, value in values.items() if name != "shelf"}).shelf == "models"
    with pytest.raises(ValueError, match="shelf"):
        plan_from({**values, "shelf": "../runs"})
