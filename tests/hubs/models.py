"""Model files small enough to send around: what the checks look at is real, the weights are not."""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from io import BytesIO
from pathlib import Path

from trainer.demo import BASE_DIR

SDXL_TENSORS: dict[str, tuple[int, ...]] = {
    "model.diffusion_model.input_blocks.0.0.weight": (4, 4, 3, 3),
    "model.diffusion_model.label_emb.0.0.weight": (4, 4),
    "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": (4,),
    "conditioner.embedders.1.model.ln_final.weight": (4,),
    "first_stage_model.encoder.conv_in.weight": (4, 3, 3, 3),
}
"""One tensor of each kind that an SDXL checkpoint has."""
LORA_TENSORS = {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (4, 4)}


def safetensors_bytes(tensors: dict[str, tuple[int, ...]], *, filler: int = 0, seed: int = 1) -> bytes:
    """A sound safetensors file of F16 tensors; `filler` bytes of a further tensor make it as large as a test needs."""
    header: dict[str, object] = {}
    start = 0
    shapes = {**tensors, **({"filler": (filler // 2,)} if filler else {})}
    for name, shape in shapes.items():
        end = start + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256(seed.to_bytes(4, "little")).digest()
    pattern = bytes(byte & 0x3F for byte in digest)  # as F16: numbers, never infinity
    return len(text).to_bytes(8, "little") + text + (pattern * (start // len(pattern) + 1))[:start]


def sdxl_checkpoint(*, filler: int = 0, seed: int = 1) -> bytes:
    """What a whole SDXL checkpoint looks like to the checks."""
    return safetensors_bytes(SDXL_TENSORS, filler=filler, seed=seed)


def diffusers_files() -> dict[str, bytes]:
    """The embedded model, a sound diffusers folder, as a repository would hold it."""
    return {
        path.relative_to(BASE_DIR).as_posix(): path.read_bytes() for path in Path(BASE_DIR).rglob("*") if path.is_file()
    }


def pickle_checkpoint() -> bytes:
    """The beginning of a .ckpt: a zip with a pickle in it. It is never opened, so it holds nothing dangerous."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
    return buffer.getvalue()


def git_sha1(data: bytes) -> str:
    """The name that git gives a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def sha256(data: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
