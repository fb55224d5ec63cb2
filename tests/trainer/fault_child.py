"""The process that the fault tests kill: it has all of torch imported before it is forked, and trains one run."""

from __future__ import annotations

from pathlib import Path

import diffusers
import transformers

import trainer.loop  # what a run needs is imported once, in the process that the others are forked from
from tests import tiny
from trainer.jobs import Jobs
from trainer.workspace import Workspace

IMPORTED = (
    trainer.loop.train,
    tiny.tiny_sd15,
    *(diffusers.StableDiffusionPipeline, diffusers.StableDiffusionXLPipeline, diffusers.AutoencoderKL),
    *(diffusers.UNet2DConditionModel, diffusers.DPMSolverMultistepScheduler),
    *(transformers.CLIPTextModel, transformers.CLIPTextModelWithProjection, transformers.CLIPTokenizer),
)


def go_on(workspace: Path, run_id: str) -> None:
    """Lets a run go on to its end, as the command line does."""
    jobs = Jobs(Workspace.open(workspace))
    jobs.resume(run_id)
    jobs.wait()
