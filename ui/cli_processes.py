"""Flags of the commands that train: how many GPUs, and which machines. The page has the first as a setting, and no machines."""

from __future__ import annotations

import argparse

from trainer.machines import ONE_MACHINE, Machines


def add_process_options(parser: argparse.ArgumentParser) -> None:
    """Adds --gpus and the flags of several machines."""
    group = parser.add_argument_group("several GPUs and machines (docs/several-gpus.md)")
    group.add_argument(
        "--gpus", type=int, metavar="N", help="train on N GPUs of this machine: the same as --training.num_processes N"
    )
    group.add_argument(
        "--nodes",
        type=int,
        metavar="N",
        help="machines that train together; start it on each (1: the rest has no meaning)",
    )
    group.add_argument("--node-rank", type=int, metavar="R", help="which of them this is, from 0; 0 writes the LoRA")
    group.add_argument(
        "--main-address", metavar="HOST:PORT", help="where machine 0 waits for the others, in a network of your own"
    )


def process_flags(options: argparse.Namespace) -> list[str]:
    """The flags of settings, with that of --gpus, which wins."""
    flags: list[str] = options.flags
    return flags if options.gpus is None else [*flags, "--training.num_processes", str(options.gpus)]


def machines_of(options: argparse.Namespace) -> Machines:
    """The machines that the flags name. Raises SafelightError where they don't fit together."""
    if options.nodes == 1 or (options.nodes, options.node_rank, options.main_address) == (None, None, None):
        return ONE_MACHINE
    return Machines(options.nodes or 1, options.node_rank or 0, options.main_address or "")
