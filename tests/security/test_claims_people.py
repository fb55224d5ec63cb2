"""The claims S32 to S60: what people do themselves, supported versions, what is protected and what is not, the roadmap.

One short check for each claim, on the real code; the whole proof is in the files that test_seed_claims.py names.
"""

from __future__ import annotations

import logging
import os
import random
import re
import socket
import stat
import subprocess
import sys
import threading
from importlib import metadata
from pathlib import Path

import pytest
from packaging.version import Version

import launch
from security.environment import closed_environment
from security.errors import FailedDownload, RefusedConfig, RefusedFile, RefusedPath, RefusedUrl, SafelightError
from security.fetch import Wanted
from security.net import Network
from security.policy import FLOORS, VERSION, Service
from security.roots import Root, refuse_unsafe_workspace
from security.sandbox import Limits, probe, run_confined
from security.signing import check_signature, create_key, sign_file
from security.tokens import TokenStore
from security.urls import parse_redirect, parse_typed
from security.web import DoorSettings
from tests.hubs.bench import DATA, FILE, SHA256, Bench, body_of, honest
from tests.hubs.server import Hubs
from tests.security import pages
from tests.security.bad_checkpoints import LIVE, payloads
from tests.security.test_code_rules import plain_http_faults, tls_faults
from tests.security.test_names import TROUBLE
from tests.security.weight_files import write_one_tensor
from tests.test_architecture import PRODUCT
from trainer.config.files import iter_settings, parse_config
from trainer.models.detect import detect
from trainer.models.downloads import Downloads
from trainer.workspace import Workspace
from ui.cli import build_parser
from ui.server import ServeOptions

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="modes and links as on Linux and macOS")
needs_sandbox = pytest.mark.skipif(not probe().active, reason=f"no sandbox here: {probe().detail}")
YOURS, NOT_OURS = "What you can do", "Not protected"


def test_s32_it_is_no_server_for_the_public() -> None:
    assert "not meant to be a public server" in pages.section(YOURS)


def test_s33_the_network_around_it_is_yours() -> None:
    assert "firewall" in pages.section(YOURS).lower()


def test_s34_the_system_is_to_be_kept_up_to_date() -> None:
    assert "up to date" in pages.section(YOURS)


def test_s35_whom_to_trust_is_yours_to_decide() -> None:
    assert "from people you trust" in pages.section(YOURS)


def test_s36_accounts_want_a_second_factor() -> None:
    text = pages.section(YOURS)
    assert "two-factor" in text and "fine-grained" in text


