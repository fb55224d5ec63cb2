"""A run on several processes, as the program that started it sees them.

It starts them, hears their events, tells them what the user asks for, and starts them again when one is lost. Imports no
torch.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import time
from collections.abc import Callable

from security.errors import SafelightError
from security.workers import FAILED, Crew, Meeting, lost_words
from trainer import events
from trainer.config.schema import TrainConfig
from trainer.events import Event
from trainer.jobs import Control
from trainer.machines import ONE_MACHINE, Machines
from trainer.runs import RunFolder
from trainer.workspace import Workspace

logger = logging.getLogger("safelight.workers")

MODULE = "trainer.worker"
MAX_LOSSES = 3
"""So often in a row, without a checkpoint in between, workers may be lost before the run is given up."""
MOMENT_SECONDS = 3.0
"""So long workers of other machines have to notice a loss before all meet again."""
COMMANDS = ("stop", "pause", "sample_now", "save_now")
"""What the user can ask for: names of events of a Control."""
_LISTEN_SECONDS = 0.1


class FailedWorker(SafelightError):
    """A worker could not go on. `error_id` finds the details in the log; "" for what the user can mend."""

    def __init__(self, message: str, error_id: str) -> None:
        self.error_id = error_id
        super().__init__(message)


def train_together(
    config: TrainConfig,
    folder: RunFolder,
    workspace: Workspace,
    emit: Callable[[Event], None],
    control: Control,
    machines: Machines = ONE_MACHINE,
) -> None:
    """Trains with `training.num_processes` processes on each of the machines. Raises FailedWorker, and SafelightError when
    workers are lost again and again."""
    saved, over = 0, False
    if machines.listens:
        emit(
            events.Warned(
                f"This machine waits at {machines.address} for the others, without a password: whoever reaches that port "
                "can join the run. Let no machines but those of the run reach it."
            )
        )

    def noted(event: Event) -> None:
        nonlocal saved, over
        if isinstance(event, events.CheckpointSaved):
            saved = max(saved, event.step)
        over = over or isinstance(event, events.TERMINAL)
        emit(event)

    _refuse_too_many(config.training.num_processes)
    losses = lost_at = 0
    while (lost := _session(config, folder, workspace, noted, control, machines)) and not over:
        losses = 1 if saved > lost_at else losses + 1
        lost_at = saved
        if losses >= MAX_LOSSES:
            raise SafelightError(
                f"Workers were lost {losses} times without a checkpoint in between, at last: {lost}. Look at the memory of "
                "this machine and at its log, then continue: the run goes on from its last checkpoint."
            )
        emit(events.Warned(f"Lost: {lost}. All workers start again, from the last checkpoint."))
        emit(events.Preparing("Starting the workers again"))
        if machines.count > 1:
            time.sleep(MOMENT_SECONDS)


def _refuse_too_many(here: int) -> None:
    """Raises SafelightError for more processes than this machine has processors; two are always allowed."""
    processors = os.cpu_count() or 1
    if here > max(2, processors):
        raise SafelightError(
            f"training.num_processes is {here}, but this machine has {processors} processors, and each process needs one. "
            f"Set it to {processors} or less."
        )


def _session(
    config: TrainConfig,
    folder: RunFolder,
    workspace: Workspace,
    emit: Callable[[Event], None],
    control: Control,
    machines: Machines,
) -> str:
    """Starts the workers and waits for their end. Returns which were lost; "" when the run has ended."""
    meeting = machines.meeting()
    crew = None
    try:
        if machines.count > 1:
            emit(events.Preparing(f"Waiting for the other machines at {machines.address}"))
        crew = Crew(MODULE, _tasks(config, folder, workspace, machines, meeting), meeting, _variables())
        codes = _follow(crew, emit, control)
    finally:
        if crew is not None:
            crew.end()
        meeting.close()
    return "" if codes[0] == 0 else lost_words(codes)


def _tasks(
    config: TrainConfig, folder: RunFolder, workspace: Workspace, machines: Machines, meeting: Meeting
) -> list[dict[str, object]]:
    """What each worker of this machine is told first; see worker.Task."""
    here = config.training.num_processes
    return [
        {
            "run_id": folder.run_id,
            "workspace": str(workspace.path),
            "rank": machines.number * here + number,
            "count": machines.count * here,
            "local_rank": number,
            "local_count": here,
            "file": str(meeting.file),
            "address": meeting.address,
            "port": meeting.port,
        }
        for number in range(here)
    ]


def _variables() -> dict[str, str]:
    """What workers need besides the scrubbed environment. NCCL connects everything at once: later the sandbox forbids it."""
    kept = {name: os.environ[name] for name in ("OMP_NUM_THREADS",) if name in os.environ}
    return {"NCCL_RUNTIME_CONNECT": "0", **kept}


def _follow(crew: Crew, emit: Callable[[Event], None], control: Control) -> list[int]:
    """Hears the workers until all have ended; returns their exit codes. Raises FailedWorker as soon as that is known.

    Until the first word of a worker they are only waiting for each other: then an end that is asked for is at once.
    """
    failed: FailedWorker | None = None
    have_met = False
    told: set[str] = set()
    while True:
        codes = crew.ended()
        for number, line, is_error in _heard(crew):
            if is_error:
                logger.info("worker %d: %s", number + 1, line)
                continue
            have_met = True
            try:
                values = json.loads(line)
            except ValueError:  # the last line of one that was killed while it wrote
                logger.info("worker %d said half a line", number + 1)
                continue
            if "failed" in values:
                failed = failed or FailedWorker(values["failed"], values["error_id"])
            else:
                emit(events.from_json(values))
        if codes is not None:
            if failed is not None and FAILED in codes:
                raise failed
            return codes
        if control.ends and not have_met:
            emit(events.Paused(0) if control.pause.is_set() else events.Finished(0, stopped=True))
            return [0]
        _pass_on(crew, control, told)


def _heard(crew: Crew) -> list[tuple[int, str, bool]]:
    """Everything that was said since the last time; waits a moment for the first of it."""
    found = []
    try:
        found.append(crew.heard.get(timeout=_LISTEN_SECONDS))
        while True:
            found.append(crew.heard.get_nowait())
    except queue.Empty:
        return found


def _pass_on(crew: Crew, control: Control, told: set[str]) -> None:
    """Tells the workers what the user asked for since the last time."""
    for name in COMMANDS:
        request = getattr(control, name)
        if not request.is_set() or name in told:
            continue
        crew.say(name)
        if name in ("stop", "pause"):
            told.add(name)
        else:
            request.clear()
