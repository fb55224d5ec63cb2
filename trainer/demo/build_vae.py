"""Trains the demo's AutoencoderKL (0.77 M parameters, 64 px -> 16x16x4) on emoji of three drawing styles."""

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.demo.build_schedule import cosine_factor

log = logging.getLogger(__name__)

SCALING_FACTOR = 0.18215
CROP = 32
NUM_HELD_OUT = 128
BATCH_SIZE = 16


def make_vae() -> AutoencoderKL:
    """The untrained network."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=SCALING_FACTOR,
        mid_block_add_attention=False,
    )


def blend(pictures: Tensor, colours: Tensor) -> Tensor:
    """(B, 4, h, w) uint8 RGBA on (B, 3) colours in 0..1 -> (B, 3, h, w) in -1..1."""
    values = pictures.float() / 255
    alpha = values[:, 3:]
    return (values[:, :3] * alpha + colours[:, :, None, None] * (1 - alpha)) * 2 - 1


def random_colours(count: int, generator: torch.Generator) -> Tensor:
    """(count, 3) in 0..1: white for about 60%, else anything."""
    colours = torch.rand(count, 3, generator=generator)
    colours[torch.rand(count, generator=generator) < 0.6] = 1.0
    return colours


def random_crops(styles: list[Tensor], weights: list[float], generator: torch.Generator) -> Iterator[Tensor]:
    """Endless (B, 3, 32, 32) batches in -1..1 from RGBA stacks, each style drawn by its weight."""
    chances = torch.tensor(weights)
    while True:
        crops = []
        for style in torch.multinomial(chances, BATCH_SIZE, replacement=True, generator=generator).tolist():
            stack = styles[style]
            index = int(torch.randint(len(stack), (1,), generator=generator))
            top, left = torch.randint(stack.shape[2] - CROP + 1, (2,), generator=generator).tolist()
            crop = stack[index, :, top : top + CROP, left : left + CROP]
            crops.append(crop.flip(2) if torch.rand((), generator=generator) < 0.5 else crop)
        yield blend(torch.stack(crops), random_colours(BATCH_SIZE, generator))


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 + MSE + half the L1 of the picture's gradients, which keeps outlines sharp."""
    difference = output - target
    gradients = difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()
    return difference.abs().mean() + difference.square().mean() + 0.5 * gradients


@torch.no_grad()
def measure_psnr(vae: AutoencoderKL, images: Tensor) -> float:
    """Mean PSNR in dB over (N, 3, 64, 64) images in -1..1."""
    scores = []
    for batch in images.split(32):
        decoded = vae.decode(vae.encode(batch).latent_dist.mode()).sample.clamp(-1, 1)
        error = (decoded - batch).square().mean(dim=(1, 2, 3)) / 4
        scores.append(-10 * torch.log10(error.clamp_min(1e-8)))
    return float(torch.cat(scores).mean())


@torch.no_grad()
def fold_latent_statistics(vae: AutoencoderKL, images: Tensor) -> None:
    """Rescales quant_conv and post_quant_conv so that every channel of latents * 0.18215 has mean 0, deviation 1."""
    latents = torch.cat([vae.encode(batch).latent_dist.mode() for batch in images.split(64)])
    mean = latents.mean(dim=(0, 2, 3))
    gain = 1 / (SCALING_FACTOR * latents.std(dim=(0, 2, 3)))
    encode, decode = vae.quant_conv, vae.post_quant_conv
    # quant_conv gives 4 means, then 4 log variances; a gain g on the latent adds 2 log g to its log variance.
    encode.weight[:4] *= gain[:, None, None, None]
    encode.bias[:4] = (encode.bias[:4] - mean) * gain
    encode.bias[4:] += 2 * gain.log()
    decode.bias += (decode.weight[:, :, 0, 0] * mean).sum(1)
    decode.weight /= gain[None, :, None, None]


def train_vae(data_path: Path, folder: Path, *, minutes: float, device: str, seed: int = 0) -> None:
    """Trains for `minutes` on the stacks noto, flat and ink of `data_path`; writes the model folder and report.json."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    stacks = [
        stack.permute(0, 3, 1, 2).contiguous()
        for stack in map(load_file(data_path).__getitem__, ("noto", "flat", "ink"))
    ]
    # Every 13th picture of each style is kept out of training for the PSNR.
    held_out = torch.cat([stack[::13] for stack in stacks])[:: max(1, sum(map(len, stacks)) // 13 // NUM_HELD_OUT)]
    train = [stack[torch.arange(len(stack)) % 13 != 0] for stack in stacks]
    test_images = blend(held_out, torch.ones(len(held_out), 3)).to(device)
    vae = make_vae().to(device)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    batches = random_crops(train, [0.6, 0.15, 0.25], generator)
    started, step, fraction = time.monotonic(), 0, 0.0
    while fraction < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * cosine_factor(fraction, step, warmup_steps=100)
        batch = next(batches).to(device)
        with torch.autocast(device, dtype=torch.bfloat16):
            posterior = vae.encode(batch).latent_dist
            decoded = vae.decode(posterior.sample()).sample
        kl = 0.5 * (posterior.mean.float().square() + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        loss = reconstruction_loss(decoded.float(), batch) + 1e-4 * kl
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 500 == 0:
            elapsed = time.monotonic() - started
            log.info("vae step %d, %.0f s, loss %.4f, %.0f crops/s", step, elapsed, loss, step * BATCH_SIZE / elapsed)
        fraction = (time.monotonic() - started) / (60 * minutes)
    psnr = measure_psnr(vae, test_images)
    fold_latent_statistics(vae, blend(train[0][::4], torch.ones(len(train[0][::4]), 3)).to(device))
    report = {"steps": step, "held_out_psnr": psnr, "psnr_after_folding": measure_psnr(vae, test_images)}
    log.info("vae done: %s", report)
    vae.cpu().save_pretrained(folder)
    (folder / "report.json").write_text(json.dumps(report), "utf-8")


@torch.no_grad()
def encode_images(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """(N, 3, 64, 64) in -1..1 -> (N, 4, 16, 16) scaled latents, the posterior's mode."""
    batches = [vae.encode(batch).latent_dist.mode() for batch in images.split(64)]
    return (torch.cat(batches) * SCALING_FACTOR).contiguous()


def save_stacks(stacks: dict[str, Tensor], path: Path) -> None:
    """Writes named tensors as safetensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: stack.contiguous() for name, stack in stacks.items()}, path)