def test_s37_the_door_makes_an_environment_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "VENV", tmp_path / ".venv")
    launch.make_venv()
    settings = (tmp_path / ".venv" / "pyvenv.cfg").read_text()
    assert "include-system-site-packages = false" in settings
    prefix = subprocess.run(
        [str(launch.venv_python()), "-I", "-c", "import sys; print(sys.prefix)"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    assert Path(prefix).resolve() == (tmp_path / ".venv").resolve()


def test_s38_root_is_told_not_to_be_root() -> None:
    from security.privileges import root_warning

    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    assert bool(root_warning()) == is_root
    assert "not as root" in pages.section(YOURS)


@pytest.mark.parametrize("name", ["HF_TOKEN", "CIVITAI_TOKEN"])
def test_s39_the_documented_variables_are_read(tmp_path: Path, name: str) -> None:
    service = Service.HUGGING_FACE if name == "HF_TOKEN" else Service.CIVITAI
    token = "NotARealTokenOfClaim39" * 2
    tokens = TokenStore(environment={name: token}, env_file=tmp_path / ".env", find_keyring=lambda: None)
    secret = tokens.get(service)
    assert secret is not None and secret.reveal() == token and name in tokens.state(service).source
    assert name in pages.plain()


@posix_only
def test_s40_a_file_of_tokens_is_private_and_not_committed(tmp_path: Path) -> None:
    ignored = subprocess.run(["git", "check-ignore", "-q", ".env"], cwd=pages.ROOT, check=False).returncode
    assert ignored == 0 or not (pages.ROOT / ".git").exists()
    file, marker = tmp_path / ".env", tmp_path / "marker"
    file.write_text(f"HF_TOKEN=$(touch {marker})NotARealTokenOfClaim40\n")
    tokens = TokenStore(environment={}, env_file=file, find_keyring=lambda: None)
    file.chmod(0o644)
    with pytest.raises(RefusedConfig, match="chmod 600"):
        tokens.get(Service.HUGGING_FACE)
    file.chmod(0o600)
    with pytest.raises(RefusedConfig):  # taken as it stands: a space is no part of a token, and nothing is expanded
        tokens.get(Service.HUGGING_FACE)
    assert not marker.exists()
    file.write_text("HF_TOKEN='NotARealTokenOfClaim40'\n")
    secret = tokens.get(Service.HUGGING_FACE)
    assert secret is not None and secret.reveal() == "NotARealTokenOfClaim40"
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RefusedConfig, match="link"):
        tokens.get(Service.HUGGING_FACE)


def test_s41_every_address_is_https() -> None:
    assert not [fault for source in PRODUCT for fault in plain_http_faults(source)]
    with pytest.raises(RefusedUrl, match="Only https"):
        parse_typed("http://huggingface.co/a/b")
    with pytest.raises(RefusedUrl, match="Only https"):
        parse_redirect("http://cdn-lfs.hf.co/x", parse_typed(FILE))


def test_s42_the_page_answers_this_machine_only_unless_asked() -> None:
    assert ServeOptions().host == "127.0.0.1" and not ServeOptions().share
    options = build_parser().parse_args([])
    assert not getattr(options, "listen", False) and not getattr(options, "share", False)
    with pytest.raises(RefusedConfig, match="needs a password"):
        DoorSettings(listens=True)


def test_s43_the_workspace_is_a_folder_of_its_own(tmp_path: Path) -> None:
    refuse_unsafe_workspace(tmp_path / "safelight")
    for path in (Path("/"), Path.home(), pages.ROOT, pages.ROOT / "security", pages.ROOT / ".git"):
        with pytest.raises(RefusedPath, match="workspace"):
            refuse_unsafe_workspace(path)
    assert "Keep copies" in pages.section(YOURS)


def test_s44_temporary_files_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a program that was killed go at the next start, unfinished downloads after some days."""
    for name in [*(name for name in os.environ if name.upper().startswith("GRADIO_")), "NO_PROXY", "no_proxy"]:
        monkeypatch.setenv(name, os.environ.get(name, ""))
    killed = tmp_path / "safelight-page-killed"
    killed.mkdir()
    (killed / "lock").write_bytes(b"")
    (killed / "upload.png").write_bytes(b"x")
    folder = closed_environment(tmp_path)
    assert folder.is_dir() and not killed.exists()
    if sys.platform != "win32":
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    workspace = Workspace.open(tmp_path / "workspace")
    left = workspace.downloads_dir / "0123456789ab" / "parts"
    left.mkdir(parents=True)
    (left / "a.part").write_bytes(b"x")
    os.utime(left / "a.part", (1, 1))
    Downloads(workspace, Network(), TokenStore())
    assert list(workspace.downloads_dir.iterdir()) == []


def test_s45_the_newest_release_is_looked_after() -> None:
    text = pages.section("Supported versions")
    assert "the newest release" in text and "yes" in text
    assert re.fullmatch(r"\d+\.\d+(\.\d+)?(\.dev\d+)?", VERSION)


def test_s46_the_release_before_gets_what_the_table_says() -> None:
    assert re.search(r"the release before it\b.{0,80}(three months|no)", pages.section("Supported versions"))


def test_s47_older_ones_are_to_be_updated() -> None:
    assert "please update" in pages.section("Supported versions")


@needs_sandbox
def test_s48_a_malicious_model_that_slips_through_is_held(tmp_path: Path) -> None:
    """Payloads that would work are loaded on purpose, past every check, in the converter's sandbox."""
    outside, private, pickles = (tmp_path / name for name in ("outside", "private", "pickles"))
    for folder in (outside, private, pickles):
        folder.mkdir()
    made = list(payloads(lambda key: f"{outside}/marker-{sorted(LIVE).index(key)}").values())
    for number, data in enumerate(made[:8]):
        (pickles / f"{number}.pkl").write_bytes(data)
    done = run_confined(
        "tests.security.naive_child",
        [str(pickles)],
        folder=private,
        limits=Limits(memory_bytes=4 << 30, cpu_seconds=60, file_bytes=1 << 20),
        timeout_seconds=60,
        read=[pages.ROOT / "tests", pickles],
    )
    assert done.stdout.count("result: ") == 8, done.stderr
    assert list(outside.iterdir()) == []


def test_s49_downloads_stand_up_to_the_network(hubs: Hubs, bench: Bench, tmp_path: Path) -> None:
    assert not [fault for source in PRODUCT for fault in tls_faults(source)]
    stranger = tmp_path / "ca.pem"
    import trustme

    trustme.CA().cert_pem.write_to_path(stranger)
    network = type(hubs.network())(resolve=hubs.resolve, dial=hubs.dial, ca_file=stranger)
    with pytest.raises(FailedDownload, match="could not prove"):
        body_of(network, FILE)
    bench.serve(honest())
    with pytest.raises(FailedDownload, match="sha256"):
        bench.fetch(Wanted("x.safetensors", len(DATA), "0" * 64))
    assert not list(bench.folder.glob("*.whole")) and all(
        part.stat().st_size == 0 for part in bench.folder.glob("*.part")
    )
    assert bench.fetch().sha256 == SHA256


@posix_only
def test_s50_files_of_ours_give_nobody_a_way_in(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "launch.py", "--no-venv", "runs", "--workspace", str(tmp_path / "space")],
        cwd=pages.ROOT, capture_output=True, text=True, check=True, timeout=120, umask=0o022,
    )  # fmt: skip
    assert made.returncode == 0
    everything = [tmp_path / "space", *(tmp_path / "space").rglob("*")]
    assert len(everything) > 5 and not [path for path in everything if path.stat().st_mode & 0o077]
    root = Root(tmp_path)
    (tmp_path / "victim").write_text("untouched")
    (tmp_path / "planted").symlink_to(tmp_path / "victim")
    for use in (lambda: root.write_text_atomic(tmp_path / "planted", "x"), lambda: root.create_file("planted")):
        with pytest.raises(RefusedPath):
            use()
    with root.create_file("sub/new") as file:
        file.write(b"x")
    root.write_text_atomic(tmp_path / "sub" / "other", "x")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "sub", *(tmp_path / "sub").iterdir())}
    assert modes == {"sub": 0o700, "new": 0o600, "other": 0o600}
    assert (tmp_path / "victim").read_text() == "untouched"


