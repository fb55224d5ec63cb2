"""What is found out about a version on Civitai before the first byte of a file: by a real server on loopback."""

from __future__ import annotations

import pytest

from security.errors import FailedDownload, NeedsLogin
from security.secrets import Secret
from tests.hubs.civitai import CivitaiPlayer
from tests.hubs.models import pickle_checkpoint, sdxl_checkpoint, sha256
from tests.hubs.server import Hubs, json_reply
from trainer.models.civitai import plan_download
from trainer.models.plans import PENDING, SAFE, UNKNOWN, Plan, RefusedModel, plan_from, plan_values
from trainer.models.sources import CivitaiSource

DATA, OTHER = sdxl_checkpoint(filler=1000), sdxl_checkpoint(seed=2)


@pytest.fixture
def player(hubs: Hubs) -> CivitaiPlayer:
    return CivitaiPlayer(hubs)


def plan(
    player: CivitaiPlayer, source: CivitaiSource | None = None, file: str = "", token: Secret | None = None
) -> Plan:
    player.publish()
    return plan_download(player.hubs.network(), token, source or CivitaiSource(None, player.version_id), file)


def test_a_version_is_its_primary_safetensors_file(player: CivitaiPlayer) -> None:
    player.add("old.ckpt", pickle_checkpoint(), primary=True)
    player.add("tiny%20Pony_v6.safetensors", DATA, primary=False)
    player.add("preview.png", b"png", primary=False, type="Training Data")
    found = plan(player)
    (file,) = found.files
    assert (file.path, file.remote, file.size) == ("tiny Pony_v6.safetensors", "1001", len(DATA))
    assert (file.sha256, file.scan, found.family) == (sha256(DATA), SAFE, "sdxl")
    assert (found.title, found.name, found.source) == ("Tiny Pony v6", "tiny Pony_v6", "civitai:290640")
    assert found.page == "https://civitai.com/models/257749?modelVersionId=290640"
    assert "commercial use: Image, RentCivit" in found.licence and "credit the author" in found.licence
    assert any("old.ckpt" in fact for fact in found.facts)
    assert not found.confirm and not found.warnings and not found.needs_convert
    assert plan_from(plan_values(found)) == found


def test_a_model_without_a_version_is_its_newest(player: CivitaiPlayer) -> None:
    player.add("a.safetensors", DATA)
    player.model["modelVersions"].insert(0, {"id": 999, "status": "Draft"})
    found = plan(player, CivitaiSource(player.model_id))
    assert found.version_id == player.version_id
    player.model["modelVersions"] = []
    with pytest.raises(FailedDownload, match="no published version"):
        plan(player, CivitaiSource(player.model_id))


def test_the_primary_of_several_and_an_asked_one(player: CivitaiPlayer) -> None:
    player.add("full.safetensors", OTHER, primary=False)
    player.add("pruned.safetensors", DATA)
    assert plan(player).files[0].remote == "1001"
    assert plan(player, file="full.safetensors").files[0].remote == "1000"
    assert plan(player, CivitaiSource(None, player.version_id, 1000)).files[0].sha256 == sha256(OTHER)
    with pytest.raises(RefusedModel, match=r"no file x.*pruned\.safetensors \(1001\)"):
        plan(player, file="x")


def test_the_version_must_belong_to_the_model(player: CivitaiPlayer) -> None:
    player.add("a.safetensors", DATA)
    with pytest.raises(RefusedModel, match="belongs to model 257749, not 5"):
        plan(player, CivitaiSource(5, player.version_id))


@pytest.mark.parametrize(
    ("changes", "scan"),
    [
        ({"pickleScanResult": "Pending"}, PENDING),
        ({"virusScanResult": None}, UNKNOWN),
        ({"virusScanResult": "Something new"}, UNKNOWN),
    ],
)
def test_unfinished_scans_are_told(player: CivitaiPlayer, changes: dict[str, object], scan: str) -> None:
    player.add("a.safetensors", DATA, **changes)
    found = plan(player)
    assert found.files[0].scan == scan and found.verdicts == {"a.safetensors": scan}
    assert "Civitai" in found.warnings[0]


@pytest.mark.parametrize("key", ["pickleScanResult", "virusScanResult"])
@pytest.mark.parametrize("verdict", ["Danger", "Error"])
def test_failed_scans_are_refused(player: CivitaiPlayer, key: str, verdict: str) -> None:
    player.add("a.safetensors", DATA, **{key: verdict})
    with pytest.raises(RefusedModel, match=r"scan of a\.safetensors failed"):
        plan(player)


