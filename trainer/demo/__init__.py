"""The embedded demo: a tiny Stable Diffusion model, an ink dataset and the scripts that built them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.config.schema import TrainConfig

DEMO_DIR = Path(__file__).resolve().parent
BASE_DIR = DEMO_DIR / "base"
INK_DIR = DEMO_DIR / "ink"
INK_HELDOUT_DIR = DEMO_DIR / "ink_heldout"
DATASETS = {"ink": INK_DIR, "ink_heldout": INK_HELDOUT_DIR}
"""Embedded datasets by the name that settings use."""
RESOLUTION = 64
"""Side in pixels that the embedded base was trained at."""


def demo_prompts() -> tuple[str, ...]:
    """Prompts of things that are not in the ink dataset: what the demo draws before and after."""
    lines = (DEMO_DIR / "prompts_ink.txt").read_text(encoding="utf-8").splitlines()
    return tuple(line.strip() for line in lines if line.strip())


def demo_config(steps: int = 200) -> TrainConfig:
    """The run that "Try with the sample set" and `launch.py demo` train: an ink style on the embedded base."""
    from trainer.config.files import parse_config

    return parse_config(
        {
            "name": "ink_demo",
            "model": {"base": "demo"},
            "dataset": {"folder": "ink", "resolution": RESOLUTION, "caption_dropout_rate": 0.05},
            "optimizer": {"learning_rate": 1e-3, "schedule": "cosine", "min_learning_rate_ratio": 0.1},
            "training": {"max_train_steps": steps, "batch_size": 4},
            "sample": {
                "prompts": list(demo_prompts()),
                "every_n_steps": max(1, steps // 4),
                "width": RESOLUTION,
                "height": RESOLUTION,
                "guidance_scale": 4.0,
            },
            "validation": {"folder": "ink_heldout", "every_n_steps": max(1, steps // 4)},
            "save": {"every_n_steps": max(1, steps // 2)},
        }
    )
