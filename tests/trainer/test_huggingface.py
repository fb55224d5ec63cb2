"""What is found out about a repository of Hugging Face before the first byte of a file: by a real server on loopback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from security.errors import FailedDownload, NeedsLogin
from security.secrets import Secret
from tests.hubs.huggingface import COMMIT, HuggingFacePlayer
from tests.hubs.models import diffusers_files, git_sha1, pickle_checkpoint, sdxl_checkpoint, sha256
from tests.hubs.server import Hubs, Reply, json_reply
from trainer.models.huggingface import plan_download
from trainer.models.plans import PENDING, SAFE, Plan, RefusedModel, plan_from, plan_values
from trainer.models.sources import HuggingFaceSource

REPO = "someone/tiny-xl"
BIG, SMALL = sdxl_checkpoint(filler=4096), sdxl_checkpoint(seed=2)


@pytest.fixture
def token() -> Iterator[Secret]:
    return Secret("hf_" + "a" * 34, "test token")


def plan(hubs: Hubs, *, file: str = "", revision: str = "main", token: Secret | None = None) -> Plan:
    return plan_download(hubs.network(), token, HuggingFaceSource(REPO, revision, file))


def test_the_one_checkpoint_is_taken_pinned_to_the_commit(hubs: Hubs) -> None:
    HuggingFacePlayer(hubs, REPO, {"README.md": b"hi", "Tiny XL.safetensors": BIG, "preview.png": b"png"}).publish()
    found = plan(hubs)
    (file,) = found.files
    assert (file.remote, file.path, file.size) == ("Tiny XL.safetensors", "Tiny XL.safetensors", len(BIG))
    assert (file.sha256, file.git_sha1, file.scan) == (sha256(BIG), "", SAFE)
    assert (found.revision, found.layout, found.name) == (COMMIT, "file", "Tiny XL")
    assert found.source == f"{REPO}@{COMMIT}" and found.page == f"https://huggingface.co/{REPO}"
    assert (found.licence, found.licence_link) == ("openrail++", found.page)
    assert not found.warnings and not found.confirm and not found.choices
    assert len(hubs.seen) == 1, "one request tells it all"
    assert plan_from(plan_values(found)) == found


def test_an_asked_file_is_taken_among_many(hubs: Hubs) -> None:
    HuggingFacePlayer(hubs, REPO, {"a.safetensors": BIG, "sub/b.safetensors": SMALL, "LICENSE.md": b"x"}).publish()
    assert plan(hubs, file="sub/b.safetensors").files[0].sha256 == sha256(SMALL)
    assert plan(hubs, file="b.safetensors").files[0].remote == "sub/b.safetensors", "its name alone is enough"
    assert plan(hubs, file="a.safetensors").licence_link.endswith(f"/blob/{COMMIT}/LICENSE.md")
    with pytest.raises(RefusedModel, match=r"no file c\.safetensors.*It has: a\.safetensors"):
        plan(hubs, file="c.safetensors")


def test_several_checkpoints_are_a_question_with_sizes(hubs: Hubs) -> None:
    HuggingFacePlayer(hubs, REPO, {"small.safetensors": SMALL, "big.safetensors": BIG}).publish()
    found = plan(hubs)
    assert found.files == ()
    assert [(one.file, one.size) for one in found.choices] == [
        ("big.safetensors", len(BIG)),
        ("small.safetensors", len(SMALL)),
    ]
    assert "kB" in found.choices[0].label


def folder(**changes: bytes) -> dict[str, bytes]:
    return {**diffusers_files(), **changes}


def test_a_diffusers_folder_brings_what_it_needs_and_no_more(hubs: Hubs) -> None:
    extra = {
        "unet/diffusion_pytorch_model.bin": b"pickle",
        "safety_checker/model.safetensors": SMALL,
        "pipeline.py": b"import os",
        "unet/model.onnx": b"onnx",
        "flax_model.msgpack": b"flax",
        "picture.png": b"png",
        "tiny-xl.safetensors": BIG,
    }
    player = HuggingFacePlayer(hubs, REPO, {**folder(), **extra})
    player.info["config"] = {"diffusers": {"_class_name": "StableDiffusionPipeline"}}
    player.publish()
    found = plan(hubs)
    assert found.layout == "folder" and found.family == "sd15" and found.name == "tiny-xl"
    remote = {file.remote for file in found.files}
    assert remote == set(diffusers_files()) - {"model_card.md"} - {
        path for path in diffusers_files() if path.endswith(".md")
    }
    assert not {path for path in remote if path.endswith((".py", ".bin", ".onnx", ".png", ".msgpack"))}
    for file in found.files:
        assert bool(file.sha256) != bool(file.git_sha1), "large files have a SHA-256, small ones git's"
    assert any("tiny-xl.safetensors" in fact for fact in found.facts), "the single file is mentioned"


def test_half_precision_is_taken_when_every_part_has_it(hubs: Hubs) -> None:
    files = folder()
    weights = [path for path in files if path.endswith(".safetensors")]
    for path in weights:
        files[path.replace(".safetensors", ".fp16.safetensors")] = SMALL
    HuggingFacePlayer(hubs, REPO, files).publish()
    found = plan(hubs)
    chosen = {file.path: file.remote for file in found.files if file.path.endswith(".safetensors")}
    assert set(chosen) == set(weights), "they get the usual names here"
    assert all(".fp16." in remote for remote in chosen.values())
    del files[weights[0].replace(".safetensors", ".fp16.safetensors")]
    HuggingFacePlayer(hubs, REPO, files).publish()
    assert not any(".fp16." in file.remote for file in plan(hubs).files)


def test_weights_in_shards_come_with_their_index(hubs: Hubs) -> None:
    files = folder()
    del files["unet/diffusion_pytorch_model.safetensors"]
    shards = {f"unet/diffusion_pytorch_model-0000{number}-of-00002.safetensors": SMALL for number in (1, 2)}
    index = {"unet/diffusion_pytorch_model.safetensors.index.json": b"{}"}
    HuggingFacePlayer(hubs, REPO, {**files, **shards, **index}).publish()
    assert set(shards) | set(index) <= {file.path for file in plan(hubs).files}


def test_a_folder_of_pickles_is_refused_by_name(hubs: Hubs) -> None:
    files = {path: data for path, data in folder().items() if not path.endswith(".safetensors")}
    HuggingFacePlayer(hubs, REPO, {**files, "unet/diffusion_pytorch_model.bin": b"pickle"}).publish()
    with pytest.raises(RefusedModel, match=r"no complete diffusers.*It has unet/diffusion_pytorch_model\.bin"):
        plan(hubs)


def test_a_pickle_is_only_for_the_converter(hubs: Hubs) -> None:
    HuggingFacePlayer(hubs, REPO, {"old.ckpt": pickle_checkpoint()}).publish()
    found = plan(hubs)
    assert found.needs_convert and found.files[0].path == "old.ckpt"
    HuggingFacePlayer(hubs, REPO, {"old.ckpt": pickle_checkpoint(), "new.safetensors": BIG}).publish()
    assert plan(hubs).files[0].remote == "new.safetensors", "never a pickle where safetensors are"
    HuggingFacePlayer(hubs, REPO, {"a.ckpt": pickle_checkpoint(), "b.pt": pickle_checkpoint()}).publish()
    assert all("can run code" in one.label for one in plan(hubs).choices)


@pytest.mark.parametrize("file", ["pipeline.py", "model.gguf", "model.onnx", "notes.txt", "x.safetensors.exe"])
def test_other_files_are_refused_even_when_asked_for(hubs: Hubs, file: str) -> None:
    HuggingFacePlayer(hubs, REPO, {file: b"data"}).publish()
    with pytest.raises(RefusedModel, match="not model weights"):
        plan(hubs, file=file)
    with pytest.raises(RefusedModel, match="holds no base model"):
        plan(hubs)


def test_what_the_scanners_say_decides(hubs: Hubs) -> None:
    player = HuggingFacePlayer(hubs, REPO, {"a.safetensors": BIG})
    player.info["securityRepoStatus"] = {"scansDone": False, "filesWithIssues": []}
    player.publish()
    found = plan(hubs)
    assert found.files[0].scan == PENDING and "not finished scanning" in found.warnings[0]
    player.info["securityRepoStatus"] = None
    assert "no scan result" in plan(hubs).warnings[0]
    player.info["securityRepoStatus"] = {
        "scansDone": True,
        "filesWithIssues": [{"path": "a.safetensors", "level": "suspicious"}],
    }
    assert "suspicious" in plan(hubs).confirm[0]
    player.issue("a.safetensors", "unsafe")
    with pytest.raises(RefusedModel, match=r"scanners found a\.safetensors .* unsafe"):
        plan(hubs)
    player.info["securityRepoStatus"]["filesWithIssues"] = [{"path": "other.bin", "level": "unsafe"}]
    assert plan(hubs).files[0].scan == SAFE, "what is not fetched does not count"


def test_an_unsafe_part_refuses_the_folder(hubs: Hubs) -> None:
    player = HuggingFacePlayer(hubs, REPO, folder())
    player.issue("vae/diffusion_pytorch_model.safetensors", "unsafe")
    player.publish()
    with pytest.raises(RefusedModel, match="vae/diffusion_pytorch_model"):
        plan(hubs)


def test_a_file_without_a_checksum_has_to_be_agreed_to(hubs: Hubs) -> None:
    player = HuggingFacePlayer(hubs, REPO, {"a.safetensors": BIG})
    player.changes["a.safetensors"] = {"lfs": {"sha256": "nonsense", "size": "7"}, "blobId": None, "size": None}
    player.publish()
    found = plan(hubs)
    assert found.files[0].size is None and "no checksum" in found.confirm[0]


def test_a_gated_model_needs_a_login_and_names_its_page(hubs: Hubs, token: Secret) -> None:
    player = HuggingFacePlayer(hubs, REPO, {"a.safetensors": BIG})
    player.info["gated"] = "manual"
    player.publish()
    with pytest.raises(NeedsLogin, match="accept terms") as refused:
        plan(hubs)
    assert refused.value.link == f"https://huggingface.co/{REPO}"
    assert "gated" in plan(hubs, token=token).warnings[0]


def test_a_private_model_needs_the_right_token(hubs: Hubs, token: Secret) -> None:
    player = HuggingFacePlayer(hubs, REPO, {"a.safetensors": BIG})
    player.info["private"] = True
    player.token = token.reveal()
    player.publish()
    with pytest.raises(NeedsLogin, match=REPO):
        plan(hubs)
    assert "private" in plan(hubs, token=token).warnings[0]


@pytest.mark.parametrize("name", ["../b.safetensors", "a/../b.safetensors", "/b.safetensors", "a\\b.safetensors"])
def test_names_that_no_repository_can_have_are_passed_over(hubs: Hubs, name: str) -> None:
    player = HuggingFacePlayer(hubs, REPO, {"a.safetensors": BIG, "b.safetensors": SMALL})
    player.changes["b.safetensors"] = {"rfilename": name}
    player.publish()
    assert [file.remote for file in plan(hubs).files] == ["a.safetensors"]


def test_missing_disabled_and_senseless_answers(hubs: Hubs) -> None:
    missing = json_reply({"error": "x"}, 404, [("X-Error-Code", "RevisionNotFound")])
    hubs.on("huggingface.co", f"/api/models/{REPO}/revision/main", missing)
    with pytest.raises(FailedDownload, match="version of this model"):
        plan(hubs)
    for answer in ([], {"sha": "main"}, {"siblings": []}):
        hubs.on("huggingface.co", f"/api/models/{REPO}/revision/main", json_reply(answer))
        with pytest.raises(FailedDownload, match=r"no readable answer|no commit"):
            plan(hubs)
    player = HuggingFacePlayer(hubs, REPO, {"a.safetensors": BIG})
    player.info["disabled"] = True
    player.publish()
    with pytest.raises(RefusedModel, match="disabled"):
        plan(hubs)


def test_a_pipeline_that_cannot_be_trained_is_refused_before_the_download(hubs: Hubs) -> None:
    player = HuggingFacePlayer(hubs, REPO, folder())
    player.info["config"] = {"diffusers": {"_class_name": "FluxPipeline"}}
    player.publish()
    with pytest.raises(RefusedModel, match="FluxPipeline"):
        plan(hubs)


def test_a_busy_hub_is_asked_again(hubs: Hubs) -> None:
    player = HuggingFacePlayer(hubs, REPO, {"a.safetensors": BIG}).publish()
    busy = Reply(429, headers=[("Retry-After", "0")])
    hubs.on("huggingface.co", f"/api/models/{REPO}/revision/main", busy, Reply(503), player._info)
    assert plan(hubs).revision == COMMIT


def test_texts_of_others_are_made_harmless(hubs: Hubs) -> None:
    player = HuggingFacePlayer(hubs, REPO, {"a\u202etxt.safetensors": BIG, "b.safetensors": SMALL})
    player.info["cardData"] = {"license": "other", "license_name": "mine\n\x1b[31m" + "x" * 500}
    player.publish()
    found = plan(hubs)
    assert "\n" not in found.licence and "\x1b" not in found.licence and len(found.licence) <= 80
    assert not any("\u202e" in one.label for one in found.choices)


def test_git_checksums_are_right() -> None:
    assert git_sha1(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


ODD = (7, -1, 10**400, 1e308, float("nan"), float("inf"), True, "text", {"a": 1}, [None], [[]], None)


@pytest.mark.parametrize("value", ODD, ids=lambda value: str(value)[:12])
def test_values_of_the_wrong_kind_are_no_values(hubs: Hubs, value: object) -> None:
    player = HuggingFacePlayer(hubs, REPO, {"a.safetensors": BIG})
    player.info |= {"tags": value, "cardData": value, "config": value}
    player.info["securityRepoStatus"] = {"scansDone": True, "filesWithIssues": value}
    player.changes["a.safetensors"] = {"lfs": {"sha256": sha256(BIG), "size": value}}
    player.publish()
    found = plan(hubs)
    assert (found.files[0].sha256, found.files[0].scan) == (sha256(BIG), SAFE)
    assert found.files[0].size in (None, 7) and plan_from(plan_values(found)) == found
    answer = json_reply({**player.info, "siblings": value})
    hubs.on("huggingface.co", f"/api/models/{REPO}/revision/main", lambda _: answer)
    with pytest.raises(RefusedModel, match="It has nothing"):
        plan(hubs)


@pytest.mark.parametrize("level", ["unsafe", "suspicious"])
def test_names_of_others_are_shown_without_what_moves_the_cursor(hubs: Hubs, level: str) -> None:
    odd, program = "\x1b[2J\u202ex.safetensors", "\x1b[2J\u202ex.exe"
    player = HuggingFacePlayer(hubs, REPO, {odd: BIG, program: b"MZ", "b.safetensors": SMALL}).publish()
    player.issue(odd, level)
    shown = []
    for file in (odd, program, "\u202ez", ""):
        try:
            found = plan(hubs, file=file)
            shown += [found.title, found.name, *found.confirm, *found.facts, *(one.label for one in found.choices)]
        except RefusedModel as error:
            shown.append(str(error))
    assert len(shown) > 3 and all(text.isprintable() for text in shown), shown