@pytest.mark.parametrize("hashes", [{}, None, {"AutoV2": "67AB2FD8EC"}, {"SHA256": "67AB2FD8EC"}])
def test_without_a_sha256_somebody_has_to_agree(player: CivitaiPlayer, hashes: object) -> None:
    player.add("a.safetensors", DATA, hashes=hashes)
    found = plan(player)
    assert found.files[0].sha256 == "" and "no SHA-256" in found.confirm[0]


def test_an_inexact_size_is_no_size(player: CivitaiPlayer) -> None:
    player.add("a.safetensors", DATA, sizeKB=12345.67)
    found = plan(player)
    assert found.files[0].size is None
    assert "Size: about 12.6 MB" in found.facts


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"name": "x", "type": "LORA"}}, "of the type LORA"),
        ({"baseModel": "Flux.1 D"}, "made for Flux"),
        ({"baseModel": "SD 3.5"}, "made for SD 3.5"),
        ({"usageControl": "Generation"}, "not downloaded"),
        ({"files": []}, "no model file"),
    ],
)
def test_what_cannot_be_trained_or_had_is_refused(player: CivitaiPlayer, changes: dict[str, object], said: str) -> None:
    player.add("a.safetensors", DATA)
    player.version |= changes
    with pytest.raises(RefusedModel, match=said):
        plan(player)


def test_early_access_names_its_page(player: CivitaiPlayer) -> None:
    player.add("a.safetensors", DATA)
    player.version["availability"] = "EarlyAccess"
    with pytest.raises(NeedsLogin, match="early access") as refused:
        plan(player)
    assert refused.value.link.startswith("https://civitai.com/models/257749")


def test_an_unknown_base_has_to_be_agreed_to(player: CivitaiPlayer) -> None:
    player.add("a.safetensors", DATA)
    player.version["baseModel"] = "Brand New XL"
    assert "Brand New XL" in plan(player).confirm[0]


def test_pickles_and_other_formats(player: CivitaiPlayer) -> None:
    player.add("old.ckpt", pickle_checkpoint())
    assert plan(player).needs_convert
    player.version["files"] = []
    player.add("thing.zip", b"PK", file_id=5)
    with pytest.raises(RefusedModel, match=r"is a \.zip file"):
        plan(player)


def test_the_api_is_asked_where_the_user_was(player: CivitaiPlayer, hubs: Hubs) -> None:
    red = CivitaiPlayer(hubs, host="civitai.red")
    red.add("a.safetensors", DATA)
    found = plan(red, CivitaiSource(None, red.version_id, host="civitai.red"))
    assert found.host == "civitai.red" and found.page.startswith("https://civitai.red/")
    assert {seen.host for seen in hubs.seen} == {"civitai.red"}


def test_missing_versions_and_unreadable_permissions(player: CivitaiPlayer, hubs: Hubs) -> None:
    with pytest.raises(FailedDownload, match="Check the name"):
        plan(player, CivitaiSource(None, 7))
    player.add("a.safetensors", DATA)
    player.publish()
    hubs.on("civitai.com", f"/api/v1/models/{player.model_id}", json_reply({"error": "gone"}, 404))
    found = plan_download(hubs.network(), None, CivitaiSource(None, player.version_id))
    assert "permissions unknown" in found.licence


def test_names_of_others_are_made_harmless(player: CivitaiPlayer) -> None:
    player.version["model"] = {"name": "<img src=x>\n\x1b[2J" + "y" * 900, "type": "Checkpoint"}
    player.add("..%2F..%2Fetc%2FCON.safetensors", DATA)
    found = plan(player)
    assert found.files[0].path == "_CON.safetensors" and found.name == "_CON"
    assert "\n" not in found.title and "\x1b" not in found.title and len(found.title) < 200


ODD = (7, -1, 10**400, 1e308, float("nan"), float("inf"), True, "text", {"a": 1}, [None], [[]], None)


@pytest.mark.parametrize("value", ODD, ids=lambda value: str(value)[:12])
def test_values_of_the_wrong_kind_are_no_values(player: CivitaiPlayer, value: object) -> None:
    player.add("a.safetensors", DATA, sizeKB=value)
    player.model["allowCommercialUse"] = value
    found = plan(player)
    assert found.files[0].sha256 == sha256(DATA) and (found.files[0].size or 0) < 2**50
    assert plan_from(plan_values(found)) == found
    player.version["files"] = value
    with pytest.raises(RefusedModel, match="no model file"):
        plan(player)
    player.model["modelVersions"] = value
    with pytest.raises(FailedDownload, match="no published version"):
        plan(player, CivitaiSource(player.model_id))
