"""Builds the demo's base model (trainer/demo/base) and ink dataset (trainer/demo/ink) from emoji packages.

The packages are fetched by hand, once, into any folder outside the repository:

    mkdir packages && cd packages
    for name in @iconify-json/noto@1.2.9 @iconify-json/fluent-emoji-flat@1.2.6 \\
                @iconify-json/fluent-emoji-high-contrast@1.2.6 emojibase-data@17.0.0; do
        file=$(npm pack --silent "$name")
        mkdir "${file%.tgz}" && tar xzf "$file" -C "${file%.tgz}" --strip-components=1
    done

Then, from the repository root (all stages, or `--stage` for one; an interrupted `unet` stage goes on where it stopped):

    python -m trainer.demo.build --packages packages --work work --minutes 95 --device cpu

On a CPU, set these before Python starts, or glibc gives every large tensor back to the kernel at half the speed:
MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456
"""

import argparse
import logging
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from trainer.demo import BASE_DIR, DEMO_DIR
from trainer.demo.build_data import (
    FLAT,
    IMAGE_SIZE,
    INK,
    NAMES,
    NOTO,
    Emoji,
    IconSet,
    find_packages,
    read_emoji,
    read_subjects,
)
from trainer.demo.build_export import export_base, load_base, write_curve, write_sample_sheet
from trainer.demo.build_ink import write_ink_datasets
from trainer.demo.build_tokenizer import build_tokenizer
from trainer.demo.build_unet import Batches, encode_subjects, first_step_error, train_unet
from trainer.demo.build_vae import save_stacks, train_vae

log = logging.getLogger(__name__)

STAGES = ("data", "tokenizer", "vae", "unet", "export")


def chosen_subjects(emoji: list[Emoji], *, core_only: bool) -> list[Emoji]:
    """The emoji of subjects.txt. Raises ValueError that names labels which emojibase lacks."""
    by_label = {one.label: one for one in emoji}
    labels = read_subjects(core_only=core_only)
    unknown = [label for label in labels if label not in by_label]
    if unknown:
        raise ValueError(f"subjects.txt has labels that emojibase lacks: {', '.join(unknown)}. Correct or remove them.")
    return [by_label[label] for label in labels]


def build_data(packages: dict[str, Path], emoji: list[Emoji], work: Path) -> None:
    """Writes vae.safetensors, all emoji of three styles as (N, 64, 64, 4) RGBA for the VAE, and the ink dataset."""
    stacks = {
        name: torch.from_numpy(IconSet(packages[package]).render_all(emoji, IMAGE_SIZE))
        for name, package in (("noto", NOTO), ("flat", FLAT), ("ink", INK))
    }
    log.info("rendered %s", {name: len(stack) for name, stack in stacks.items()})
    save_stacks(stacks, work / "vae.safetensors")
    write_ink_datasets(emoji, IconSet(packages[INK]), DEMO_DIR)


def build_unet(packages: dict[str, Path], subjects: list[Emoji], work: Path, *, minutes: float, device: str) -> None:
    """Encodes the subjects once, then trains or goes on training."""
    latents_path = work / "latents.safetensors"
    if not latents_path.exists():
        vae = AutoencoderKL.from_pretrained(work / "vae")
        encode_subjects(subjects, IconSet(packages[NOTO]), vae, latents_path)
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    batches = Batches(subjects, latents_path, tokenizer)
    train_unet(batches, tokenizer, work / "checkpoint", minutes=minutes, device=device)


def export(subjects: list[Emoji], work: Path, base_dir: Path) -> None:
    """Writes the model folder, the sample sheet and the training curve, and logs the error of x0 from the caption alone."""
    export_base(work, base_dir)
    pipeline = load_base(base_dir)
    latents = load_file(work / "latents.safetensors")["latents"][:, 0]
    labels = [one.label for one in subjects]
    tokens = pipeline.tokenizer(labels, padding="max_length", return_tensors="pt").input_ids
    log.info("x0 error at t=999: %.4f", first_step_error(pipeline.unet, pipeline.text_encoder, latents, tokens))
    write_sample_sheet(pipeline, DEMO_DIR / "prompts.txt", base_dir.parent / "sample_sheet.png")
    write_curve(work / "checkpoint" / "progress.json", base_dir.parent)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Builds the demo's base model from unpacked emoji packages.")
    parser.add_argument("--packages", type=Path, required=True, help="folder with the unpacked npm packages")
    parser.add_argument("--work", type=Path, required=True, help="folder for intermediate files")
    parser.add_argument("--minutes", type=float, default=95.0, help="time for the UNet and text encoder")
    parser.add_argument("--vae-minutes", type=float, default=9.0, help="time for the VAE")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, default=BASE_DIR, help="folder of the finished model")
    parser.add_argument("--stage", choices=STAGES, help="run only this stage")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    packages, work = find_packages(arguments.packages), arguments.work
    emoji = read_emoji(packages[NAMES])
    subjects = chosen_subjects(emoji, core_only=arguments.device == "cpu")
    stages = {
        "data": lambda: build_data(packages, emoji, work),
        "tokenizer": lambda: build_tokenizer(emoji, read_subjects(core_only=False), work / "tokenizer"),
        "vae": lambda: train_vae(
            work / "vae.safetensors", work / "vae", minutes=arguments.vae_minutes, device=arguments.device
        ),
        "unet": lambda: build_unet(packages, subjects, work, minutes=arguments.minutes, device=arguments.device),
        "export": lambda: export(subjects, work, arguments.output),
    }
    for name in STAGES if arguments.stage is None else (arguments.stage,):
        log.info("stage %s", name)
        stages[name]()


if __name__ == "__main__":
    main()
