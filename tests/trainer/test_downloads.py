"""Downloads from a link to the library over a real server on loopback: whole, stopped, gone on with, left behind."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import pytest
from filelock import FileLock

from security.errors import RefusedName, SafelightError
from tests.hubs.civitai import STORAGE as CIVITAI_STORAGE
from tests.hubs.civitai import CivitaiPlayer
from tests.hubs.huggingface import COMMIT, HuggingFacePlayer
from tests.hubs.huggingface import STORAGE as HUB_STORAGE
from tests.hubs.models import (
    diffusers_files,
    sdxl_checkpoint,
    sha256,
)
from tests.hubs.server import Hubs
from tests.trainer.downloading import DATA, REPO, Make, Tokens, fetched, in_library, slow, until
from trainer.models import catalog, fetching, sources
from trainer.models.catalog import CatalogRow
from trainer.models.downloads import LOCK_NAME, SWEEP_SECONDS
from trainer.models.jobfiles import DownloadState, read_job, write_job
from trainer.models.library import find_model
from trainer.models.plans import RefusedModel
from trainer.models.provenance import read_provenance, verify_model
from trainer.workspace import Workspace

HF_TOKEN, CIVITAI_TOKEN = "hf_" + "t" * 34, "c1" * 16


# ---- to the library ----


def test_a_checkpoint_of_hugging_face_comes_whole_and_is_recorded(make: Make, hubs: Hubs, workspace: Workspace) -> None:
    HuggingFacePlayer(hubs, REPO, {"tiny.safetensors": DATA}).publish()
    done = fetched(make(Tokens(HUGGING_FACE=HF_TOKEN)), f"https://huggingface.co/{REPO}")
    assert (done.state, done.message, done.percent) == (DownloadState.DONE, "", 100)
    path = workspace.models_dir / "tiny.safetensors"
    assert path.read_bytes() == DATA
    assert path.stat().st_mode & 0o777 == 0o600 and path.stat().st_nlink == 1
    recorded = read_provenance(workspace, "tiny")
    assert recorded and recorded.revision == COMMIT and recorded.files["tiny.safetensors"].sha256 == sha256(DATA)
    assert recorded.source == f"Hugging Face: {REPO}@{COMMIT}" and recorded.licence == "openrail++"
    assert recorded.verdicts == {"tiny.safetensors": "safe"} and HUB_STORAGE in recorded.checked
    assert "Signature" not in (workspace.models_dir / "tiny.provenance.json").read_text()
    assert verify_model(workspace, "tiny", reread=True) == [] and find_model(workspace, "tiny").family == "sdxl"
    for seen in hubs.requests_to(HUB_STORAGE):
        assert seen.token is None, "the token stays at the hub"
    assert {seen.token for seen in hubs.requests_to("huggingface.co")} == {f"Bearer {HF_TOKEN}"}


def test_a_diffusers_folder_comes_file_by_file(make: Make, hubs: Hubs, workspace: Workspace) -> None:
    files = {**diffusers_files(), "pipeline.py": b"raise SystemExit", "README.md": b"hello"}
    HuggingFacePlayer(hubs, REPO, files).publish()
    done = fetched(make(), REPO, name="my folder")
    assert done.state is DownloadState.DONE, done.message
    folder = workspace.models_dir / "my folder"
    came = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert came == {path for path in diffusers_files() if not path.endswith(".md")}
    assert all(path.stat().st_mode & 0o111 == 0 for path in folder.rglob("*") if path.is_file())
    assert find_model(workspace, "my folder").kind == "folder"
    assert verify_model(workspace, "my folder", reread=True) == []


def test_a_version_of_civitai_comes_through_its_signed_address(make: Make, hubs: Hubs, workspace: Workspace) -> None:
    player = CivitaiPlayer(hubs)
    player.token = CIVITAI_TOKEN
    player.add("tiny.safetensors", DATA)
    player.publish()
    done = fetched(make(Tokens(CIVITAI=CIVITAI_TOKEN)), "https://civitai.com/models/257749?modelVersionId=290640")
    assert done.state is DownloadState.DONE, done.message
    recorded = read_provenance(workspace, "tiny")
    assert recorded and recorded.source == "Civitai: civitai:290640" and "credit the author" in recorded.licence
    assert recorded.url == "https://civitai.com/models/257749"
    assert all(seen.token is None for seen in hubs.requests_to(CIVITAI_STORAGE))


def test_a_row_of_the_catalog_is_held_against_what_the_hub_says(
    make: Make, hubs: Hubs, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = CatalogRow(
        "tiny-xl", "Tiny XL", "sdxl", "For tests.", REPO, "tiny.safetensors", "", COMMIT, len(DATA), sha256(DATA)
    )
    monkeypatch.setattr(catalog, "catalog", lambda: (row,))
    monkeypatch.setattr(sources, "catalog", lambda: (row,))
    HuggingFacePlayer(hubs, REPO, {"tiny.safetensors": DATA, "other.safetensors": DATA}).publish()
    downloads = make()
    plan = downloads.plan("Tiny XL")
    assert (plan.name, plan.title, plan.files[0].sha256) == ("tiny-xl", "Tiny XL", sha256(DATA))
    assert fetched(downloads, "tiny-xl").state is DownloadState.DONE
    HuggingFacePlayer(hubs, REPO, {"tiny.safetensors": DATA[:-1] + bytes([DATA[-1] ^ 1])}).publish()
    with pytest.raises(RefusedModel, match="the catalog knows Tiny XL with the SHA-256"):
        downloads.plan("tiny-xl")
    with pytest.raises(RefusedModel, match="the catalog knows"):
        downloads.plan(f"https://huggingface.co/{REPO}/resolve/main/tiny.safetensors")
    assert downloads.plan(REPO).files, "the repository itself is no row of the catalog"


# ---- stopping, going on, starting anew ----


def test_stopped_it_goes_on_where_it_was(make: Make, hubs: Hubs, workspace: Workspace) -> None:
    player = HuggingFacePlayer(hubs, REPO, {"tiny.safetensors": DATA})
    player.replies["tiny.safetensors"] = slow()
    player.publish()
    downloads = make()
    job_id = downloads.start(downloads.plan(REPO))
    until(lambda: downloads.get(job_id).done_bytes > 50_000)
    running = downloads.get(job_id)
    assert running.state is DownloadState.DOWNLOADING and running.total_bytes == len(DATA)
    assert running.rate and running.eta_seconds and 0 < running.percent < 100
    assert downloads.current() == downloads.get(job_id) or downloads.current() is not None
    with pytest.raises(SafelightError, match="Stop it first"):
        downloads.remove(job_id)
    downloads.cancel(job_id)
    assert downloads.wait(10)
    stopped = downloads.get(job_id)
    assert stopped.state is DownloadState.STOPPED and stopped.can_resume and stopped.done_bytes >= 50_000
    assert in_library(workspace) == set()
    player.replies.clear()
    player.publish()
    before = len(hubs.requests_to(HUB_STORAGE))
    downloads.resume(job_id)
    assert downloads.wait(20) and downloads.get(job_id).state is DownloadState.DONE
    asked = hubs.requests_to(HUB_STORAGE)[before:]
    assert int(asked[0].headers["range"].removeprefix("bytes=").removesuffix("-")) >= 50_000
    assert (workspace.models_dir / "tiny.safetensors").read_bytes() == DATA
    with pytest.raises(SafelightError, match="in the library already"):
        downloads.resume(job_id)
    downloads.remove(job_id)
    assert downloads.all() == [] and in_library(workspace) == {"tiny.safetensors", "tiny.provenance.json"}


def test_closing_the_program_interrupts_and_the_next_one_goes_on(make: Make, hubs: Hubs, workspace: Workspace) -> None:
    player = HuggingFacePlayer(hubs, REPO, {"tiny.safetensors": DATA})
    player.replies["tiny.safetensors"] = slow()
    player.publish()
    first = make()
    job_id = first.start(first.plan(REPO))
    until(lambda: first.get(job_id).done_bytes > 20_000)
    assert first.shutdown(10)
    with pytest.raises(SafelightError, match="shutting down"):
        first.start(first.plan(REPO), name="other")
    second = make()
    (left,) = [one for one in second.all() if one.id == job_id]
    assert left.state is DownloadState.INTERRUPTED and left.can_resume and left.done_bytes > 0
    player.replies.clear()
    player.publish()
    assert second.start(second.plan(REPO)) == job_id, "the same download is not begun twice"
    assert second.wait(20) and second.get(job_id).state is DownloadState.DONE


def test_two_programs_do_not_fetch_the_same(make: Make, hubs: Hubs) -> None:
    player = HuggingFacePlayer(hubs, REPO, {"tiny.safetensors": DATA})
    player.replies["tiny.safetensors"] = slow()
    player.publish()
    first, second = make(), make()
    job_id = first.start(first.plan(REPO))
    until(lambda: first.get(job_id).done_bytes > 0)
    assert second.get(job_id).state is DownloadState.ELSEWHERE
    second.resume(job_id)
    assert second.current() is None
    with pytest.raises(SafelightError, match="Stop it first"):
        second.remove(job_id)


def test_downloads_wait_for_each_other(make: Make, hubs: Hubs) -> None:
    player = HuggingFacePlayer(hubs, REPO, {"a.safetensors": DATA, "b.safetensors": sdxl_checkpoint(seed=3)})
    player.replies["a.safetensors"] = slow()
    player.publish()
    downloads = make()
    first = downloads.start(downloads.plan(REPO, file="a.safetensors"))
    second = downloads.start(downloads.plan(REPO, file="b.safetensors"))
    assert downloads.get(second).state is DownloadState.WAITING
    with pytest.raises(RefusedName, match="going on already"):
        downloads.start(downloads.plan(REPO, file="a.safetensors"), name="b")
    downloads.cancel(second)
    assert downloads.get(second).state is DownloadState.STOPPED
    downloads.resume(second)
    downloads.cancel(first)
    assert downloads.wait(20)
    assert [one.state for one in downloads.all()] == [DownloadState.DONE, DownloadState.STOPPED]
    with pytest.raises(SafelightError, match="not going on"):
        downloads.cancel(first)
    with pytest.raises(SafelightError, match="no download"):
        downloads.get("nonsense")


def test_a_broken_connection_is_told_and_can_go_on(make: Make, hubs: Hubs) -> None:
    player = HuggingFacePlayer(hubs, REPO, {"tiny.safetensors": DATA})
    player.replies["tiny.safetensors"] = {"stop_after": 0}
    player.publish()
    downloads = make()
    job_id = downloads.start(downloads.plan(REPO))
    assert downloads.wait(20)
    failed = downloads.get(job_id)
    assert failed.state is DownloadState.FAILED and failed.can_resume and "press Continue" in failed.message
    player.replies.clear()
    player.publish()
    downloads.resume(job_id)
    assert downloads.wait(20) and downloads.get(job_id).state is DownloadState.DONE


# ---- what is left behind ----


def test_what_nobody_went_on_with_is_swept_at_the_next_start(
    make: Make, hubs: Hubs, workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    player = HuggingFacePlayer(hubs, REPO, {"a.safetensors": DATA, "b.safetensors": DATA})
    player.replies["a.safetensors"] = player.replies["b.safetensors"] = slow()
    player.publish()
    first = make()
    ids = [first.start(first.plan(REPO, file=f"{letter}.safetensors")) for letter in "ab"]
    for job_id in ids:
        until(lambda one=job_id: first.get(one).done_bytes > 0)
        first.cancel(job_id)
    assert first.wait(10)
    old = time.time() - SWEEP_SECONDS - 60
    for path in (workspace.downloads_dir / ids[0]).rglob("*"):
        os.utime(path, (old, old))
    (workspace.downloads_dir / ids[0] / LOCK_NAME).touch()  # as a page does that shows it
    (workspace.downloads_dir / "stray").mkdir()
    caplog.set_level("INFO", "safelight.downloads")
    assert [one.id for one in make().all()] == [ids[1]]
    assert not (workspace.downloads_dir / ids[0]).exists() and not (workspace.downloads_dir / "stray").exists()
    assert "deleting a: nobody went on with it for" in caplog.text


def test_what_another_program_works_on_is_not_swept(make: Make, hubs: Hubs, workspace: Workspace) -> None:
    HuggingFacePlayer(hubs, REPO, {"a.safetensors": DATA}).publish()
    job_id = fetched(make(), REPO).id
    old = time.time() - SWEEP_SECONDS - 60
    for path in (workspace.downloads_dir / job_id).rglob("*"):
        os.utime(path, (old, old))
    with FileLock(workspace.downloads_dir / job_id / LOCK_NAME):
        assert [one.id for one in make().all()] == [job_id]
    assert make().all() == []


def test_what_ended_before_the_end_was_written_down_is_done(make: Make, hubs: Hubs, workspace: Workspace) -> None:
    HuggingFacePlayer(hubs, REPO, {"a.safetensors": DATA}).publish()
    job_id = fetched(make(), REPO).id
    folder = workspace.downloads_dir / job_id
    write_job(folder, replace(read_job(folder), outcome=None))
    later = make()
    assert later.get(job_id).state is DownloadState.INTERRUPTED
    later.resume(job_id)
    assert later.get(job_id).state is DownloadState.DONE and verify_model(workspace, "a") == []


def test_a_damaged_job_hurts_no_other(make: Make, hubs: Hubs, workspace: Workspace) -> None:
    HuggingFacePlayer(hubs, REPO, {"tiny.safetensors": DATA}).publish()
    for text in ("", "[]", '{"id": 1}', '{"plan": {"service": "Elsewhere"}}'):
        folder = workspace.downloads_dir / f"bad{len(text)}"
        folder.mkdir(parents=True)
        (folder / "job.json").write_text(text)
    assert fetched(make(), REPO).state is DownloadState.DONE


def test_the_hub_decides_nothing_about_paths(make: Make, hubs: Hubs, workspace: Workspace) -> None:
    """Names in the answers are other people's text: none of them leads out of the models folder."""
    files = {
        "../../evil.safetensors": DATA,
        "a/../../b.safetensors": DATA,
        "/etc/c.safetensors": DATA,
        "..\\..\\evil.safetensors": DATA,
    }
    HuggingFacePlayer(hubs, REPO, files).publish()
    downloads = make()
    for path in files:
        with pytest.raises(RefusedModel, match="has no file"):
            downloads.plan(REPO, file=path)
    with pytest.raises(RefusedModel, match="holds no base model"):
        downloads.plan(REPO)
    player = CivitaiPlayer(hubs)
    player.add("..%2F..%2F..%2Fevil.safetensors", DATA)
    player.publish()
    assert fetched(downloads, "civitai:290640").state is DownloadState.DONE
    assert in_library(workspace) == {"evil.safetensors", "evil.provenance.json"}
    assert len(list(workspace.path.parent.rglob("*evil*"))) == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("last", ["promote", "remember_hashes"])
