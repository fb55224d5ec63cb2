"""How other trainers are started on the same work, as they are, from checkouts whose paths the user gives.

Nothing of theirs is part of Safelight. What a machine lacks of torchvision's wheels is replaced by a stand-in with the
few transformations of pictures that these scripts use.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import stand_in

NUM_STEPS = 1000
"""Length that every program is told; the stopwatch ends it sooner."""


class WrongCheckout(ValueError):
    """The path that was given is not what it should be."""


@dataclass(frozen=True)
class Peer:
    """A trainer to compare with. `scripts`: by family, the file in a checkout that trains it.

    `targets`: the layers that it trains, in words of Safelight's `lora.targets`; `sizes`: those it can train.
    `command`: the arguments for a work, folders and a file of its own.
    """

    name: str
    scripts: dict[str, str]
    targets: str
    sizes: tuple[str, ...]
    command: Callable[[Any, Folders], list[str]]
    notes: str

    def script(self, checkout: Path, family: str) -> Path:
        """The file that trains a family. Raises WrongCheckout when the path is not such a checkout."""
        path = checkout / self.scripts[family]
        if not checkout.is_dir():
            raise WrongCheckout(f"{checkout} is no folder. Give the path of a checkout of {self.name}.")
        if not path.is_file():
            raise WrongCheckout(
                f"{checkout} has no {self.scripts[family]}, so it is no checkout of {self.name}. Give its topmost folder."
            )
        return path.resolve()


@dataclass(frozen=True)
class Folders:
    """Where a program finds its inputs and leaves what it writes. `pictures`: plain, listed and repeated."""

    base: Path
    pictures: tuple[Path, Path, Path]
    scratch: Path


def diffusers_command(work: Any, folders: Folders) -> list[str]:
    """Of train_text_to_image_lora.py and its sibling for SDXL, which have no caches."""
    return [
        *("--pretrained_model_name_or_path", str(folders.base), "--train_data_dir", str(folders.pictures[1])),
        *("--caption_column", "text", "--resolution", str(work.resolution), "--center_crop"),
        *("--train_batch_size", str(work.batch), "--max_train_steps", str(NUM_STEPS)),
        *("--checkpointing_steps", "1000000", "--learning_rate", "1e-4", "--rank", str(work.rank), "--seed", "42"),
        *("--mixed_precision", {"fp32": "no", "bf16": "bf16"}[work.precision]),
        *("--output_dir", str(folders.scratch / "out")),
        *(["--gradient_checkpointing"] if work.gradient_checkpointing else []),
    ]


def sd_scripts_command(work: Any, folders: Folders) -> list[str]:
    """Of train_network.py and its sibling for SDXL, with their own caches on."""
    arguments = [
        *("--pretrained_model_name_or_path", str(folders.base), "--train_data_dir", str(folders.pictures[2])),
        *("--caption_extension", ".txt", "--resolution", f"{work.resolution},{work.resolution}"),
        *("--train_batch_size", str(work.batch), "--max_train_steps", str(NUM_STEPS), "--seed", "42"),
        *("--network_module", "networks.lora", "--network_dim", str(work.rank), "--network_alpha", str(work.rank)),
        *("--network_train_unet_only", "--cache_latents_to_disk", "--sdpa", "--optimizer_type", "AdamW"),
        *("--learning_rate", "1e-4", "--mixed_precision", {"fp32": "no", "bf16": "bf16"}[work.precision]),
        *("--output_dir", str(folders.scratch / "out"), "--output_name", "lora", "--save_model_as", "safetensors"),
        *("--tokenizer_cache_dir", str(_tokenizers(folders)), "--max_data_loader_n_workers", "0"),
        *(["--gradient_checkpointing"] if work.gradient_checkpointing else []),
    ]
    if work.family == "sdxl":
        arguments += ["--cache_text_encoder_outputs", "--no_half_vae"]
    return arguments


def _tokenizers(folders: Folders) -> Path:
    """A folder of tokenizers under the names that sd-scripts knows them by, so that it needs no network."""
    place = folders.scratch / "tokenizers"
    place.mkdir(parents=True, exist_ok=True)
    names = {"tokenizer": "openai_clip-vit-large-patch14", "tokenizer_2": "laion_CLIP-ViT-bigG-14-laion2B-39B-b160k"}
    for own, theirs in names.items():
        if (folders.base / own).is_dir() and not (place / theirs).exists():
            (place / theirs).symlink_to((folders.base / own).resolve())
    return place


PEERS = {
    "diffusers": Peer(
        "diffusers",
        {
            "sd15": "examples/text_to_image/train_text_to_image_lora.py",
            "sdxl": "examples/text_to_image/train_text_to_image_lora_sdxl.py",
        },
        "attention",
        ("tiny", "sd15", "sdxl"),
        diffusers_command,
        "encodes pictures and captions at every step: it has no caches",
    ),
    "sd-scripts": Peer(
        "sd-scripts",
        {"sd15": "train_network.py", "sdxl": "sdxl_train_network.py"},
        "attention+ff+proj",
        ("sd15", "sdxl"),  # its U-Net has the real sizes built in
        sd_scripts_command,
        "with its own caches on",
    ),
}


def environment(usual: dict[str, str], scratch: Path, python: str) -> dict[str, str]:
    """The environment of a peer's process: no network, no one else's caches, and the stand-in where it is needed."""
    own = {"HF_HOME": str(scratch / "hf"), "TOKENIZERS_PARALLELISM": "false"}
    if not has_torchvision(python):
        own["STAND_IN"] = str(stand_in.install(scratch / "python"))
    return {**usual, **own}


def has_torchvision(python: str) -> bool:
    """Whether that Python has the real torchvision."""
    command = [python, "-c", "import importlib.util as u, sys; sys.exit(u.find_spec('torchvision') is None)"]
    return subprocess.run(command, check=False).returncode == 0


def version(checkout: Path) -> str:
    """What git says of a checkout, empty where there is no git."""
    command = ["git", "-C", str(checkout), "describe", "--tags", "--always"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""
