"""Signatures and own hashes of finished LoRAs: what is changed by one byte, or signed by somebody else, is noticed."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from safetensors.numpy import save, save_file

from security.errors import RefusedFile, RefusedPath
from security.integrity import check_own_hash, sha256_of
from security.signing import check_signature, create_key, is_encrypted, sign_file, signature_path
from trainer import events
from trainer.config.schema import TrainConfig
from trainer.models.provenance import Provenance, record_provenance
from trainer.runs import RunFolder
from trainer.workspace import Workspace
from ui import cli

NUMBERS = {"unet.lora_down.weight": np.arange(64, dtype=np.float32), "unet.alpha": np.float32([1.0])}
posix_only = pytest.mark.skipif(os.name != "posix", reason="modes of POSIX systems")


def tensors_hash() -> str:
    data = save(NUMBERS)
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """A LoRA that carries its own hash, as trainer/lora_files/writing.py writes it."""
    path = tmp_path / "style.safetensors"
    digest = tensors_hash()
    save_file(
        NUMBERS, path, metadata={"modelspec.hash_sha256": f"0x{digest}", "sshs_model_hash": digest, "ss_tag": "a"}
    )
    return path


@pytest.fixture
def key(tmp_path: Path) -> Path:
    create_key(tmp_path / "key")
    return tmp_path / "key"


def public(key: Path) -> Path:
    return key.with_name(key.name + ".pub")


def flip(path: Path, where: int) -> None:
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(data)


def test_own_hash_holds_and_finds_a_changed_number(lora: Path) -> None:
    assert check_own_hash(lora)
    flip(lora, -1)
    with pytest.raises(RefusedFile, match=r"damaged or was changed.*modelspec.hash_sha256"):
        check_own_hash(lora)


def test_each_of_the_two_own_hashes_counts(tmp_path: Path) -> None:
    for name in ("modelspec.hash_sha256", "sshs_model_hash"):
        save_file(NUMBERS, tmp_path / "x.safetensors", metadata={name: tensors_hash()})
        assert check_own_hash(tmp_path / "x.safetensors")
        flip(tmp_path / "x.safetensors", -2)
        with pytest.raises(RefusedFile, match=name):
            check_own_hash(tmp_path / "x.safetensors")


def test_both_own_hashes_have_to_hold(tmp_path: Path) -> None:
    wrong = {"modelspec.hash_sha256": f"0x{tensors_hash()}", "sshs_model_hash": "0" * 64}
    save_file(NUMBERS, tmp_path / "x.safetensors", metadata=wrong)
    with pytest.raises(RefusedFile, match="sshs_model_hash"):
        check_own_hash(tmp_path / "x.safetensors")


def test_file_without_an_own_hash_is_told_apart(tmp_path: Path) -> None:
    save_file(NUMBERS, tmp_path / "x.safetensors", metadata={"a": "b"})
    assert not check_own_hash(tmp_path / "x.safetensors")
    (tmp_path / "y.safetensors").write_bytes(b"no such file")
    with pytest.raises(RefusedFile):
        check_own_hash(tmp_path / "y.safetensors")


def test_sha256_is_that_of_the_whole_file(lora: Path) -> None:
    assert sha256_of(lora) == hashlib.sha256(lora.read_bytes()).hexdigest()


def test_signature_holds_also_for_a_renamed_file(lora: Path, key: Path) -> None:
    written = sign_file(lora, key)
    assert written == signature_path(lora) and written.name == "style.safetensors.sig"
    check_signature(lora, public(key))
    other = lora.rename(lora.with_name("other.safetensors"))
    written.rename(signature_path(other))
    check_signature(other, public(key))


@pytest.mark.parametrize("where", [20, 100, -1], ids=["header", "metadata", "numbers"])
def test_every_changed_byte_breaks_the_signature(lora: Path, key: Path, where: int) -> None:
    sign_file(lora, key)
    flip(lora, where)
    with pytest.raises(RefusedFile, match="the file's SHA-256 is another one"):
        check_signature(lora, public(key))


def test_signature_of_another_key_is_refused(lora: Path, key: Path, tmp_path: Path) -> None:
    sign_file(lora, key)
    with pytest.raises(RefusedFile, match="made with another key"):
        check_signature(lora, create_key(tmp_path / "theirs"))


def forged(change: Callable[[dict], None], lora: Path, key: Path) -> None:
    bundle = json.loads(sign_file(lora, key).read_text())
    change(bundle)
    signature_path(lora).write_text(json.dumps(bundle))


FORGERIES: dict[str, Callable[[dict], None]] = {
    "no signature": lambda bundle: bundle["dsseEnvelope"].update(signatures=[]),
    "empty signature": lambda bundle: bundle["dsseEnvelope"]["signatures"][0].update(sig=""),
    "other signature": lambda bundle: bundle["dsseEnvelope"]["signatures"][0].update(sig="MEUCIQ=="),
    "other statement": lambda bundle: bundle["dsseEnvelope"].update(payload="e30="),
    "other type": lambda bundle: bundle.update(mediaType="application/json"),
    "no key": lambda bundle: bundle.update(verificationMaterial={"publicKey": {"hint": "00"}}),
    "nothing": lambda bundle: bundle.clear(),
}


@pytest.mark.parametrize("change", FORGERIES.values(), ids=FORGERIES)
def test_forged_signature_is_refused(change: Callable[[dict], None], lora: Path, key: Path) -> None:
    forged(change, lora, key)
    with pytest.raises(RefusedFile, match=r"style.safetensors.sig is no signature of style.safetensors"):
        check_signature(lora, public(key))


def test_signature_for_another_file_is_refused(lora: Path, key: Path, tmp_path: Path) -> None:
    """Somebody takes a real signature of a real file of the same key."""
    other = tmp_path / "other.safetensors"
    save_file({"x": np.zeros(2, np.float32)}, other)
    sign_file(other, key).rename(signature_path(lora))
    with pytest.raises(RefusedFile, match="the file's SHA-256 is another one"):
        check_signature(lora, public(key))


@pytest.mark.parametrize("content", [b"", b"no json", b"[]", b"{" * 1000, b"x" * 100_000])
def test_unreadable_signature_is_one_sentence(content: bytes, lora: Path, key: Path) -> None:
    signature_path(lora).write_bytes(content)
    with pytest.raises(RefusedFile, match=r"style\.safetensors\.sig"):
        check_signature(lora, public(key))


def test_missing_signature_and_key_are_named(lora: Path, key: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedFile, match=r"signature .*\.sig cannot be read"):
        check_signature(lora, public(key))
    sign_file(lora, key)
    with pytest.raises(RefusedFile, match=r"public key .* cannot be read"):
        check_signature(lora, tmp_path / "none.pub")
    with pytest.raises(RefusedFile, match=r"private one; take the file that ends in \.pub"):
        check_signature(lora, key)


def test_damaged_file_is_not_signed(lora: Path, key: Path) -> None:
    flip(lora, -1)
    with pytest.raises(RefusedFile, match="damaged"):
        sign_file(lora, key)
    assert not signature_path(lora).exists()


def test_signature_is_not_overwritten(lora: Path, key: Path) -> None:
    before = sign_file(lora, key).read_bytes()
    with pytest.raises(RefusedPath, match="there already"):
        sign_file(lora, key)
    assert signature_path(lora).read_bytes() == before


@posix_only
def test_private_key_is_for_its_owner_alone(key: Path) -> None:
    assert key.stat().st_mode & 0o777 == 0o600
    assert b"PRIVATE" not in public(key).read_bytes()


def test_key_is_never_overwritten(key: Path, tmp_path: Path) -> None:
    before = key.read_bytes()
    with pytest.raises(RefusedPath, match="never overwritten"):
        create_key(key)
    (tmp_path / "lone.pub").write_text("mine")
    with pytest.raises(RefusedPath, match="never overwritten"):
        create_key(tmp_path / "lone")
    assert key.read_bytes() == before and not (tmp_path / "lone").exists()


@posix_only
def test_key_does_not_follow_a_link(tmp_path: Path) -> None:
    (tmp_path / "key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RefusedPath):
        create_key(tmp_path / "key")
    assert not (tmp_path / "elsewhere").exists()


def test_passphrase_protects_the_key(lora: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    create_key(key, "größer und länger")
    assert is_encrypted(key)
    for wrong, sentence in [(None, "--passphrase-file"), ("falsch", "passphrase is wrong")]:
        with pytest.raises(RefusedFile, match=sentence):
            sign_file(lora, key, wrong)
    check_signature(lora, public(sign_file(lora, key, "größer und länger") and key))


def test_keys_of_another_kind_are_refused(lora: Path, tmp_path: Path) -> None:
    for other in (ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256K1())):
        form = serialization.PrivateFormat.PKCS8
        (tmp_path / "k").write_bytes(
            other.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        )
        with pytest.raises(RefusedFile, match="another kind"):
            sign_file(lora, tmp_path / "k")
    (tmp_path / "k").write_bytes(b"-----BEGIN NOTHING-----")
    with pytest.raises(RefusedFile, match="no private key"):
        sign_file(lora, tmp_path / "k")


def test_signing_makes_no_connection(lora: Path, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was made")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    sign_file(lora, key)
    check_signature(lora, public(key))


def test_library_is_imported_only_to_sign() -> None:
    """It brings a second of imports, so starting the program must not pay for it."""
    code = "import sys, security.signing, security.integrity, ui.cli; print('model_signing' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"


# The commands


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = cli.main([*arguments])
    told = capsys.readouterr()
    return code, told.out + told.err


def test_sign_and_verify_from_the_command_line(
    lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFELIGHT_WORKSPACE", str(tmp_path / "workspace"))
    key = tmp_path / "mine"
    assert answer(capsys, "sign", "--new-key", str(key))[0] == 0
    assert answer(capsys, "sign", str(lora), "--key", str(key))[0] == 0
    code, text = answer(capsys, "verify", str(lora), "--public-key", f"{key}.pub")
    assert code == 0 and "signed by mine.pub" in text and f"sha256 {sha256_of(lora)}" in text
    code, text = answer(capsys, "verify", str(lora))
    assert code == 0 and "was not checked" in text
    flip(lora, -1)
    code, text = answer(capsys, "verify", "--json", str(lora))
    assert code == 1 and not json.loads(text)[0]["ok"] and "damaged" in json.loads(text)[0]["faults"][0]


def test_file_is_compared_with_what_its_run_wrote_down(
    lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The own hash does not cover the header; what the run wrote down covers every byte."""
    monkeypatch.setenv("SAFELIGHT_WORKSPACE", str(tmp_path / "workspace"))
    folder = RunFolder.create(Workspace.open(None), TrainConfig(name="ink"))
    saved = lora.rename(folder.path / "ink.safetensors")
    folder.append(events.LoraSaved(5, saved.name, "kohya", saved.stat().st_size, sha256_of(saved)))
    code, text = answer(capsys, "verify", str(saved))
    assert code == 0 and "the very file that its run saved" in text
    saved.write_bytes(saved.read_bytes().replace(b'"ss_tag":"a"', b'"ss_tag":"b"'))
    assert check_own_hash(saved)
    code, text = answer(capsys, "verify", str(saved))
    assert code == 1 and "ink.safetensors was changed" in text


