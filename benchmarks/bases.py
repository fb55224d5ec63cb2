"""What the benchmarks of training train on: models of the real sizes with random weights, and pictures with captions.

The same call gives the same files. How good a model is does not matter to its speed, so none has to be fetched.
"""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

TOKENIZER = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
WORDS = ("red", "green", "house", "tree", "cat", "portrait", "night", "river", "hat", "lamp", "smile", "rain")


@dataclass(frozen=True)
class Size:
    """A model's size. `config`: its folder among the families' settings, empty for the embedded demo model.

    `resolution` (pixels), `batch` and `steps` are those of its table unless told otherwise.
    """

    config: str
    family: str
    resolution: int
    batch: int
    steps: int
    num_text_encoders: int = 1
    pixels_per_latent: int = 8


SIZES = {
    "tiny": Size("", "sd15", 64, 4, 60, pixels_per_latent=4),
    "sd15": Size("sd15", "sd15", 256, 1, 6),
    "sdxl": Size("sdxl", "sdxl", 1024, 1, 60, num_text_encoders=2),
}
"""Steps that count are `steps`, per round; larger families join with a row."""


def build_base(size: Size, folder: Path) -> Path:
    """Writes a model of that size with random weights as a diffusers folder, in fp16 as such models are published."""
    from trainer.demo import BASE_DIR

    if not size.config:
        return BASE_DIR
    if (folder / "model_index.json").exists():
        return folder
    import torch

    from trainer.families.single_file import CONFIGS_DIR, TOKENIZER_DIR

    torch.manual_seed(0)
    kind = "StableDiffusionXLPipeline" if size.family == "sdxl" else "StableDiffusionPipeline"
    index: dict[str, Any] = {"_class_name": kind, "_diffusers_version": "0.40.0"}
    for part in sorted((CONFIGS_DIR / size.config).iterdir()):
        index[part.name] = _write_part(part, folder / part.name)
    for number in range(1, size.num_text_encoders + 1):
        name = "tokenizer" if number == 1 else f"tokenizer_{number}"
        shutil.copytree(TOKENIZER_DIR, folder / name)
        pad = "<|endoftext|>" if number == 1 else "!"
        (folder / name / "tokenizer_config.json").write_text(
            json.dumps(TOKENIZER | {"pad_token": pad}), encoding="utf-8"
        )
        index[name] = ("transformers", "CLIPTokenizer")
    (folder / "model_index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
    return folder


def _write_part(settings_dir: Path, folder: Path) -> tuple[str, str]:
    """Writes one part of a model; returns its library and class, as the index of a diffusers folder names them."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    if settings_dir.name == "scheduler":
        settings = json.loads((settings_dir / "scheduler_config.json").read_text(encoding="utf-8"))
        shutil.copy(settings_dir / "scheduler_config.json", folder)
        return "diffusers", settings["_class_name"]
    shutil.copy(settings_dir / "config.json", folder)
    settings = json.loads((settings_dir / "config.json").read_text(encoding="utf-8"))
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)  # the largest would not fit beside a copy of itself
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            module = random_module(settings)
    finally:
        torch.set_default_dtype(usual)
    library = "transformers" if "architectures" in settings else "diffusers"
    inner = "text_model." if library == "transformers" else ""
    state = {
        f"{inner if not key.startswith((inner, 'text_projection')) else ''}{key}": value.to("cpu", torch.float16)
        for key, value in module.state_dict().items()
        if not key.endswith("position_ids")
    }
    name = "model.safetensors" if inner else "diffusion_pytorch_model.safetensors"
    save_file(state, folder / name, metadata={"format": "pt"})
    return library, type(module).__name__


def random_module(settings: dict[str, Any]) -> Any:
    """A part of a model as its settings describe it, with the weights that its class begins with."""
    import diffusers
    import transformers

    if "architectures" not in settings:
        return getattr(diffusers, settings["_class_name"]).from_config(settings)
    values = {key: value for key, value in settings.items() if key not in ("architectures", "model_type")}
    return getattr(transformers, settings["architectures"][0])(transformers.CLIPTextConfig(**values))


def write_pictures(folder: Path, number: int, side: int) -> tuple[Path, Path, Path]:
    """The same pictures as each program wants to find them: with captions in .txt files, in metadata.jsonl, and in a
    folder that names its repeats. They have the size that is trained, which spares everybody the scaling."""
    plain, listed, repeated = folder / "plain", folder / "listed", folder / "repeated"
    for place in (plain, listed, repeated / "1_pictures"):
        place.mkdir(parents=True)
    chance, numbers = random.Random(7), np.random.default_rng(7)
    lines = []
    for index in range(number):
        image = Image.fromarray(numbers.integers(0, 256, (side, side, 3), dtype=np.uint8))
        draw = ImageDraw.Draw(image)
        for _ in range(6):
            x, y, radius = chance.randrange(side), chance.randrange(side), chance.randrange(4, side // 3)
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(chance.choices(range(256), k=3)))
        name, caption = f"{index:04d}", ", ".join(chance.sample(WORDS, 5))
        image.save(plain / f"{name}.png")
        (plain / f"{name}.txt").write_text(caption, encoding="utf-8")
        for copy in (f"{name}.png", f"{name}.txt"):
            shutil.copy(plain / copy, repeated / "1_pictures")
        shutil.copy(plain / f"{name}.png", listed)
        lines.append(json.dumps({"file_name": f"{name}.png", "text": caption}))
    (listed / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return plain, listed, repeated
