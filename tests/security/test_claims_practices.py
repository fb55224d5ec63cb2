"""The claims S1 to S17: what we care about, what we do not lose sleep over, reporting, and how the code is written.

One short check for each claim, on the real code; the whole proof is in the files that test_seed_claims.py names.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from security import privileges
from security.convert import convert_checkpoint
from security.errors import FailedCommand, RefusedConfig, RefusedFile, RefusedPath, RefusedUrl, SafelightError
from security.images import read_image_info
from security.locks import read_lock
from security.names import safe_name, sanitized_name
from security.policy import FLOORS
from security.processes import run
from security.redaction import register
from security.repos import check_diffusers_folder
from security.roots import Root, resolve_user_path
from security.sandbox import probe
from security.urls import parse_typed
from security.versions import version_faults
from security.web import DoorSettings
from security.weights import check_safetensors
from tests.hubs.bench import Bench, honest
from tests.security import pages
from tests.security.bad_checkpoints import bad_checkpoints
from tests.security.conftest import PASSWORD
from tests.security.page_server import Page, log_in, served_page
from tests.security.test_code_rules import dangerous_call_faults, program_faults, writing_faults
from tests.security.test_names import BAD as BAD_NAMES
from tests.security.test_names import UPLOADED
from tests.security.test_pickles import checked
from tests.security.test_repos import make_model
from tests.security.test_roots import OUTSIDE
from tests.security.test_urls import ACCEPTED_URLS, REFUSED_URLS
from tests.security.test_weights import BAD_HEADERS
from tests.security.weight_files import write_one_tensor, write_weights
from tests.test_architecture import PRODUCT, banned_call_faults
from trainer.config.files import parse_config
from trainer.dataset.importing import import_paths
from trainer.dataset.studio import Studio
from trainer.models.detect import detect
from trainer.models.sources import parse_source
from trainer.tasks import TaskControl
from trainer.workspace import Workspace
from ui.messages import ShownError, known_errors

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="modes and links as on Linux and macOS")
HOSTILE_TEXTS = (
    "; touch {0}",
    "$(touch {0})",
    "`touch {0}`",
    "| touch {0}",
    "&& touch {0}",
    "a\ntouch {0}",
    "--output={0}",
)


def typed_everywhere(text: str, workspace: Workspace) -> None:
    """Gives a text to what takes texts of people. Most are refused; what matters is that nothing runs."""
    for use in (
        lambda: resolve_user_path(text, None),
        lambda: safe_name(text),
        lambda: parse_config({"name": text, "model": {"base": text}, "dataset": {"folder": text}}),
        lambda: import_paths(Studio(workspace), text, [], TaskControl()),
        lambda: parse_source(text, parse_typed),
    ):
        with contextlib.suppress(SafelightError, ValueError):
            use()


def test_s01_no_text_becomes_a_command(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    workspace = Workspace.open(tmp_path / "space")
    for form in HOSTILE_TEXTS:
        text = form.format(marker)
        done = run([sys.executable, "-c", "import sys; print(ascii(sys.argv[1:]))", text], timeout_seconds=30)
        assert done.stdout.strip() == ascii([text])
        typed_everywhere(text, workspace)
    assert not marker.exists()
    assert not [fault for source in PRODUCT for rule in (banned_call_faults, program_faults) for fault in rule(source)]


def test_s02_malicious_models_are_refused_and_harmless_ones_are_not(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    bad = bad_checkpoints(str(marker))
    for data in bad.values():
        with pytest.raises(RefusedFile):
            checked(data, tmp_path)
    for header, num_bytes, _ in BAD_HEADERS.values():
        with pytest.raises(RefusedFile):
            detect(write_weights(tmp_path / "m.safetensors", header, num_bytes))
    assert len(bad) + len(BAD_HEADERS) > 200 and not marker.exists()
    torch.save({"state_dict": {"w": torch.ones(2)}}, tmp_path / "good.ckpt")
    if probe().active:
        convert_checkpoint(tmp_path / "good.ckpt", tmp_path / "good.safetensors")
        assert load_file(tmp_path / "good.safetensors")["w"].tolist() == [1, 1]
    assert check_safetensors(write_one_tensor(tmp_path / "one.safetensors")).tensors


def test_s03_one_login_reads_nothing_of_another(guarded_page: Page) -> None:
    with guarded_page.client() as alice, guarded_page.client() as bob, guarded_page.client() as nobody:
        for visitor in (alice, bob):
            assert log_in(visitor, PASSWORD).status_code == 303
        path = alice.post("/gradio_api/upload", files={"files": ("a.txt", b"private")}).json()[0]
        asked = f"/gradio_api/file={path}"
        assert alice.get(asked).content == b"private"
        assert (bob.get(asked).status_code, nobody.get(asked).status_code) == (403, 401)
        assert nobody.get("/config").status_code == 401 and "gradio_api_info" not in nobody.get("/").text


def test_s04_packages_are_those_that_were_locked() -> None:
    pins = read_lock(pages.ROOT / "requirements.txt")
    assert len(pins) > 100 and all(pin.hashes for pin in pins)
    assert "--require-hashes" in pages.raw("launch.py")
    text = pages.raw("launch.py") + pages.raw(".github/workflows/checks.yml")
    assert "--extra-index-url" not in text and "--trusted-host" not in text


@posix_only
def test_s05_no_path_leaves_its_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    root = Root(tmp_path / "in")
    (root.path / "linked").symlink_to(tmp_path)
    for relative in [*OUTSIDE, "linked/secret.txt"]:
        with pytest.raises(RefusedPath):
            root.open_read(relative)
        with pytest.raises(RefusedPath):
            root.create_file(relative)
    assert (tmp_path / "secret.txt").read_text() == "secret"
    assert not [fault for source in PRODUCT for fault in writing_faults(source)]


def test_s06_physical_access_is_not_promised_away() -> None:
    assert "already use your account or your machine" in pages.section("Not protected")


def test_s07_an_edited_program_is_outside_of_the_promise() -> None:
    assert "changed the program itself" in pages.section("Not protected")


def test_s08_no_switch_turns_the_checks_off() -> None:
    """There is nothing to bypass: no option of the command line loads a pickle unchecked or trusts a model's code."""
    assert "switched off on purpose" in pages.section("Not protected")
    done = subprocess.run(
        [sys.executable, "launch.py", "--no-venv", "train", "--help"],
        cwd=pages.ROOT, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    helps = done.stdout.lower()
    assert len(helps) > 1000
    assert not any(
        word in helps for word in ("unsafe", "disable-", "skip-check", "trust-remote", "no-check", "weights_only")
    )


def test_s09_a_visitor_of_a_shared_page_cannot_flood_it(tmp_path: Path, picture: Path) -> None:
    """A crash of one's own page is no hole, but a share link can be reached by others: it has limits."""
    with served_page(DoorSettings(max_upload_bytes=2000), picture) as page, page.client() as client:
        assert client.post("/gradio_api/upload", files={"files": ("a.bin", bytes(9000))}).status_code == 413
        assert client.post("/gradio_api/upload", files={"files": ("a.bin", bytes(900))}).status_code == 200
    assert "overload" in pages.section("Not protected")


def test_s10_reports_go_to_a_place_that_exists() -> None:
    text = pages.section("Reporting a problem")
    assert "Report a vulnerability" in text and "do not open a public issue" in text
    assert "within two days" in text and "within a week" in text
    assert "email" not in text.lower() and "@" not in text
    raw = pages.raw("SECURITY.md")
    assert "Ktiseos" not in raw and "http://" not in raw


def test_s11_names_are_sanitized() -> None:
    for name in BAD_NAMES:
        with pytest.raises(SafelightError):
            safe_name(name)
    for name, made in UPLOADED.items():
        assert sanitized_name(name, "picture.png") == made == sanitized_name(made, "picture.png")


def test_s12_addresses_are_validated() -> None:
    for text, _ in REFUSED_URLS:
        with pytest.raises(RefusedUrl):
            parse_typed(text)
    assert len(REFUSED_URLS) > 100
    assert all(parse_typed(text).scheme == "https" for text, _ in ACCEPTED_URLS)


def test_s13_endings_are_checked_after_all_tricks(tmp_path: Path) -> None:
    for name in ("a.ckpt", "a.CKPT", "a.safetensors.pt", "a.Pkl", "a.npz"):
        (tmp_path / name).write_bytes(b"\x80\x02}q\x00.")
        with pytest.raises(RefusedFile, match="run code"):
            detect(tmp_path / name)
    for name in ("a.safetensors.exe", "a.png.exe", "a.svg"):
        (tmp_path / name).write_bytes(b"MZ\x90\0")
        with pytest.raises(RefusedFile):
            detect(tmp_path / name)
        with pytest.raises(RefusedFile):
            read_image_info(tmp_path / name)
    assert sanitized_name("a.SafeTensors", "x") == "a.safetensors"
    assert sanitized_name("a.safetensors. ", "x") == "a.safetensors"


def test_s14_nothing_that_was_downloaded_runs_by_itself(tmp_path: Path, bench: Bench) -> None:
    marker = tmp_path / "marker"
    code = f"open({str(marker)!r}, 'w')"
    model = make_model(tmp_path / "model")
    for name in ("pipeline.py", "unet/modeling.py", "vae/run.sh", "x.so", "scheduler/setup.ipynb"):
        (model / name).write_text(code)
        with pytest.raises(RefusedFile, match="is a program"):
            check_diffusers_folder(model)
        (model / name).unlink()
    check_diffusers_folder(model)
    assert not marker.exists()
    if sys.platform != "win32":
        bench.serve(honest())
        assert stat.S_IMODE(bench.fetch().path.stat().st_mode) == 0o600


def test_s15_nothing_asks_for_more_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    faults = [fault for source in PRODUCT for rule in (program_faults, dangerous_call_faults) for fault in rule(source)]
    assert not faults
    if hasattr(os, "geteuid"):
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        assert "root" in privileges.root_warning()
        with pytest.raises(RefusedConfig, match="--allow-root"):
            privileges.refuse_root_sharing(share=True, allow_root=False)
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        assert privileges.root_warning() == ""
        privileges.refuse_root_sharing(share=True, allow_root=False)


def test_s16_versions_are_pinned_updated_and_not_below_the_floors() -> None:
    assert all(pin.version for pin in read_lock(pages.ROOT / "requirements.txt"))
    bot = pages.raw(".github/dependabot.yml")
    assert all(
        word in bot for word in ("package-ecosystem: pip", "package-ecosystem: github-actions", "interval: weekly")
    )
    assert version_faults() == [] and len(FLOORS) >= 8
    (fault,) = version_faults({"torch": "99.0"})
    assert "known security holes" in fault


def test_s17_what_goes_wrong_is_told_without_paths_and_secrets(caplog: pytest.LogCaptureFixture) -> None:
    token = "hf_" + "CanaryOfClaimSeventeen0"
    register(token, "test token")
    with caplog.at_level(logging.ERROR), pytest.raises(ShownError) as shown, known_errors():
        raise ValueError(f"/home/somebody/model {token}")
    message = str(shown.value)
    assert "/home" not in message and token not in message and "ValueError" not in message
    error_id = message.split("id ")[1].split(")")[0]
    assert error_id in caplog.text
    with pytest.raises(FailedCommand) as failed:
        run(["program-that-is-not-there", token], timeout_seconds=1)
    assert token not in str(failed.value)
