"""Trains the demo's UNet (9.4 M parameters) and text encoder (0.8 M) together, by v-prediction on stored latents."""

import json
import logging
import random
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from trainer.demo.build_data import RENDER_SIZE, Emoji, IconSet, draw_variants, make_caption, useful_tags
from trainer.demo.build_schedule import cosine_factor
from trainer.demo.build_vae import encode_images

log = logging.getLogger(__name__)

NUM_WHITE, NUM_COLOURED = 20, 12
NUM_TIMESTEPS = 1000
CHECKPOINT_SECONDS = 240.0
LOG_EVERY = 100


@dataclass(frozen=True)
class Recipe:
    """What differs between a CPU and a GPU."""

    batch_size: int
    learning_rate: float
    ema_decay: float
    compiled: bool
    attention: SDPBackend


RECIPES = {
    "cpu": Recipe(16, 1e-3, 0.998, False, SDPBackend.MATH),
    "cuda": Recipe(512, 1.5e-3, 0.9995, True, SDPBackend.FLASH_ATTENTION),
}


@dataclass
class Progress:
    """What a checkpoint remembers beside tensors. `curve` rows: step, samples, seconds, mean loss, learning rate."""

    step: int = 0
    samples: int = 0
    seconds: float = 0.0
    curve: list[tuple[int, int, float, float, float]] = field(default_factory=list)


def make_scheduler() -> DDIMScheduler:
    """SD's betas with v-prediction; trailing steps, so that sampling starts at the noisiest trained timestep."""
    return DDIMScheduler(
        num_train_timesteps=NUM_TIMESTEPS,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def make_unet() -> UNet2DConditionModel:
    """The untrained UNet: 16x16, 8x8 and 4x4, cross-attention on the two lower levels."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(48, 96, 192),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The untrained text encoder: two layers of 128."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            projection_dim=128,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def encode_subjects(subjects: list[Emoji], icons: IconSet, vae: AutoencoderKL, path: Path, *, seed: int = 0) -> None:
    """Writes the latents of every subject's variants, (N, 32, 4, 16, 16), and beside them the colour words as JSON."""
    rng = random.Random(seed)
    latents, colours = [], []
    for subject in subjects:
        variants = draw_variants(
            icons.render(subject.code, RENDER_SIZE), rng, num_white=NUM_WHITE, num_coloured=NUM_COLOURED
        )
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image, _ in variants])).permute(0, 3, 1, 2)
        latents.append(encode_images(vae, pixels.float() / 127.5 - 1))
        colours.append([colour for _, colour in variants])
    save_file({"latents": torch.stack(latents).contiguous()}, path)
    path.with_suffix(".json").write_text(json.dumps(colours), "utf-8")


class Batches:
    """Draws latents and tokenised captions: 70% on white, 30% on a colour that the caption names."""

    def __init__(self, subjects: list[Emoji], latents_path: Path, tokenizer: CLIPTokenizer) -> None:
        self._subjects, self._tokenizer = subjects, tokenizer
        self._tags = useful_tags(subjects)
        self._latents = load_file(latents_path)["latents"]
        self._colours = json.loads(latents_path.with_suffix(".json").read_text("utf-8"))
        self._rng = random.Random()
        self._queue: list[int] = []

    def seed(self, value: int) -> None:
        """Starts the random draws afresh."""
        self._rng.seed(value)
        self._queue.clear()

    def _next_subject(self) -> int:
        # A shuffled deck instead of free draws: every subject is seen equally often.
        if not self._queue:
            self._queue = self._rng.sample(range(len(self._subjects)), len(self._subjects))
        return self._queue.pop()

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """(count, 4, 16, 16) latents and (count, 77) token ids."""
        chosen, captions = [], []
        for _ in range(count):
            subject = self._next_subject()
            first, last = (0, NUM_WHITE) if self._rng.random() < 0.7 else (NUM_WHITE, NUM_WHITE + NUM_COLOURED)
            variant = self._rng.randrange(first, last)
            label = self._subjects[subject].label
            chosen.append(self._latents[subject, variant])
            captions.append(make_caption(label, self._tags[label], self._colours[subject][variant], self._rng))
        tokens = self._tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        return torch.stack(chosen), tokens.input_ids


def draw_timesteps(count: int) -> Tensor:
    """(count,) timesteps, denser at high noise, where the caption alone decides what the picture shows."""
    return (NUM_TIMESTEPS * torch.rand(count) ** 0.65).long().clamp_max(NUM_TIMESTEPS - 1)


def v_loss(unet: nn.Module, text: nn.Module, latents: Tensor, tokens: Tensor, signal: Tensor) -> Tensor:
    """v-prediction (Salimans and Ho 2022) of (B, 4, h, w) latents; `signal` is alphas_cumprod.

    The implied weight of x0, SNR + 1, is capped at 6 (after Hang et al. 2023): fine noise must not drown the rest.
    """
    timesteps = draw_timesteps(len(latents)).to(latents.device)
    noise = torch.randn_like(latents)
    amount = signal[timesteps][:, None, None, None]
    noisy = amount.sqrt() * latents + (1 - amount).sqrt() * noise
    target = amount.sqrt() * noise - (1 - amount).sqrt() * latents
    states = text(tokens).last_hidden_state
    output = unet(noisy, timesteps, states).sample
    snr_plus_one = 1 / (1 - signal[timesteps])
    weight = snr_plus_one.clamp_max(6.0) / snr_plus_one
    return (weight * (output.float() - target).square().mean(dim=(1, 2, 3))).mean()


