"""The claims S18 to S31: downloads, API keys, what is fetched from whom, and what is executed.

One short check for each claim, on the real code; the whole proof is in the files that test_seed_claims.py names.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from security.errors import FailedDownload, RefusedConfig, RefusedFile, RefusedUrl, SafelightError
from security.fetch import Wanted
from security.policy import MAX_MODEL_BYTES, Service
from security.redaction import refuse_secrets
from security.sandbox import confine_thread, probe
from security.token_rights import rights_of
from security.tokens import TokenStore
from security.weights import check_safetensors
from tests.hubs.bench import DATA, PATH, Bench, body_of, honest
from tests.hubs.civitai import CivitaiPlayer
from tests.hubs.huggingface import COMMIT, HuggingFacePlayer
from tests.hubs.models import sdxl_checkpoint
from tests.hubs.models import sha256 as sha256_hex
from tests.hubs.server import Hubs, Reply, redirect
from tests.security import pages
from tests.security.test_code_rules import BAD_CODE, RULES, program_faults
from tests.security.test_images import NO_PICTURES
from tests.security.test_urls import REFUSED_REDIRECTS
from tests.security.test_weights import OTHER_FILES
from tests.test_architecture import BANNED_KEYWORDS, PRODUCT, Source, banned_call_faults
from trainer.config.files import dump_config, parse_config
from trainer.dataset.importing import import_paths
from trainer.dataset.studio import Studio
from trainer.demo import demo_config
from trainer.models import civitai, huggingface
from trainer.models.checks import AV_VARIABLE, check_quarantined
from trainer.models.plans import RefusedModel
from trainer.models.sources import CivitaiSource, HuggingFaceSource
from trainer.tasks import TaskControl
from trainer.workspace import Workspace

TOKEN = "hf_" + "ClaimOfTheSeedNotReal" * 2


def test_s18_only_the_hubs_are_asked(hubs: Hubs) -> None:
    network = hubs.network()
    for text in ("https://evil.example/a", "https://huggingface.co.evil.example/a", "https://evil.hf.space/a"):
        with pytest.raises(RefusedUrl):
            body_of(network, text)
    hubs.on("huggingface.co", PATH, redirect("https://evil.example/x"))
    with pytest.raises(RefusedUrl):
        body_of(network, f"https://huggingface.co{PATH}")
    assert {seen.host for seen in hubs.seen} == {"huggingface.co"}
    assert len(REFUSED_REDIRECTS) > 20


def test_s19_the_content_decides_whatever_the_ending(tmp_path: Path) -> None:
    for data, reason in OTHER_FILES.values():
        path = tmp_path / "model.safetensors"
        path.write_bytes(data)
        with pytest.raises(RefusedFile, match=reason):
            check_safetensors(path)
    workspace = Workspace.open(tmp_path / "space")
    sources = []
    for number, (data, _) in enumerate(NO_PICTURES.values()):
        sources.append(tmp_path / f"{number}.png")
        sources[-1].write_bytes(data)
    control = TaskControl()
    with pytest.raises(SafelightError, match=f"nothing was changed. {len(NO_PICTURES)} left out"):
        import_paths(Studio(workspace), "set", sources, control)
    assert len(NO_PICTURES) > 10 and not list(workspace.datasets_dir.iterdir())


def test_s20_no_download_is_larger_than_allowed(bench: Bench) -> None:
    bench.serve(honest())
    with pytest.raises(FailedDownload):
        bench.fetch(Wanted("x.safetensors", 50 * 10**9, None, max_bytes=10**9))
    assert bench.hubs.seen == [], "refused before the first byte"
    bench.serve(Reply(body=DATA, announced=None))
    with pytest.raises(FailedDownload):
        bench.fetch(Wanted("x.safetensors", None, None, max_bytes=len(DATA) - 1))
    assert not list(bench.folder.glob("*.whole")) and MAX_MODEL_BYTES < 10**12


def test_s21_a_virus_scanner_of_ones_own_has_a_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(sdxl_checkpoint())
    monkeypatch.delenv(AV_VARIABLE, raising=False)
    assert check_quarantined(path).family == "sdxl"
    for code in (0, 1):
        monkeypatch.setenv(AV_VARIABLE, f'{sys.executable} -c "raise SystemExit({code})"')
        if code == 0:
            assert check_quarantined(path).family == "sdxl"
            continue
        with pytest.raises(RefusedFile, match="Virus scan"):
            check_quarantined(path)
    assert AV_VARIABLE in pages.plain() and "virus scanner" in pages.plain().lower()


def test_s22_keys_reach_neither_console_nor_log(tmp_path: Path) -> None:
    """A program prints, logs, warns and crashes with its token; what comes out has the mask in each place."""
    log = tmp_path / "out.log"
    code = (
        "import sys, logging, threading, warnings\n"
        "from security import output\n"
        "output.install()\n"
        "from security.secrets import Secret\n"
        f"token = Secret({TOKEN!r}, 'test token').reveal()\n"
        f"logging.basicConfig(filename={str(log)!r}, level='DEBUG')\n"
        "print('printed', token)\n"
        "sys.stderr.write('written ' + token + '\\n')\n"
        "logging.getLogger('x').warning('logged %s', token)\n"
        "warnings.warn('warned ' + token)\n"
        "thread = threading.Thread(target=lambda: 1 / 0 if token else None, name=token)\n"
        "thread.start(); thread.join()\n"
        "raise ValueError('raised ' + token)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=pages.ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    everything = done.stdout + done.stderr + log.read_text()
    for word in ("printed ***", "written ***", "logged ***", "warned ***", "raised ***"):
        assert word in everything, everything
    assert TOKEN not in everything and TOKEN[1:-1] not in everything


def test_s23_keys_come_from_the_environment_and_stay_out_of_files(tmp_path: Path) -> None:
    variables = {"HF_TOKEN": TOKEN, "PATH": "/bin"}
    tokens = TokenStore(environment=variables, env_file=tmp_path / ".env", find_keyring=lambda: None)
    secret = tokens.get(Service.HUGGING_FACE)
    assert secret is not None and secret.reveal() == TOKEN
    assert variables == {"PATH": "/bin"}, "a child process must not inherit it"
    with pytest.raises(RefusedConfig, match="passed on"):
        refuse_secrets(f'trigger = "{TOKEN}"', "The settings")
    config = parse_config({"dataset": {"trigger_word": TOKEN}})
    with pytest.raises(RefusedConfig):
        dump_config(config)
    assert "trigger_word" in dump_config(demo_config())


def test_s24_a_key_that_may_do_too_much_is_not_stored() -> None:
    def told(**token: object) -> tuple[bool, str]:
        rights = rights_of(Service.HUGGING_FACE, {"name": "x", "auth": {"accessToken": token}})
        return rights.refused, rights.warning

    assert told(role="read") == (False, "")
    refused, warning = told(role="write")
    assert refused and "reading is enough" in warning
    scoped = {"global": [], "scoped": [{"permissions": ["repo.content.read"]}]}
    assert told(role="fineGrained", fineGrained=scoped) == (False, "")
    scoped["scoped"] = [{"permissions": ["repo.write"]}]
    assert told(role="fineGrained", fineGrained=scoped)[0]


def test_s25_models_of_hugging_face_are_verified(hubs: Hubs) -> None:
    data = sdxl_checkpoint()
    player = HuggingFacePlayer(hubs, "someone/tiny", {"a.safetensors": data}).publish()
    plan = huggingface.plan_download(hubs.network(), None, HuggingFaceSource("someone/tiny", "main", ""))
    assert (plan.revision, plan.files[0].sha256) == (COMMIT, sha256_hex(data))
    player.issue("a.safetensors", "unsafe")
    with pytest.raises(RefusedModel, match="unsafe"):
        huggingface.plan_download(hubs.network(), None, HuggingFaceSource("someone/tiny", "main", ""))


def test_s26_models_of_civitai_are_verified(hubs: Hubs) -> None:
    data = sdxl_checkpoint()
    player = CivitaiPlayer(hubs)
    player.add("a.safetensors", data)
    player.publish()
    plan = civitai.plan_download(hubs.network(), None, CivitaiSource(version_id=290640), "")
    assert plan.files[0].sha256 == sha256_hex(data)
    failed = CivitaiPlayer(hubs)
    failed.add("a.safetensors", data, virusScanResult="Danger")
    failed.publish()
    with pytest.raises(RefusedModel, match="scan of"):
        civitai.plan_download(hubs.network(), None, CivitaiSource(version_id=290640), "")


def test_s27_nothing_is_cloned() -> None:
    """Training needs no code of other repositories, so no repository has to be trusted."""
    assert not [fault for source in PRODUCT for fault in program_faults(source)]
    assert list(program_faults(Source("ui/bad.py", "run(['git', 'clone', address])")))
    assert not (pages.ROOT / ".gitmodules").exists()


def test_s28_packages_are_installed_by_the_door_alone() -> None:
    assert not [fault for source in PRODUCT if source.name != "launch.py" for fault in program_faults(source)]
    assert list(program_faults(Source("ui/bad.py", "run([python, '-m', 'pip', 'install', name])")))
    assert "--require-hashes" in pages.raw("launch.py") and "--only-binary" in pages.raw("launch.py")


@pytest.mark.skipif(not probe().active, reason=f"no sandbox here: {probe().detail}")
def test_s29_training_runs_confined_and_nothing_else_does(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    outcome: dict[str, bool] = {}

    def write(path: Path) -> bool:
        try:
            path.write_text("x")
        except PermissionError:
            return False
        return True

    def train() -> None:
        state = confine_thread(read=[], write=[tmp_path / "run"])
        outcome["active"] = state.active
        outcome["own"] = write(tmp_path / "run" / "lora.safetensors")
        outcome["other"] = write(tmp_path / "other.txt")

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert outcome == {"active": True, "own": True, "other": False}
    assert write(tmp_path / "mine.txt"), "the rest of the program keeps its rights"


def test_s30_no_notebook_is_shipped() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=pages.ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this copy has no git history to list its files by")
    assert not [name for name in listed.stdout.splitlines() if name.endswith(".ipynb")]
    assert "notebook" in pages.plain().lower()


def test_s31_other_programs_are_started_without_a_shell() -> None:
    assert BANNED_KEYWORDS["shell"] is True
    assert not [fault for source in PRODUCT for fault in banned_call_faults(source)]
    assert list(banned_call_faults(Source("ui/bad.py", "subprocess.run(text, shell=True)")))
    assert {rule for rule, _, _ in BAD_CODE} == set(RULES), "every rule was seen to find something"
    assert "never through a shell" in pages.plain()
