"""Checkpoints of a run: captured after their step, written beside the steps that follow, told once they are on the disk."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from trainer import events
from trainer.checkpoints import save_checkpoint, snapshot
from trainer.resume import capture
from trainer.room import try_to_write
from trainer.validation import kept_steps

if TYPE_CHECKING:
    from trainer.setup import Emit, Run

SAVING_THREAD = "safelight-checkpoint"


@dataclass(frozen=True)
class Writing:
    """A checkpoint on its way to the disk. `saved_at`: when the one before it was saved, by the monotonic clock."""

    step: int
    saved_at: float
    path: Future[Path]


def save_state(run: Run, emit: Emit, *, beside: bool = False) -> None:
    """Writes a checkpoint to go on from, once the one before it is written; of several workers the first one does.

    It is the state of this moment, whatever comes after. `beside`: it may be written beside the steps that follow, and what
    becomes of it is told by `settle`; else it is on the disk when this returns.
    """
    if not run.workers.is_first:
        return
    settle(run, emit)
    write = partial(
        save_checkpoint,
        run.folder.checkpoints_dir,
        snapshot(capture(run)),
        keep_last=run.config.save.keep_last,
        protected=kept_steps(run),
    )
    before, captured = run.saved_at, time.monotonic()
    if beside and run.config.speed.background_saving:
        thread = ThreadPoolExecutor(1, SAVING_THREAD)
        run.writing = Writing(run.step, before, thread.submit(write))
        thread.shutdown(wait=False)  # it ends when this is written
    else:
        _tell(run, emit, run.step, write())
    run.saved_at = captured


def settle_if_written(run: Run, emit: Emit) -> None:
    """Tells of the checkpoint that was on its way, if it is written or could not be."""
    if run.writing is not None and run.writing.path.done():
        settle(run, emit)


def settle(run: Run, emit: Emit) -> None:
    """Waits for the checkpoint that is on its way to the disk, if any, and tells of it.

    A full disk is told and does not end the run; any other fault of the writing is raised here.
    """
    writing, run.writing = run.writing, None
    if writing is None:
        return

    def finish() -> None:
        _tell(run, emit, writing.step, writing.path.result())

    if not try_to_write(finish, f"the checkpoint of step {writing.step}", run.folder.path, emit):
        run.saved_at = writing.saved_at  # so that one that saves from a crash is due at once


def _tell(run: Run, emit: Emit, step: int, path: Path) -> None:
    emit(events.CheckpointSaved(step, path.relative_to(run.folder.path).as_posix()))
