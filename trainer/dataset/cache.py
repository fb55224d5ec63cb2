"""Encoded pictures and captions, kept on disk under a hash of everything that they depend on.

A changed file, bucket, crop, model or scaling convention gives another name, so a stale entry is never read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from security.errors import RefusedFile
from security.images import open_image, to_rgb
from security.roots import Root, disk_is_full
from trainer.dataset.batches import PlacedPicture
from trainer.dataset.buckets import Placement

FORMAT = "1"  # raise it when the meaning of an entry changes


def cache_key(*parts: object) -> str:
    """SHA-256 of the parts, 64 hexadecimal digits."""
    return hashlib.sha256("\x1f".join([FORMAT, *map(str, parts)]).encode()).hexdigest()


@dataclass
class TensorCache:
    """Small safetensors files in a folder of the workspace's cache."""

    folder: Path
    is_full: bool = False

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The entry, or None when it isn't there or is damaged (it is then made again)."""
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            return load_file(path)
        except SafetensorError:
            path.unlink()
            return None

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> bool:
        """Stores an entry; other processes see it whole or not at all. Without room `is_full` says so: it can be made again.

        Returns whether it was stored.
        """
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            Root(self.folder).write_bytes_atomic(path, save(stored))
        except OSError as error:
            if not disk_is_full(error):
                raise
            self.is_full = True
            return False
        return True

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"


def load_pixels(path: Path, placement: Placement, *, flip: bool) -> Tensor:
    """A picture fitted into its bucket as (1, 3, H, W) fp32 in [-1, 1]. Transparent pixels become white.

    Raises RefusedFile when the file can't be read or is not the size that it was scanned with.
    """
    cropped = _fitted(to_rgb(open_image(path)), path, placement, Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(numpy.asarray(cropped, dtype=numpy.float32) / 127.5 - 1.0)
    pixels = pixels.permute(2, 0, 1).unsqueeze(0)
    return pixels.flip(-1) if flip else pixels


def load_mask(path: Path, placement: Placement, latent_size: tuple[int, int], *, flip: bool) -> Tensor:
    """A mask cut like its picture, as (1, 1, h, w) fp32 in [0, 1]: the white share of the area under each latent.

    `latent_size` is (h, w). Raises RefusedFile as `load_pixels` does.
    """
    mask = to_rgb(open_image(path), background=(0, 0, 0)).convert("L")
    cropped = _fitted(mask, path, placement, Image.Resampling.BOX)  # by area: another filter rings into the black
    whole = torch.from_numpy(numpy.asarray(cropped, dtype=numpy.float32) / 255.0)[None, None]
    return torch.nn.functional.adaptive_avg_pool2d(whole.flip(-1) if flip else whole, latent_size)


def _fitted(image: Image.Image, path: Path, placement: Placement, scaling: Image.Resampling) -> Image.Image:
    """A picture scaled and cut as `placement` says. Raises RefusedFile when it is not the size that it was scanned with."""
    if image.size != placement.original:
        raise RefusedFile(
            f"{path.name} changed while it was read: it was {placement.original}, now it is {image.size}."
        )
    left, top, (width, height) = placement.left, placement.top, placement.bucket
    if placement.is_zoomed:
        # Only what is shown is scaled: the whole picture, drawn near, may have billions of pixels.
        across, down = (one / other for one, other in zip(placement.original, placement.resized, strict=True))
        box = (left * across, top * down, (left + width) * across, (top + height) * down)
        return image.resize((width, height), scaling, box=box, reducing_gap=3.0)
    resized = image.resize(placement.resized, scaling, reducing_gap=3.0)
    return resized.crop((left, top, left + width, top + height))


def latents_key(placed: PlacedPicture, model_fingerprint: str, *, flip: bool) -> str:
    """Name of a picture's latents: its bytes, its crop, the flip, and the model that encoded it."""
    return cache_key("latents", placed.picture.content_hash, *_crop_parts(placed.placement), flip, model_fingerprint)


def mask_key(placed: PlacedPicture, latent_size: tuple[int, int], *, flip: bool) -> str:
    """Name of a picture's mask at the size of its latents."""
    return cache_key("mask", placed.picture.mask_hash, *_crop_parts(placed.placement), flip, latent_size)


def _crop_parts(placement: Placement) -> tuple[object, ...]:
    return placement.resized, placement.bucket, placement.left, placement.top


def text_key(prompt: str, model_fingerprint: str, *, clip_skip: int, max_token_length: int, dtype: torch.dtype) -> str:
    """Name of an encoded prompt."""
    return cache_key("text", prompt, model_fingerprint, clip_skip, max_token_length, dtype)


def cached(cache: TensorCache | None, key: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The entry of that name, made and stored when it isn't there; without a cache it is just made. Tensors on the CPU."""
    found = cache.get(key) if cache is not None else None
    if found is None:
        found = {name: tensor.detach().cpu() for name, tensor in make().items()}
        if cache is not None:
            cache.put(key, found)
    return found
