"""Draws the demo's LoRA dataset: black ink icons with captions, and a few more that training never sees."""

import random
import shutil
from pathlib import Path

from PIL import Image

from trainer.demo.build_data import Emoji, IconSet, read_subjects, useful_tags

INK_SIZE = 256
TRIGGER = "inkstyle"
# All known to the base model (subjects.txt); none is an evaluation prompt (prompts.txt).
TRAINING = (
    "rabbit face", "monkey face", "tiger face", "cow face", "mouse face", "koala", "bear", "wolf", "duck", "eagle",
    "fish", "crab", "snail", "honeybee", "rose", "cactus", "evergreen tree", "grapes", "lemon", "pineapple",
    "carrot", "croissant", "cupcake", "ice cream", "hot beverage", "winking face", "face with tongue", "skull", "ghost",
    "robot",
)  # fmt: skip
HELD_OUT = ("pig face", "unicorn", "parrot", "dolphin", "palm tree", "pear", "french fries", "star-struck")


def _draw(icons: IconSet, code: str) -> Image.Image:
    picture = icons.render(code, INK_SIZE)
    canvas = Image.new("RGB", picture.size, "white")
    canvas.paste(picture, (0, 0), picture)
    return canvas


def _write(labels: tuple[str, ...], emoji: list[Emoji], icons: IconSet, folder: Path) -> None:
    rng = random.Random(0)
    by_label = {one.label: one for one in emoji}
    tags = useful_tags([by_label[label] for label in dict.fromkeys((*read_subjects(core_only=False), *labels))])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for index, label in enumerate(labels):
        name = f"{index + 1:02d}-{label.replace(' ', '-')}"
        _draw(icons, by_label[label].code).convert("L").convert("RGB").save(folder / f"{name}.png", optimize=True)
        extra = rng.sample(tags[label], min(len(tags[label]), rng.randint(1, 3))) if index % 2 else []
        (folder / f"{name}.txt").write_text(", ".join([TRIGGER, label, *extra]) + "\n", "utf-8")


def write_ink_datasets(emoji: list[Emoji], icons: IconSet, demo_dir: Path) -> None:
    """Writes ink/ (30 pictures) and ink_heldout/ (8 pictures): PNG 256x256 RGB and a caption file of the same name."""
    _write(TRAINING, emoji, icons, demo_dir / "ink")
    _write(HELD_OUT, emoji, icons, demo_dir / "ink_heldout")
