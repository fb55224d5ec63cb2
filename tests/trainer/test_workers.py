"""How several workers share a step: every picture with exactly one of them, whatever their number; refusals."""

from __future__ import annotations

import io
import itertools
import json
import socket
import tempfile
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from security.environment import temporary_folder
from security.errors import SafelightError
from security.workers import FAILED, lost_words, meet_at, meet_here, split_address
from trainer import worker
from trainer.config.files import ConfigError, parse_config
from trainer.dataset.batches import Sample
from trainer.jobs import Control
from trainer.machines import Machines
from trainer.worker import Task
from trainer.workers import ALONE, Workers
from trainer.workspace import Workspace


def batches_of(*sizes: int) -> list[list[Sample]]:
    numbers = itertools.count()
    return [[Sample(next(numbers), 0, f"s{number}") for _ in range(size)] for number, size in enumerate(sizes)]


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("sizes", [(4,), (3,), (1,), (2, 2), (3, 1, 3), (1, 1, 1, 1), (5, 2, 5, 1, 5)])
def test_every_picture_of_a_step_is_with_exactly_one_worker(sizes, count: int, sharded: bool) -> None:
    batches = batches_of(*sizes)
    shares = [Workers(rank, count, sharded=sharded).share(batches) for rank in range(count)]
    counted = [sample.index for some in shares for share in some if share.counts for sample in share.samples]
    assert sorted(counted) == list(range(sum(sizes)))
    for share in itertools.chain(*shares):
        assert share.samples and all(sample in batches[share.number] for sample in share.samples)
    if sharded:  # they compute layer by layer together: all have to come as often
        assert {len(some) for some in shares} == {len(batches)} or count == 1


def test_whole_batches_stay_whole_where_there_are_enough() -> None:
    batches = batches_of(2, 2, 2)
    assert [share.samples for share in Workers(0, 2).share(batches)] == [batches[0], batches[2]]
    assert [share.samples for share in Workers(1, 2).share(batches)] == [batches[1]]


def test_the_one_that_short_batches_leave_idle_is_another_each_time() -> None:
    shares = [Workers(rank, 3).share(batches_of(2, 2)) for rank in range(3)]
    assert sorted(len(some) for some in shares) == [1, 1, 2]


def test_one_process_says_nothing_to_anybody() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    total = torch.tensor(3.0)
    assert ALONE.reduce([parameter], total) is total and parameter.grad is None
    assert ALONE.gathered({0: 1.0, 1: 2.0}, 2) == (1.0, 2.0) and ALONE.told(b"x") == b"x"
    ALONE.wait_for_all()