class Checkpoint:
    """Model, averaged model, optimizer moments and progress in one folder that is replaced as a whole."""

    def __init__(
        self, folder: Path, model: nn.Module, average: dict[str, Tensor], optimizer: torch.optim.AdamW
    ) -> None:
        self._folder, self._model, self._average, self._optimizer = folder, model, average, optimizer

    def save(self, progress: Progress) -> None:
        """Writes beside the old folder, then swaps, so that a kill leaves a whole checkpoint."""
        new, old = self._folder.with_suffix(".new"), self._folder.with_suffix(".old")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        save_file(
            {name: value.detach().clone().contiguous() for name, value in self._model.named_parameters()},
            new / "model.safetensors",
        )
        save_file({name: value.contiguous() for name, value in self._average.items()}, new / "average.safetensors")
        moments = {
            f"{kind}.{name}": self._optimizer.state[value][kind].contiguous()
            for name, value in self._model.named_parameters()
            for kind in ("exp_avg", "exp_avg_sq", "step")
        }
        save_file(moments, new / "optimizer.safetensors")
        (new / "progress.json").write_text(json.dumps(asdict(progress)), "utf-8")
        shutil.rmtree(old, ignore_errors=True)
        if self._folder.exists():
            self._folder.rename(old)
        new.rename(self._folder)

    def load(self) -> Progress:
        """Restores everything in place; a fresh Progress where there is no checkpoint."""
        if not self._folder.exists():
            return Progress()
        weights = load_file(self._folder / "model.safetensors")
        average = load_file(self._folder / "average.safetensors")
        moments = load_file(self._folder / "optimizer.safetensors")
        with torch.no_grad():
            for name, value in self._model.named_parameters():
                value.copy_(weights[name])
                self._average[name].copy_(average[name])
                state = self._optimizer.state[value]
                for kind in ("exp_avg", "exp_avg_sq", "step"):
                    state[kind] = moments[f"{kind}.{name}"].to(value.device)
        saved = json.loads((self._folder / "progress.json").read_text("utf-8"))
        return Progress(saved["step"], saved["samples"], saved["seconds"], [tuple(row) for row in saved["curve"]])


def train_unet(
    batches: Batches, tokenizer: CLIPTokenizer, folder: Path, *, minutes: float, device: str, seed: int = 0
) -> None:
    """Trains until `minutes` are used up, counting the time of earlier runs; writes checkpoints into `folder`."""
    recipe = RECIPES[device]
    torch.manual_seed(seed)
    model = nn.ModuleDict({"unet": make_unet(), "text_encoder": make_text_encoder(tokenizer)}).to(device)
    parameters = list(model.parameters())
    average = {name: value.detach().clone() for name, value in model.named_parameters()}
    averages = list(average.values())
    optimizer = torch.optim.AdamW(parameters, lr=0.0, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    checkpoint = Checkpoint(folder, model, average, optimizer)
    progress = checkpoint.load()
    torch.manual_seed(seed + progress.step)
    batches.seed(seed + progress.step)
    # Denormal numbers in the optimizer's moments would slow a CPU down.
    torch.set_flush_denormal(True)
    signal = make_scheduler().alphas_cumprod.to(device)
    loss_function = torch.compile(v_loss) if recipe.compiled else v_loss
    earlier, started = progress.seconds, time.monotonic()
    saved_at, recent = started, []
    while progress.seconds < 60 * minutes:
        rate = recipe.learning_rate * cosine_factor(progress.seconds / (60 * minutes), progress.step, warmup_steps=200)
        for group in optimizer.param_groups:
            group["lr"] = rate
        latents, tokens = (part.to(device) for part in batches.draw(recipe.batch_size))
        # The fused attention's bf16 backward on the CPU takes a quarter of the step, plain products far less.
        with sdpa_kernel(recipe.attention):
            with torch.autocast(device, dtype=torch.bfloat16):
                loss = loss_function(model["unet"], model["text_encoder"], latents, tokens, signal)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        decay = min(recipe.ema_decay, (1 + progress.step) / (10 + progress.step))
        torch._foreach_lerp_(averages, [value.detach() for value in parameters], 1 - decay)
        recent.append(loss.detach())
        progress.step += 1
        progress.samples += recipe.batch_size
        now = time.monotonic()
        progress.seconds = earlier + now - started
        if progress.step % LOG_EVERY == 0:
            mean, recent = float(torch.stack(recent).mean()), []
            progress.curve.append(
                (progress.step, progress.samples, round(progress.seconds, 1), round(mean, 5), round(rate, 7))
            )
            speed = progress.samples / progress.seconds
            log.info(
                "step %d, %.0f s, loss %.4f, lr %.2e, %.1f img/s", progress.step, progress.seconds, mean, rate, speed
            )
        if now - saved_at > CHECKPOINT_SECONDS:
            checkpoint.save(progress)
            saved_at = now
    checkpoint.save(progress)


@torch.no_grad()
def first_step_error(unet: nn.Module, text: nn.Module, latents: Tensor, tokens: Tensor) -> float:
    """Mean square error of x0 predicted from pure noise level t=999: how much of a picture the caption alone brings."""
    signal = make_scheduler().alphas_cumprod[-1]
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
    timesteps = torch.full((len(latents),), NUM_TIMESTEPS - 1)
    output = unet(noisy, timesteps, text(tokens).last_hidden_state).sample
    predicted = signal.sqrt() * noisy - (1 - signal).sqrt() * output
    return float((predicted - latents).square().mean())