def test_library_is_verified_by_what_was_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFELIGHT_WORKSPACE", str(tmp_path / "workspace"))
    workspace = Workspace.open(None)
    code, text = answer(capsys, "verify")
    assert code == 0 and "No models" in text
    for name in ("recorded", "unrecorded"):
        save_file(NUMBERS, workspace.models_dir / f"{name}.safetensors")
    record_provenance(workspace, "recorded", Provenance(source="owner/recorded"))
    code, text = answer(capsys, "verify")
    assert code == 0 and "recorded: the 1 file(s) that came from owner/recorded, unchanged" in text
    assert "unrecorded: nothing was recorded" in text
    file = workspace.models_dir / "recorded.safetensors"
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    flip(file, -1)
    os.utime(file, ns=times)  # size and time tell nothing: it has to be read again
    code, text = answer(capsys, "verify", "recorded")
    assert code == 1 and text.startswith("FAIL  recorded: ")
    code, text = answer(capsys, "verify", "--json")
    assert code == 1 and {one["name"]: one["ok"] for one in json.loads(text)} == {"recorded": False, "unrecorded": True}
    code, text = answer(capsys, "verify", "recorded", "--public-key", "x.pub")
    assert code == 2 and "Only single files are signed" in text


def test_wish_for_a_signature_that_is_missing_fails(
    lora: Path, key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFELIGHT_WORKSPACE", str(tmp_path / "workspace"))
    code, text = answer(capsys, "verify", str(lora), "--public-key", str(public(key)))
    assert code == 1 and "cannot be read" in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["verify", "nowhere"], "no file and no model of the library called nowhere"),
        (["verify", "--public-key", "k.pub"], "name the file as well"),
        (["sign", "--key", "k"], "Name the file to sign"),
        (["sign", "x", "--new-key", "k"], "signs nothing"),
        (["sign", "x", "--key", "k"], "cannot be read"),
    ],
)
def test_faults_of_the_user_are_one_sentence(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SAFELIGHT_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.chdir(tmp_path)
    code, text = answer(capsys, *arguments)
    assert code == 2 and sentence in text
    assert not (tmp_path / "k").exists()