def test_no_model_is_in_the_library_without_its_record(
    make: Make, hubs: Hubs, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    """The program ends right before or right after the model moves in: the next one finds either nothing or all."""
    HuggingFacePlayer(hubs, REPO, {"a.safetensors": DATA}).publish()

    def end(*_: object) -> None:
        raise SystemExit  # nothing of ours catches it, so nothing after it happens, as in a program that is killed

    first = make()
    with monkeypatch.context() as ending:
        ending.setattr(fetching, last, end)
        job = fetched(first, REPO)
    assert job.state is DownloadState.INTERRUPTED
    is_there = "a.safetensors" in in_library(workspace)
    assert is_there == (last == "remember_hashes") and "a.provenance.json" in in_library(workspace)
    assert not is_there or verify_model(workspace, "a") == []
    later = make()
    later.resume(job.id)
    assert later.wait(30) and later.get(job.id).state is DownloadState.DONE
    assert find_model(workspace, "a").path.read_bytes() == DATA
    assert read_provenance(workspace, "a").files["a.safetensors"].sha256 == sha256(DATA)


def test_a_name_too_long_for_the_record_is_seen_before_the_first_byte(
    make: Make, hubs: Hubs, workspace: Workspace
) -> None:
    HuggingFacePlayer(hubs, REPO, {"n" * 250 + ".safetensors": DATA}).publish()
    downloads = make()
    done = fetched(downloads, REPO)
    assert done.state is DownloadState.DONE and read_provenance(workspace, done.name), "a hub's name is cut"
    with pytest.raises(RefusedName, match="145 bytes and 134 are allowed"):
        downloads.start(downloads.plan(REPO), name="n" * 145)
    assert len(in_library(workspace)) == 2
