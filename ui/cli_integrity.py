"""`verify`, `sign` and `sbom`: whether files are still what they were, who wrote them, and what is installed."""

from __future__ import annotations

import getpass
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from security.errors import RefusedFile, SafelightError
from security.integrity import check_own_hash, sha256_of
from security.login import read_password_file
from security.policy import VERSION
from security.roots import replace_file
from security.signing import check_signature, create_key, is_encrypted, sign_file, signature_path
from trainer.models.library import list_models
from trainer.models.provenance import read_provenance, verify_model
from trainer.runs import RunFolder, RunReader
from trainer.workspace import REPOSITORY_DIR, Workspace


@dataclass
class Verdict:
    """What was found about one file or model. `sha256` is the whole file's, "" for a model of the library."""

    name: str
    sha256: str = ""
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.faults


def verify(workspace: Workspace, names: list[str], public_key: Path | None, *, as_json: bool) -> int:
    """Checks the named files and models, or the whole library. Returns 0 if all are as they should be, else 1."""
    if public_key is not None and not names:
        raise SafelightError("--public-key is for the signature of a LoRA: name the file as well.")
    verdicts = []
    for name in names or [model.name for model in list_models(workspace) if not model.builtin]:
        verdict = _verdict(workspace, name, public_key)
        verdicts.append(verdict)
        if not as_json:
            _print(verdict)
    if as_json:
        print(json.dumps([{"ok": verdict.ok, **asdict(verdict)} for verdict in verdicts], indent=1))
    elif not verdicts:
        print(f"No models in {workspace.models_dir} yet.")
    return 0 if all(verdict.ok for verdict in verdicts) else 1


def _verdict(workspace: Workspace, name: str, public_key: Path | None) -> Verdict:
    """Looks at a file if there is one at that path, else at the library's model of that name."""
    path = Path(name)
    if path.is_file():
        return _verdict_on_file(workspace, path, public_key)
    if any(model.name == name and not model.builtin for model in list_models(workspace)):
        if public_key is not None:
            raise SafelightError(f"{name} is a model of the library. Only single files are signed.")
        return _verdict_on_model(workspace, name)
    raise SafelightError(f"There is no file and no model of the library called {name}. `models` lists the models.")


def _verdict_on_file(workspace: Workspace, path: Path, public_key: Path | None) -> Verdict:
    verdict = Verdict(str(path))
    try:
        verdict.sha256 = sha256_of(path)
        if check_own_hash(path):
            verdict.notes.append("a sound .safetensors file, and its numbers have the hash that it carries")
        else:
            verdict.notes.append("a sound .safetensors file; it carries no hash of its own to compare with")
        if recorded := recorded_sha256(workspace, path):
            if verdict.sha256 != recorded:
                raise RefusedFile(
                    f"{path.name} was changed: its SHA-256 is not the {recorded[:12]}... that its run wrote down."
                )
            verdict.notes.append("the very file that its run saved")
        if public_key is not None:
            check_signature(path, public_key)
            verdict.notes.append(f"signed by {public_key.name}, and unchanged since")
        elif signature_path(path).is_file():
            verdict.notes.append("there is a signature, which was not checked: give the signer's key with --public-key")
    except RefusedFile as refusal:
        verdict.faults.append(str(refusal))
    return verdict


def recorded_sha256(workspace: Workspace, path: Path) -> str:
    """What the run that saved a file wrote down as its SHA-256; "" for files of elsewhere and of older versions."""
    try:
        run_id, *inside = path.resolve().relative_to(workspace.runs_dir.resolve()).parts
        saved = RunReader(RunFolder.find(workspace, run_id)).progress().loras
    except (ValueError, OSError):
        return ""
    return next((lora.sha256 for lora in saved if lora.path == "/".join(inside)), "")


def _verdict_on_model(workspace: Workspace, name: str) -> Verdict:
    verdict = Verdict(name, faults=verify_model(workspace, name, reread=True))
    if verdict.ok:
        recorded = read_provenance(workspace, name)
        if recorded is None:
            verdict.notes.append("nothing was recorded when it came, so there is nothing to compare with")
        else:
            verdict.notes.append(f"the {len(recorded.files)} file(s) that came from {recorded.source}, unchanged")
    return verdict


def _print(verdict: Verdict) -> None:
    print(f"{'ok  ' if verdict.ok else 'FAIL'}  {verdict.name}: {'; '.join(verdict.faults or verdict.notes)}")
    if verdict.sha256:
        print(f"      sha256 {verdict.sha256}")


def new_key(path: Path, passphrase_file: Path | None) -> int:
    """Makes a key to sign with."""
    public = create_key(path, _new_passphrase(passphrase_file))
    print(f"{path} signs: keep it to yourself, and keep a copy. {public} is for everybody who is to check your files.")
    return 0


def sign(path: Path, key: Path, passphrase_file: Path | None) -> int:
    """Signs a finished LoRA."""
    passphrase = None
    if passphrase_file is not None or is_encrypted(key):
        passphrase = _passphrase(passphrase_file, f"Passphrase of {key.name}: ")
    print(f"{sign_file(path, key, passphrase)} was written. Give it away together with {path.name}.")
    return 0


def _new_passphrase(file: Path | None) -> str | None:
    if file is not None:
        return read_password_file(file)
    if not sys.stdin.isatty():
        return None
    first = getpass.getpass("Passphrase for the new key (empty for none): ")
    if first and getpass.getpass("Once more: ") != first:
        raise SafelightError("The two passphrases differ. Nothing was written.")
    return first or None


def _passphrase(file: Path | None, question: str) -> str:
    if file is not None:
        return read_password_file(file)
    if not sys.stdin.isatty():
        raise SafelightError("The key is protected by a passphrase. Give it with --passphrase-file FILE.")
    return getpass.getpass(question)


def sbom(out: Path | None) -> int:
    """Prints the bill of materials, or writes it."""
    from security.sbom import make_sbom

    text = make_sbom(REPOSITORY_DIR, VERSION) + "\n"
    if out is None:
        sys.stdout.write(text)
        return 0
    try:
        replace_file(out, text.encode())
    except OSError as error:
        raise SafelightError(f"{out} cannot be written: {error.strerror}.") from None
    print(f"{out} was written: CycloneDX 1.6, {len(json.loads(text)['components'])} packages")
    return 0
