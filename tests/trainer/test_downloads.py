"""Downloads from a link to the library over a real server on loopback: whole, checked, or not at all."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from security import landlock
from security.errors import RefusedName, RefusedUrl, SafelightError
from security.policy import Service
from security.sandbox import probe
from security.secrets import Secret
from tests.hubs.civitai import STORAGE as CIVITAI_STORAGE
from tests.hubs.civitai import CivitaiPlayer
from tests.hubs.huggingface import COMMIT, HuggingFacePlayer
from tests.hubs.huggingface import STORAGE as HUB_STORAGE
from tests.hubs.models import (
    LORA_TENSORS,
    SDXL_TENSORS,
    diffusers_files,
    pickle_checkpoint,
    safetensors_bytes,
    sdxl_checkpoint,
    sha256,
)
from tests.hubs.server import Hubs
from trainer.models import catalog, sources
from trainer.models.catalog import CatalogRow
from trainer.models.downloads import SWEEP_SECONDS, Downloads
from trainer.models.jobfiles import Download, DownloadState
from trainer.models.library import find_model
from trainer.models.plans import RefusedModel
from trainer.models.provenance import read_provenance, verify_model
from trainer.workspace import Workspace

REPO = "someone/tiny-xl"
DATA = sdxl_checkpoint(filler=300_000)
HF_TOKEN, CIVITAI_TOKEN = "hf_" + "t" * 34, "c1" * 16
Make = Callable[..., Downloads]


class Tokens:
    """Where tokens come from, without a keyring."""

    def __init__(self, **texts: str) -> None:
        self.known = {Service[name]: Secret(text, f"{name} token") for name, text in texts.items()}

    def get(self, service: Service) -> Secret | None:
        return self.known.get(service)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "space")


@pytest.fixture
def make(hubs: Hubs, workspace: Workspace) -> Iterator[Make]:
    made: list[Downloads] = []

    def new(tokens: Tokens | None = None, **options: object) -> Downloads:
        made.append(Downloads(workspace, hubs.network(), tokens or Tokens(), **options))
        return made[-1]

    yield new
    assert all(downloads.shutdown(20) for downloads in made)


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.01)


def fetched(downloads: Downloads, text: str, **options: object) -> Download:
    """Plans, starts and waits."""
    file = str(options.pop("file", ""))
    job_id = downloads.start(downloads.plan(text, file=file), **options)
    assert downloads.wait(30)
    return downloads.get(job_id)


def in_library(workspace: Workspace) -> set[str]:
    return {path.name for path in workspace.models_dir.iterdir()}


def slow(data: bytes = DATA) -> dict[str, object]:
    """A body that takes some seconds."""
    return {"piece": 16_384, "pause": 0.05}


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


# ---- refusals ----


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"<html>log in</html>" * 100, "web page"),
        (b"\x80\x04\x95" + bytes(200), "pickle"),
        (pickle_checkpoint(), "zip|PyTorch|pickle"),
        (DATA[:-40], "cut off"),
        (DATA + b"PK\x03\x04", "followed by bytes"),
        (safetensors_bytes(LORA_TENSORS), "a LoRA"),
        (DATA[:-2] + b"\x00\x7c", "no numbers"),
        (safetensors_bytes({"double_blocks.0.img_attn.qkv.weight": (4, 4)}), "FLUX"),
    ],
)
def test_what_the_checks_refuse_leaves_nothing(
    make: Make, hubs: Hubs, workspace: Workspace, data: bytes, said: str
) -> None:
    HuggingFacePlayer(hubs, REPO, {"tiny.safetensors": data}).publish()
    downloads = make()
    refused = fetched(downloads, REPO)
    assert refused.state is DownloadState.FAILED
    assert re.search(said, refused.message), refused.message
    assert in_library(workspace) == set()
    left = [path for path in workspace.downloads_dir.rglob("*") if path.is_file() and path.stat().st_size > 100]
    assert {path.name for path in left} == {"job.json"}, "not even in quarantine"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (safetensors_bytes(LORA_TENSORS, filler=4_000_000), "a LoRA"),
        (b"<html>log in</html>" * 200_000, "web page"),
        (sdxl_checkpoint(filler=4_000_000) + b"more", "followed by bytes"),
    ],
)
def test_the_wrong_model_is_not_fetched_to_its_end(
    make: Make, hubs: Hubs, workspace: Workspace, data: bytes, said: str
) -> None:
    player = HuggingFacePlayer(hubs, REPO, {"tiny.safetensors": data})
    player.replies["tiny.safetensors"] = slow()
    player.publish()
    began = time.monotonic()
    refused = fetched(make(), REPO)
    assert refused.state is DownloadState.FAILED and said in refused.message
    assert time.monotonic() - began < 6, "the whole would take twelve seconds"
    assert in_library(workspace) == set() and not list(workspace.downloads_dir.rglob("*.part"))


def test_a_file_that_is_not_the_announced_one_is_refused(make: Make, hubs: Hubs, workspace: Workspace) -> None:
    player = HuggingFacePlayer(hubs, REPO, {"tiny.safetensors": DATA})
    player.replies["tiny.safetensors"] = {"body": DATA[:-1] + bytes([DATA[-1] ^ 1])}
    player.publish()
    refused = fetched(make(), REPO)
    assert refused.state is DownloadState.FAILED and "sha256" in refused.message
    assert in_library(workspace) == set()


def test_a_file_that_changes_in_quarantine_is_refused(
    make: Make, hubs: Hubs, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.models import fetching

    real = fetching.check_quarantined

    def check_then_change(path: Path) -> object:
        found = real(path)
        target = path / "unet" / "config.json" if path.is_dir() else path
        data = bytearray(target.read_bytes())
        data[-2] ^= 1
        target.write_bytes(data)
        return found

    monkeypatch.setattr(fetching, "check_quarantined", check_then_change)
    for files in ({"tiny.safetensors": DATA}, diffusers_files()):
        HuggingFacePlayer(hubs, REPO, files).publish()
        refused = fetched(make(), REPO)
        assert refused.state is DownloadState.FAILED and "changed in quarantine" in refused.message
    assert in_library(workspace) == set()
    assert not list(workspace.downloads_dir.rglob("*.safetensors")) + list(workspace.downloads_dir.rglob("*.whole"))


def test_a_folder_that_would_run_code_is_refused(make: Make, hubs: Hubs, workspace: Workspace) -> None:
    files = diffusers_files()
    config = json.loads(files["unet/config.json"])
    files["unet/config.json"] = json.dumps({**config, "auto_map": {"AutoModel": "evil.Model"}}).encode()
    HuggingFacePlayer(hubs, REPO, files).publish()
    refused = fetched(make(), REPO)
    assert refused.state is DownloadState.FAILED and "auto_map" in refused.message
    assert in_library(workspace) == set()


def test_a_pickle_needs_the_converter(make: Make, hubs: Hubs, workspace: Workspace) -> None:
    HuggingFacePlayer(hubs, REPO, {"old.ckpt": pickle_checkpoint()}).publish()
    downloads = make()
    with pytest.raises(RefusedModel, match=r"\.ckpt file, which can run code.*convert"):
        downloads.start(downloads.plan(REPO))
    assert downloads.all() == []


def test_a_pickle_comes_through_the_converter(make: Make, hubs: Hubs, workspace: Workspace, tmp_path: Path) -> None:
    import torch

    if not probe().active:
        pytest.skip(f"no sandbox here: {probe().detail}")
    state = {name: torch.ones(shape, dtype=torch.float16) for name, shape in SDXL_TENSORS.items()}
    torch.save({"state_dict": state, "global_step": 7}, tmp_path / "old.ckpt")
    data = (tmp_path / "old.ckpt").read_bytes()
    HuggingFacePlayer(hubs, REPO, {"old.ckpt": data}).publish()
    done = fetched(make(), REPO, convert=True)
    assert done.state is DownloadState.DONE, done.message
    assert in_library(workspace) == {"old.safetensors", "old.provenance.json"}
    assert find_model(workspace, "old").family == "sdxl"
    recorded = read_provenance(workspace, "old")
    assert recorded and f"converted from old.ckpt with the SHA-256 {sha256(data)}" in recorded.checked


def test_a_pickle_that_would_run_code_is_refused_by_the_converter(
    make: Make, hubs: Hubs, workspace: Workspace, tmp_path: Path
) -> None:
    import torch

    class Harmless:
        """Stands for what an attacker puts there: reading it calls a function."""

        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "it ran"),)

    torch.save({"state_dict": {"x": Harmless()}}, tmp_path / "bad.ckpt")
    HuggingFacePlayer(hubs, REPO, {"bad.ckpt": (tmp_path / "bad.ckpt").read_bytes()}).publish()
    refused = fetched(make(), REPO, convert=True)
    assert refused.state is DownloadState.FAILED and "bad.ckpt" in refused.message
    assert not (tmp_path / "it ran").exists() and in_library(workspace) == set()


def test_without_a_sandbox_nothing_is_fetched_to_be_converted(
    make: Make, hubs: Hubs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    HuggingFacePlayer(hubs, REPO, {"old.ckpt": pickle_checkpoint()}).publish()
    downloads = make()
    with pytest.raises(RefusedModel, match="only be converted in a sandbox"):
        downloads.start(downloads.plan(REPO), convert=True)
    assert len(hubs.seen) == 1, "only the list was asked for"


def test_what_is_open_has_to_be_decided_first(make: Make, hubs: Hubs) -> None:
    player = HuggingFacePlayer(hubs, REPO, {"a.safetensors": DATA, "b.safetensors": DATA}).publish()
    downloads = make()
    with pytest.raises(RefusedModel, match=r"Choose one: a\.safetensors, b\.safetensors"):
        downloads.start(downloads.plan(REPO))
    player.changes["a.safetensors"] = {"lfs": None, "blobId": None}
    plan = downloads.plan(REPO, file="a.safetensors")
    with pytest.raises(RefusedModel, match="Agree first"):
        downloads.start(plan)
    assert downloads.wait(1)
    job_id = downloads.start(plan, confirmed=True)
    assert downloads.wait(20) and downloads.get(job_id).state is DownloadState.DONE


def test_the_hash_that_a_user_gives_counts(make: Make, hubs: Hubs) -> None:
    player = CivitaiPlayer(hubs)
    player.add("tiny.safetensors", DATA, hashes={})
    player.publish()
    downloads = make()
    plan = downloads.plan("civitai:290640")
    job_id = downloads.start(plan, sha256="0" * 64)
    assert downloads.wait(20)
    assert downloads.get(job_id).state is DownloadState.FAILED and "sha256" in downloads.get(job_id).message
    job_id = downloads.start(plan, sha256=sha256(DATA).upper())
    assert downloads.wait(20) and downloads.get(job_id).state is DownloadState.DONE, "a given hash stands for agreeing"
    HuggingFacePlayer(hubs, REPO, {"other.safetensors": DATA}).publish()
    with pytest.raises(RefusedModel, match="you expect 000"):
        downloads.start(downloads.plan(REPO), sha256="0" * 64)


def test_names_that_are_taken_or_impossible(make: Make, hubs: Hubs, workspace: Workspace) -> None:
    HuggingFacePlayer(hubs, REPO, {"tiny.safetensors": DATA}).publish()
    (workspace.models_dir / "tiny.safetensors").write_bytes(b"mine")
    downloads = make()
    plan = downloads.plan(REPO)
    for name in ("", "demo", "../x", "con", "a/b"):
        with pytest.raises(RefusedName):
            downloads.start(plan, name=name)
    assert fetched(downloads, REPO, name="fine").state is DownloadState.DONE
    assert (workspace.models_dir / "tiny.safetensors").read_bytes() == b"mine"


def test_a_name_that_is_taken_meanwhile_is_not_overwritten(make: Make, hubs: Hubs, workspace: Workspace) -> None:
    player = HuggingFacePlayer(hubs, REPO, {"tiny.safetensors": DATA})
    player.replies["tiny.safetensors"] = slow()
    player.publish()
    downloads = make()
    job_id = downloads.start(downloads.plan(REPO))
    (workspace.models_dir / "tiny.safetensors").write_bytes(b"mine")
    assert downloads.wait(20)
    assert "by now" in downloads.get(job_id).message
    assert (workspace.models_dir / "tiny.safetensors").read_bytes() == b"mine"


def test_the_users_own_scanner_has_the_last_word(
    make: Make, hubs: Hubs, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    HuggingFacePlayer(hubs, REPO, {"tiny.safetensors": DATA}).publish()
    scanner = tmp_path / "my scanner"
    scanner.write_text('#!/bin/sh\necho "$@" >> "$(dirname "$0")/asked"\necho Eicar found\nexit 1\n')
    scanner.chmod(0o700)
    monkeypatch.setenv("SAFELIGHT_AV_COMMAND", f"'{scanner}' --fast '; touch {tmp_path}/ran'")
    refused = fetched(make(), REPO)
    assert "Virus scan" in refused.message and "Eicar found" in refused.message
    assert in_library(workspace) == set() and not (tmp_path / "ran").exists()
    assert (tmp_path / "asked").read_text().startswith("--fast ; touch")
    scanner.write_text("#!/bin/sh\nexit 0\n")
    assert fetched(make(), REPO).state is DownloadState.DONE
    for command, said in (("no-such-scanner", "could not be done"), ("'open", "not a command")):
        monkeypatch.setenv("SAFELIGHT_AV_COMMAND", command)
        assert said in fetched(make(), REPO, name="again").message


def test_a_full_disk_is_told_before_the_first_byte(make: Make, hubs: Hubs) -> None:
    player = HuggingFacePlayer(hubs, REPO, {"tiny.safetensors": DATA})
    player.changes["tiny.safetensors"] = {"lfs": {"sha256": sha256(DATA), "size": 10**15}}
    player.publish()
    downloads = make()
    with pytest.raises(SafelightError, match=r"needs 1000000 GB and .* should stay free"):
        downloads.start(downloads.plan(REPO))


def test_a_fault_of_the_settings_stops_everything(make: Make, hubs: Hubs) -> None:
    downloads = make(fault="HF_ENDPOINT is set; use --hf-endpoint")
    with pytest.raises(SafelightError, match="--hf-endpoint"):
        downloads.plan(REPO)
    assert hubs.seen == []


def test_addresses_elsewhere_are_refused_without_a_request(make: Make, hubs: Hubs) -> None:
    with pytest.raises(RefusedUrl):
        make().plan("https://evil.example/model.safetensors")
    assert hubs.seen == [] and hubs.lookups == []


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
    (workspace.downloads_dir / "stray").mkdir()
    caplog.set_level("INFO", "safelight.downloads")
    assert [one.id for one in make().all()] == [ids[1]]
    assert not (workspace.downloads_dir / ids[0]).exists() and not (workspace.downloads_dir / "stray").exists()
    assert "deleting a: nobody went on with it for" in caplog.text


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
