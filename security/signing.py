"""Signs a finished LoRA and checks such a signature, with keys of the user's own and without any connection.

The signature is a file beside the LoRA in the format of OpenSSF Model Signing (https://github.com/sigstore/model-transparency),
so that their tools can check it as well. Signing with an account at an identity provider (their default) is not offered: it
sends the name of the account and the file's hash to a public log.
"""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from security.errors import RefusedFile, RefusedPath
from security.integrity import check_own_hash

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

SIGNATURE_SUFFIX = ".sig"
PUBLIC_SUFFIX = ".pub"
MAX_SIGNATURE_BYTES = 64 * 1024
"""Largest signature file; one of a LoRA has about 1 KiB."""
MAX_KEY_BYTES = 16 * 1024
CURVES = ("secp256r1", "secp384r1", "secp521r1")
"""The elliptic curves of the signature format."""


def signature_path(path: Path) -> Path:
    """Where the signature of a file lies: beside it, as `x.safetensors.sig`."""
    return path.with_name(path.name + SIGNATURE_SUFFIX)


def create_key(path: Path, passphrase: str | None = None) -> Path:
    """Makes a new key (P-256): the private half at `path`, mode 0600, and the public half, whose path is returned.

    Raises RefusedPath if one of the files is there already: a lost key can't be made again.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    protection = (
        serialization.BestAvailableEncryption(passphrase.encode()) if passphrase else serialization.NoEncryption()
    )
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    public_path = path.with_name(path.name + PUBLIC_SUFFIX)
    for file in (path, public_path):
        if file.exists() or file.is_symlink():
            raise RefusedPath(f"{file} is there already, and a key is never overwritten. Choose another name.")
    _write_new(path, private, 0o600)
    _write_new(public_path, key.public_key().public_bytes(serialization.Encoding.PEM, form), 0o644)
    return public_path


def sign_file(path: Path, private_key: Path, passphrase: str | None = None) -> Path:
    """Signs a .safetensors file after checking it; returns the path of the signature.

    Raises RefusedFile for a file that is not sound, a key that can't be used or a passphrase that does not fit, and
    RefusedPath if there is a signature already.
    """
    check_own_hash(path)
    _load_private_key(private_key, passphrase)
    target = signature_path(path)
    if target.exists() or target.is_symlink():
        raise RefusedPath(f"{target} is there already. Move or delete it to sign {path.name} again.")
    secret: Any = passphrase.encode() if passphrase else None  # the library's annotation says str, its code needs bytes
    config = _library("signing").Config().set_hashing_config(_hashing(path))
    config.use_elliptic_key_signer(private_key=private_key, password=secret)
    written = target.with_name(f"{target.name}.part")
    try:
        config.sign(path, written)
        written.replace(target)
    finally:
        written.unlink(missing_ok=True)
    return target


def check_signature(path: Path, public_key: Path) -> None:
    """Checks the whole file, its metadata included, against the signature beside it. Raises RefusedFile if it does not hold."""
    from cryptography.exceptions import InvalidSignature

    _load_public_key(public_key)
    signature = signature_path(path)
    _read(signature, MAX_SIGNATURE_BYTES, "signature")
    # The way of hashing is ours and not the signature's choice.
    config = _library("verifying").Config().set_hashing_config(_hashing(path))
    try:
        config.use_elliptic_key_verifier(public_key=public_key).verify(path, signature)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, InvalidSignature) as error:
        raise RefusedFile(
            f"{signature.name} is no signature of {path.name} by the key {public_key.name}: {_reason(error)}. Somebody "
            "changed the file after it was signed, or signed it with another key."
        ) from None


def is_encrypted(private_key: Path) -> bool:
    """Whether a private key asks for a passphrase. Raises RefusedFile if it can't be read."""
    return b"ENCRYPTED" in _read(private_key, MAX_KEY_BYTES, "key")


def _library(module: str) -> Any:
    """A module of model_signing. Imported when it is needed: that takes a second."""
    return importlib.import_module(f"model_signing.{module}")


def _hashing(path: Path) -> Any:
    config = (
        _library("hashing")
        .Config()
        .use_file_serialization(hashing_algorithm="sha256", allow_symlinks=path.is_symlink())
    )
    return config.set_ignored_paths(paths=[], ignore_git_paths=False)


def _load_private_key(path: Path, passphrase: str | None) -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    data = _read(path, MAX_KEY_BYTES, "key")
    if b"ENCRYPTED" in data and not passphrase:
        raise RefusedFile(f"The key {path.name} is protected by a passphrase. Give it with --passphrase-file.")
    try:
        key = serialization.load_pem_private_key(data, passphrase.encode() if passphrase else None)
    except TypeError:
        raise RefusedFile(f"The key {path.name} has no passphrase. Leave --passphrase-file out.") from None
    except ValueError:
        fault = "it is no private key in PEM form" if not passphrase else "it is damaged, or the passphrase is wrong"
        raise RefusedFile(f"The key {path.name} can't be used: {fault}.") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in CURVES:
        raise RefusedFile(f"The key {path.name} is of another kind. Make one with `sign --new-key FILE`.")
    return key


def _load_public_key(path: Path) -> None:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    data = _read(path, MAX_KEY_BYTES, "public key")
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        hint = " It is the private one; take the file that ends in .pub." if b"PRIVATE KEY" in data else ""
        raise RefusedFile(f"{path.name} is no public key in PEM form.{hint}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in CURVES:
        raise RefusedFile(f"The public key {path.name} is of another kind than those that sign models.")


def _read(path: Path, limit: int, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise RefusedFile(f"The {what} {path} cannot be read: {error.strerror}.") from None
    if len(data) > limit:
        raise RefusedFile(f"{path.name} has over {limit} bytes and is no {what}.")
    return data


def _write_new(path: Path, data: bytes, mode: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags, mode)
    except OSError as error:
        raise RefusedPath(f"{path} cannot be written: {error.strerror}.") from None
    with os.fdopen(descriptor, "wb") as file:
        if hasattr(os, "fchmod"):
            os.fchmod(
                descriptor, mode
            )  # a public key is for others to read, whatever the program's files are by default
        file.write(data)


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return "it is no JSON"
    text = str(error)
    if "Key mismatch" in text:
        return "it was made with another key"
    if "Signature mismatch" in text:
        return "the file's SHA-256 is another one"
    return "it does not verify"
