"""Whether a finished weight file is still what was written: its own hash of the tensors, and the SHA-256 of the whole file.

Training tools write the SHA-256 of everything behind the header into the header: `modelspec.hash_sha256` (with 0x before it)
and `sshs_model_hash` (https://github.com/Stability-AI/ModelSpec). It finds damage and exchanged numbers. It does not cover the
header itself, and whoever changes the numbers can write a new one: only a signature (security/signing.py) shows who wrote it.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from security.errors import RefusedFile
from security.sniff import open_regular
from security.weights import check_safetensors

OWN_HASH_ENTRIES = ("modelspec.hash_sha256", "sshs_model_hash")
"""Entries of the metadata that hold the hash of the tensors, in hexadecimal digits."""
CHUNK_BYTES = 1 << 22


def sha256_of(path: Path, start: int = 0) -> str:
    """SHA-256 of a file from that byte on, in 64 hexadecimal digits. Raises RefusedFile if it can't be read."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        file.seek(start)
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def check_own_hash(path: Path) -> bool:
    """Compares the tensors of a .safetensors file with the hash that its header carries. False if it carries none.

    Raises RefusedFile if they differ, and for a file that is no sound .safetensors file.
    """
    header = check_safetensors(path)
    carried = {name: header.metadata[name].lower() for name in OWN_HASH_ENTRIES if name in header.metadata}
    if not carried:
        return False
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
    found = sha256_of(path, size - sum(tensor.num_bytes for tensor in header.tensors.values()))
    for name, value in carried.items():
        if value.removeprefix("0x") != found:
            raise RefusedFile(
                f"{path.name} is damaged or was changed: its numbers have the SHA-256 {found[:12]}..., but its {name} says "
                f"{value.removeprefix('0x')[:12]}... Copy or download it again."
            )
    return True
