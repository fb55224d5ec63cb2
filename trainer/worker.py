"""One of the processes that train a run together. security/worker.py starts it; it hears of its task and of what the user
asks for by its input, and tells its events by lines of JSON."""

from __future__ import annotations

import json
import logging
import os
import secrets
import sys
import threading
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from security.errors import SafelightError
from security.workers import FAILED, LOST_OTHERS
from trainer import events
from trainer.crew import COMMANDS
from trainer.events import Event
from trainer.inputs import confine_run, find_inputs
from trainer.jobs import Control, error_message, load_trainer
from trainer.runs import RunFolder
from trainer.workspace import Workspace

if TYPE_CHECKING:
    from trainer.config.schema import TrainConfig
    from trainer.workers import Workers

logger = logging.getLogger("safelight.worker")

LONGEST_WAIT = timedelta(hours=2)
"""Samples and checkpoints are the first worker's alone, and the others wait for it. Who waits longer waits for a lost one."""
LONGEST_MEETING = timedelta(minutes=10)
"""So long the machines of a run may take to come together."""
CONNECTION_WORDS = ("gloo/transport", "NCCL")
"""Parts of what the libraries say that connect workers, on the CPU and on GPUs, when another one is gone."""
LEFT_ALONE = 5
"""Exit code where the program that started this one is gone."""


@dataclass(frozen=True)
class Task:
    """What this worker is: `rank` of `count` in all, `local_rank` of `local_count` here; where they meet."""

    run_id: str
    workspace: str
    rank: int
    count: int
    local_rank: int
    local_count: int
    file: str
    address: str
    port: int
    listens: int | None


def main(said: IO[str]) -> int:
    """Trains its part of a run. Returns its exit code."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    task = Task(**json.loads(sys.stdin.readline()))
    control = Control()
    threading.Thread(target=_listen, args=(control,), name="safelight-listener", daemon=True).start()
    return _run(task, control, said)


def _listen(control: Control) -> None:
    """Hears what the user asks for. Where nobody is left to train for, this process ends."""
    for line in sys.stdin:
        if (name := line.strip()) in COMMANDS:
            getattr(control, name).set()
    os._exit(LEFT_ALONE)


def _run(task: Task, control: Control, said: IO[str]) -> int:
    """Reports whatever ends it, so that only what ends without a word is taken for lost and started again."""
    workspace = Workspace(Path(task.workspace))
    try:
        return _train(task, workspace, control, said)
    except SafelightError as error:
        return _fail(said, str(error), "")
    except Exception as error:  # the process's last line: report, whatever it was
        if any(word in str(error) for word in CONNECTION_WORDS):  # a base's parts could not be brought together
            logger.warning("%s", error)
            return LOST_OTHERS
        error_id = secrets.token_hex(3).upper()
        logger.exception("run %s failed (id %s)", task.run_id, error_id)
        return _fail(said, error_message(error, workspace.logs_dir), error_id)


def _train(task: Task, workspace: Workspace, control: Control, said: IO[str]) -> int:
    folder = RunFolder.find(workspace, task.run_id)
    load_trainer(workspace)
    from trainer.loop import train
    from trainer.same_state import take_over_state
    from trainer.workers import LostWorkers, losing

    def emit(event: Event) -> None:
        if task.local_rank == 0:
            said.write(json.dumps(events.to_json(event)) + "\n")
        elif isinstance(event, events.Warned):
            logger.info("%s", event.message)

    try:
        config = folder.config()
        with losing():
            workers = _join(task, config)
        if task.address:
            take_over_state(workers, folder, config)
        inputs = find_inputs(config, workspace)
        sandboxed = confine_run(inputs, folder, workspace)
        emit(sandboxed)
        if not sandboxed.active:
            emit(events.Warned(f"This run is not in a sandbox. {sandboxed.detail}"))
        if workers.is_first_here and not workers.is_first:
            emit(events.Warned("This machine only helps: machine 0 writes the LoRA, samples and checkpoints."))
        train(config, inputs, folder, workspace, emit, control, workers)
        workers.wait_for_all()  # whoever leaves first is taken for lost
        return 0
    except LostWorkers as error:
        logger.warning("%s", error)
        return LOST_OTHERS


def _fail(said: IO[str], message: str, error_id: str) -> int:
    said.write(json.dumps({"failed": message, "error_id": error_id}) + "\n")
    return FAILED


def _join(task: Task, config: TrainConfig) -> Workers:
    """Meets the other workers. All connections are made here: in the sandbox none can be."""
    import torch
    import torch.distributed as together

    from trainer.device import choose_device
    from trainer.workers import Workers

    workers = Workers(task.rank, task.count, task.local_rank, task.local_count, config.training.shard_base)
    device = workers.device(choose_device(config.training.device))
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // task.local_count))
    nccl = device.type == "cuda" and together.is_nccl_available()
    store = _store(task)
    together.init_process_group(
        "cpu:gloo,cuda:nccl" if nccl else "gloo",
        store=store, rank=task.rank, world_size=task.count, timeout=LONGEST_WAIT,
    )  # fmt: skip
    together.all_reduce(torch.zeros(1, device=device))
    workers.wait_for_all()
    return workers


def _store(task: Task) -> Any:
    """Where the workers find each other. Raises SafelightError where those of other machines don't come."""
    import torch.distributed as together

    if not task.address:
        return together.FileStore(task.file, task.count)
    try:
        return together.TCPStore(
            task.address,
            task.port,
            task.count,
            is_master=task.rank == 0,
            timeout=LONGEST_MEETING,
            master_listen_fd=task.listens,
        )
    except together.DistError as error:
        logger.warning("%s", error)
        waited = f"{task.address} port {task.port} for {LONGEST_MEETING.total_seconds() / 60:g} minutes"
        if task.rank == 0:
            raise SafelightError(
                f"Waited at {waited}, but not all other machines came. Start the same command on each of them, with its own "
                "--node-rank, and see that they can reach this address: a firewall may be in between."
            ) from None
        raise SafelightError(
            f"Called {waited}, but machine 0 did not answer, or not all machines came. Start the same command there with "
            "--node-rank 0, and see that this machine can reach it: a firewall may be in between."
        ) from None
