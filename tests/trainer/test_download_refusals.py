"""What is not fetched, or fetched and not taken in: nothing of it reaches the library."""

from __future__ import annotations

import json
import os
import re
import stat
import time
from pathlib import Path

import pytest

from security import landlock
from security.errors import RefusedName, RefusedUrl, SafelightError
from security.sandbox import probe
from tests.hubs.civitai import CivitaiPlayer
from tests.hubs.huggingface import HuggingFacePlayer
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
from tests.trainer.downloading import DATA, REPO, Make, fetched, in_library, slow
from trainer.models.jobfiles import DownloadState
from trainer.models.library import find_model
from trainer.models.plans import RefusedModel
from trainer.models.provenance import read_provenance
from trainer.workspace import Workspace


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


def test_nothing_in_the_library_can_be_run_as_a_program(
    make: Make, hubs: Hubs, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.models import fetching

    real = fetching.check_quarantined

    def check_and_open(path: Path) -> object:
        for part in [path, *path.rglob("*")]:
            part.chmod(0o777)
        return real(path)

    monkeypatch.setattr(fetching, "check_quarantined", check_and_open)
    HuggingFacePlayer(hubs, REPO, diffusers_files()).publish()
    assert fetched(make(), REPO).state is DownloadState.DONE
    parts = list((workspace.models_dir / "tiny-xl").rglob("*"))
    assert parts
    assert {stat.S_IMODE(path.stat().st_mode) for path in parts} == {0o600, 0o700}
    assert all(path.is_dir() for path in parts if path.stat().st_mode & 0o111)


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