@pytest.mark.parametrize("local_count", [1, 2, 5])
def test_what_is_encoded_once_has_one_writer_on_each_machine(local_count: int) -> None:
    workers = [Workers(local_rank=rank, local_count=local_count) for rank in range(local_count)]
    for name in ("a", "b", "\udcff", "red circle"):
        assert sum(one.is_mine(name) for one in workers) == 1


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"num_processes": 3, "batch_size": 2}, r"num_processes is 3, but a step has 2 pictures .*Set training.batch_size to 3"),
        ({"num_processes": 2}, r"a step has 1 picture \("),
        ({"num_processes": 2, "batch_size": 2, "device": "cuda:1"}, r"training.device is cuda:1: .*Set training.device to auto"),
        ({"num_processes": 2, "batch_size": 2, "device": "mps"}, r"training.device is mps"),
        ({"shard_base": True, "max_weight_norm": 1.0}, r"training.max_weight_norm is 1 and training.shard_base is on"),
        ({"num_processes": 65}, r"num_processes"),
    ],
)  # fmt: skip
def test_what_can_not_be_shared_is_refused_with_the_way_out(training: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_config({"training": training})


@pytest.mark.parametrize("memory", [{"base_format": "nf4"}, {"offload": "blocks"}, {"offload": "activations"}])
def test_only_a_whole_base_that_stays_can_be_divided(memory: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"and training\.shard_base is on"):
        parse_config({"memory": memory, "training": {"shard_base": True}})


@pytest.mark.parametrize("adapter", ["dora", "oft", "boft"])
def test_what_needs_a_whole_base_takes_none_in_parts(adapter: str) -> None:
    with pytest.raises(ConfigError, match=f"lora.adapter is {adapter} and training.shard_base is on"):
        parse_config({"lora": {"adapter": adapter}, "training": {"shard_base": True}})


def test_more_gpus_than_there_are_are_refused() -> None:
    count = torch.cuda.device_count() + 2
    with pytest.raises(SafelightError, match=rf"num_processes is {count}, but torch sees {count - 2} NVIDIA GPU"):
        Workers(0, count, 0, count).device(torch.device("cuda"))
    with pytest.raises(SafelightError, match="several processes can't share one device"):
        Workers(0, 2, 0, 2).device(torch.device("mps"))


@pytest.mark.parametrize(
    ("count", "number", "address", "words"),
    [
        (2, 2, "127.0.0.1:29500", "counted from 0"),
        (2, 0, "", "no address of a machine"),
        (2, 0, "host:80", "no address of a machine"),
        (1, 0, "127.0.0.1:29500", "needs --nodes"),
    ],
)
def test_machines_that_make_no_sense_are_refused(count: int, number: int, address: str, words: str) -> None:
    with pytest.raises(SafelightError, match=words):
        Machines(count, number, address)


def test_workers_of_one_machine_meet_where_nobody_else_can_come() -> None:
    meeting = meet_here()
    assert meeting.listens is None and not meeting.address and meeting.interface.startswith("lo")
    assert meeting.folder.stat().st_mode & 0o777 == 0o700
    meeting.close()
    assert not meeting.folder.exists()


def test_what_a_killed_program_left_of_a_meeting_goes_with_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    first = meet_here()
    first.lock.close()  # as the system does for a program that is killed
    second = meet_here()
    assert not first.folder.exists() and second.folder.exists()
    used, lock = temporary_folder("safelight-workers-")
    assert second.folder.exists()  # it is in use
    lock.close()
    second.close()
    assert list(tmp_path.iterdir()) == [used]


def task_of(run_id: str, workspace: Path, *, rank: int = 0, port: int = 0) -> Task:
    return Task(run_id, str(workspace), rank, 2, 0, 1, "", "127.0.0.1", port, None)


def test_a_fault_before_the_workers_have_met_is_told_and_not_taken_for_a_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the run would be started again and again, and blame the memory."""
    workspace = Workspace.open(tmp_path / "space")
    said = io.StringIO()
    assert worker._run(task_of("gone", workspace.path), Control(), said) == FAILED
    assert "gone" in json.loads(said.getvalue())["failed"] and json.loads(said.getvalue())["error_id"] == ""

    run = workspace.runs_dir / "there"
    run.mkdir()
    (run / "config.toml").write_text("", encoding="utf-8")
    (run / "events.jsonl").write_text("", encoding="utf-8")

    def broken(workspace: Workspace) -> None:
        raise ImportError("a package is missing")

    monkeypatch.setattr(worker, "load_trainer", broken)
    said = io.StringIO()
    assert worker._run(task_of("there", workspace.path), Control(), said) == FAILED
    told = json.loads(said.getvalue())
    assert "(ImportError)" in told["failed"] and len(told["error_id"]) == 6


@pytest.mark.parametrize(("rank", "words"), [(0, "not all other machines came"), (1, "machine 0 did not answer")])
def test_machines_that_do_not_come_are_told_in_words(
    rank: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "LONGEST_MEETING", timedelta(seconds=1))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(SafelightError, match=words):
        worker._store(task_of("run", tmp_path, rank=rank, port=port))


def test_machines_meet_at_the_address_that_was_given_and_nowhere_else() -> None:
    first = meet_at("127.0.0.1", 0, listen=True)
    assert first.listens is not None and first.listens.getsockname()[0] == "127.0.0.1"
    first.close()
    for address in ("0.0.0.0", "::"):
        with pytest.raises(SafelightError, match="would let in every network"):
            meet_at(address, 29500, listen=True)
    with pytest.raises(SafelightError, match=r"can't wait there \(Cannot assign requested address\)"):
        meet_at("192.0.2.1", 29500, listen=True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SafelightError, match=r"can't wait there \(Address already in use\)"):
            meet_at("127.0.0.1", port, listen=True)
    if socket.has_ipv6:
        sixth = meet_at("::1", 0, listen=True)
        assert sixth.listens is not None and sixth.listens.getsockname()[0] == "::1" and sixth.interface
        sixth.close()
    assert split_address("[::1]:29500") == ("::1", 29500)


def test_a_lost_worker_is_told_by_its_number_and_its_end() -> None:
    assert lost_words([4, -9]).startswith("worker 2 of 2 was ended from outside (SIGKILL)")
    assert lost_words([1, 4]) == "worker 1 of 2 ended with code 1"
    assert "another machine" in lost_words([4])


def test_no_page_and_no_settings_file_can_name_a_machine() -> None:
    from trainer.config.files import iter_settings

    words = ("node", "address", "host", "port", "machine")
    assert not [
        one.name for one in iter_settings() if any(word in one.name.split(".")[-1].split("_") for word in words)
    ]
    assert not [
        path for path in (Path(__file__).parents[2] / "ui" / "tabs").rglob("*.py") if "Machines" in path.read_text()
    ]
