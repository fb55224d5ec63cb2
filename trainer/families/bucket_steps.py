"""How fine picture sides may be for a base model, read from its files. Imports no torch: the page asks before a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from security.configs import read_json
from security.errors import RefusedFile
from security.weights import check_safetensors
from trainer.families import shapes

_USUAL_LEVELS = {"vae": 1, "unet": 4}
"""Where a config.json has no block_out_channels: diffusers' own defaults, AutoencoderKL and UNet2DConditionModel."""


def bucket_step_of(path: Path) -> int:
    """Picture sides must be multiples of this many pixels; the same number as `ModelFamily.bucket_step` gives.

    `path`: a diffusers folder or a single file. Reads headers only. Raises SafelightError for what is no such model.
    """
    parts: dict[str, dict[str, Any]]
    if path.is_dir():
        parts = {part: read_json(path / part / "config.json") for part in _USUAL_LEVELS}
    else:
        header = check_safetensors(path)
        found = {name: tuple(info.shape) for name, info in header.tensors.items()}
        # The number of heads is in no shape; it changes no size of a picture.
        parts = {"vae": shapes.vae_sizes(found), "unet": shapes.unet_sizes(found, heads=1)}
    halvings = sum(_levels(settings, part, path.name) - 1 for part, settings in parts.items())
    return int(2**halvings)


def _levels(settings: dict[str, Any], part: str, name: str) -> int:
    channels = settings.get("block_out_channels", [0] * _USUAL_LEVELS[part])
    if not isinstance(channels, list) or not 1 <= len(channels) <= 8:
        raise RefusedFile(f"The {part} of {name} has no usable block_out_channels. Fetch the model again.")
    return len(channels)