def test_s51_logs_and_errors_keep_private_data_to_themselves(
    tmp_path: Path, bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    signed = f"{FILE}?X-Amz-Signature=canaryofthesignature"
    with caplog.at_level(logging.DEBUG), pytest.raises(FailedDownload) as failed:
        bench.fetch(Wanted("x.safetensors", 10, None), locate=lambda network: network.parse(signed))
    assert "canaryofthesignature" not in str(failed.value) + caplog.text
    assert all("canaryofthesignature" not in path.read_text("latin-1") for path in bench.folder.iterdir())


def test_s52_states_are_not_kept_out() -> None:
    assert "intelligence service" in pages.section(NOT_OURS)


def test_s53_the_machine_itself_is_not_guarded() -> None:
    assert "your account or your machine" in pages.section(NOT_OURS)


def test_s54_who_gives_a_password_away_gives_the_page_away() -> None:
    assert "gave the password" in pages.section(NOT_OURS)


def test_s55_broken_cryptography_is_out_of_reach() -> None:
    assert "cryptography" in pages.section(NOT_OURS)


def test_s56_every_setting_takes_nonsense_calmly() -> None:
    """Each setting is tried with random trouble: it is taken as text, or refused with its name; nothing else happens."""
    chance = random.Random(56)
    refused = 0
    for setting in iter_settings():
        for _ in range(6):
            text = "".join(chance.choice(TROUBLE) for _ in range(chance.randrange(1, 30)))
            values = {setting.section: {setting.field: text}} if setting.section else {setting.field: text}
            try:
                parse_config(values)
            except SafelightError as error:
                refused += 1
                assert setting.field in str(error)
    assert refused > 100


@posix_only
def test_s57_what_came_and_what_is_made_can_be_verified(tmp_path: Path, bench: Bench) -> None:
    bench.serve(honest())
    wrong = Wanted("x.safetensors", len(DATA), SHA256[:-1] + ("0" if SHA256[-1] != "0" else "1"))
    with pytest.raises(FailedDownload):
        bench.fetch(wrong)
    lora = write_one_tensor(tmp_path / "lora.safetensors")
    key = tmp_path / "my.key"
    public_key = create_key(key)
    sign_file(lora, key)
    check_signature(lora, public_key)
    lora.write_bytes(lora.read_bytes()[:-1] + b"\x01")
    with pytest.raises(RefusedFile):
        check_signature(lora, public_key)


@needs_sandbox
def test_s58_training_has_a_sandbox_and_the_page_says_so(tmp_path: Path) -> None:
    from security.sandbox import confine_thread

    states, faults = [], []

    def work() -> None:
        states.append(confine_thread(read=[], write=[tmp_path]))
        for attempt in (lambda: list(Path.home().iterdir()), lambda: socket.create_connection(("127.0.0.1", 9), 1)):
            try:
                attempt()
            except OSError as error:
                faults.append(type(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert states[0].active and faults == [PermissionError, PermissionError]
    assert "Landlock" in states[0].detail and "threads share memory" in pages.plain()


def test_s59_known_holes_are_looked_for() -> None:
    workflow = pages.raw(".github/workflows/checks.yml")
    assert "pip-audit --strict" in workflow and "schedule:" in workflow
    for package, floor in FLOORS.items():
        assert Version(metadata.version(package)) >= Version(floor), package


def test_s60_what_is_only_a_joke_is_not_promised() -> None:
    text = pages.plain().lower()
    assert not re.search(r"blockchain|zero-knowledge|hardware security module", text)
    with pytest.raises(SafelightError):
        detect(pages.ROOT / "SECURITY.md")
