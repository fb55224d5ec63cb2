"""Writes the finished demo model as a diffusers folder, with a sheet of samples and the training curve."""

import csv
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTokenizer

from trainer.demo.build_unet import make_scheduler, make_text_encoder, make_unet

SHEET_COLUMNS = 6
SHEET_TILE = 128
SAMPLE_STEPS, SAMPLE_GUIDANCE, SAMPLE_SEED = 20, 4.0, 7


def _edit_config(path: Path, changes: dict[str, str]) -> None:
    config = json.loads(path.read_text("utf-8")) | changes
    path.write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def export_base(work: Path, base_dir: Path) -> None:
    """Writes the averaged weights as fp16 into `base_dir`, beside it first and then by renaming."""
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    model = nn.ModuleDict({"unet": make_unet(), "text_encoder": make_text_encoder(tokenizer)})
    model.load_state_dict(load_file(work / "checkpoint" / "average.safetensors"))
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(work / "vae"),
        text_encoder=model["text_encoder"],
        tokenizer=tokenizer,
        unet=model["unet"],
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(torch.float16)
    new, old = base_dir.with_name(base_dir.name + ".new"), base_dir.with_name(base_dir.name + ".old")
    shutil.rmtree(new, ignore_errors=True)
    pipeline.save_pretrained(new, safe_serialization=True)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(work / "tokenizer" / name, new / "tokenizer" / name)
    # transformers loads the type that the configuration names; fp16 is only for the file's size.
    _edit_config(new / "text_encoder" / "config.json", {"dtype": "float32"})
    # diffusers notes the folder that the autoencoder came from, a path of this machine.
    _edit_config(new / "vae" / "config.json", {"_name_or_path": ""})
    shutil.rmtree(old, ignore_errors=True)
    if base_dir.exists():
        base_dir.rename(old)
    new.rename(base_dir)
    shutil.rmtree(old, ignore_errors=True)


def load_base(base_dir: Path) -> StableDiffusionPipeline:
    """The demo model in fp32, as a user's machine without a GPU loads it."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        base_dir,
        dtype=torch.float32,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        local_files_only=True,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample(pipeline: StableDiffusionPipeline, prompts: list[str], seed: int = SAMPLE_SEED) -> list[Image.Image]:
    """One 64x64 picture a prompt."""
    generators = [torch.Generator().manual_seed(seed + index) for index in range(len(prompts))]
    output = pipeline(
        prompts,
        num_inference_steps=SAMPLE_STEPS,
        guidance_scale=SAMPLE_GUIDANCE,
        height=64,
        width=64,
        generator=generators,
    )
    return output.images


def draw_sheet(images: list[Image.Image], captions: list[str], path: Path) -> None:
    """A grid of pictures, each with its caption underneath."""
    line = 16
    rows = -(-len(images) // SHEET_COLUMNS)
    sheet = Image.new("RGB", (SHEET_COLUMNS * SHEET_TILE, rows * (SHEET_TILE + line)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(9)
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = index % SHEET_COLUMNS * SHEET_TILE, index // SHEET_COLUMNS * (SHEET_TILE + line)
        sheet.paste(image.resize((SHEET_TILE, SHEET_TILE), Image.Resampling.BICUBIC), (left, top))
        draw.text((left + SHEET_TILE // 2, top + SHEET_TILE + line // 2), caption, fill="black", font=font, anchor="mm")
    sheet.save(path, optimize=True)


def write_sample_sheet(pipeline: StableDiffusionPipeline, prompts_path: Path, sheet_path: Path) -> None:
    """Samples every line of `prompts_path`."""
    prompts = prompts_path.read_text("utf-8").splitlines()
    draw_sheet(sample(pipeline, prompts), prompts, sheet_path)


def write_curve(progress_path: Path, folder: Path) -> None:
    """Writes training_curve.csv and training_curve.png (loss over samples) from a checkpoint's progress."""
    rows = json.loads(progress_path.read_text("utf-8"))["curve"]
    with (folder / "training_curve.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("step", "samples", "seconds", "loss", "learning_rate"))
        writer.writerows(rows)
    losses, last = [row[3] for row in rows], rows[-1][1]
    width, height, left, bottom = 640, 320, 48, 32
    top_loss = max(losses)
    canvas = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(11)

    def place(samples: float, loss: float) -> tuple[float, float]:
        return left + samples / last * (width - left - 16), (height - bottom) - loss / top_loss * (height - bottom - 16)

    for part in range(5):
        level = top_loss * part / 4
        _, y = place(0, level)
        draw.line(((left, y), (width - 16, y)), fill="#dddddd")
        draw.text((left - 6, y), f"{level:.2f}", fill="#444444", font=font, anchor="rm")
        x, _ = place(last * part / 4, 0)
        draw.text((x, height - bottom + 6), f"{last * part / 4000:.0f}k", fill="#444444", font=font, anchor="mt")
    draw.line([place(row[1], row[3]) for row in rows], fill="#1f5fbf", width=2)
    draw.text((width // 2, height - 2), "samples seen", fill="#444444", font=font, anchor="mb")
    draw.text((left + 6, 4), "training loss (mean of 100 steps)", fill="#444444", font=font)
    canvas.save(folder / "training_curve.png", optimize=True)
