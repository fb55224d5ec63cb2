"""The benchmarks of training: what is timed, what the page says of it, and what is said of a wrong checkout."""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import bases, contestants, peers, report, stand_in, training
from benchmarks.contestants import Times, Work
from tests.tiny import tiny_sd15

ATTENTION = "attention"
MACHINE = {"date": "2026-01-01", "processor": "AMD EPYC, 2 cores", "system": "Linux 6", "python": "3.11.7"}
STEPPING = """
import torch
weight = torch.nn.Parameter(torch.zeros(2))
optimizer = torch.optim.AdamW([weight])
for number in range({}):
    weight.grad = torch.ones(2)
    optimizer.step()
"""


def times(*seconds: float) -> Times:
    return Times(list(seconds), 9.0, 2_000_000_000, 0)


def steps_result(**contestants_: dict[str, Any]) -> dict[str, Any]:
    work = Work("sd15", "sd15", "", "bf16", 256, 1, ATTENTION)
    facts = {"operations": 4e11, "matrix_peak": 2e11, "device": "CPU", "threads": 2, "versions": {"torch": "2.13.0"}}
    figures = {
        "work": contestants.facts_of_work(work, 16),
        "plan": {"rounds": 2, "steps": 3, "warm_up": 2, "window": 1},
        "facts": {ATTENTION: facts},
        "checkouts": {"diffusers": "v0.40.0"},
        "contestants": {name: {"targets": ATTENTION, "batch": 1} | one for name, one in contestants_.items()},
    }
    return {"measured": MACHINE, "command": "python benchmarks/training.py steps --size sd15", "figures": figures}


def test_the_table_tells_medians_spread_share_of_the_peak_and_how_much_faster() -> None:
    ours = training.figures([times(2.0, 4.0, 3.0), times(4.0, 4.0, 5.0)])
    assert ours["seconds"] == 4.0
    assert ours["rounds"] == [3.0, 4.0]
    result = steps_result(**{f"Safelight, {ATTENTION}": ours, "diffusers": training.figures([times(10.0, 10.0)])})
    page = report.page_of({}, {"steps sd15 bf16": result})
    assert "### Stable Diffusion 1.5, 256 px, batch 1, bf16, rank 16, CPU" in page
    assert "| Safelight | attention | 4 (2.75 to 4.25) | 0.25 | 0.25 | 50% | 2.00 GB | 9.0 s, 9.0 s |  |" in page
    assert (
        "| diffusers | attention | 10 (10 to 10) | 0.1 | 0.1 | 20% | 2.00 GB | 9.0 s, 9.0 s | 2.50 times as fast |"
        in page
    )
    assert "2 rounds of 3 steps" in page
    assert "Checkout of diffusers: v0.40.0." in page


def test_a_program_that_broke_stands_in_the_table_with_its_last_words() -> None:
    ours = training.figures([times(2.0)])
    page = report.page_of(
        {}, {"steps x": steps_result(**{f"Safelight, {ATTENTION}": ours, "diffusers": {"fault": "Ouch"}})}
    )
    assert "| diffusers | attention | Ouch |" in page


def test_other_tables_are_made_of_their_results() -> None:
    one = training.figures([times(1.0)]) | {"targets": ATTENTION, "batch": 1}
    slow = training.figures([times(1.5)]) | {"targets": ATTENTION, "batch": 1}
    ablation = steps_result() | {}
    ablation["figures"]["contestants"] = {"all as they are": one, "without fused_lora": slow}
    threads = {"measured": MACHINE, "command": "c", "figures": {"batches": {"batch 4": {"its own choice": one}}}}
    figures = {"work": ablation["figures"]["work"], "start": {"launch.py to served page, seconds": 2.5}}
    around = {"measured": MACHINE, "command": "c", "figures": figures}
    page = report.page_of({}, {"ablation x": ablation, "threads": threads, "around tiny fp32": around})
    assert "| without fused lora | 1.5 (1.5 to 1.5) | 0.667 | 2.00 GB | 9.0 s, 9.0 s | +50% |" in page
    assert "| batch 4 | 1 (1 to 1) |" in page
    assert "| start, launch.py to served page, seconds | 2.5 |" in page


def test_the_page_is_made_of_the_raw_results() -> None:
    made = report.page_of(report.read(report.DATASET_RESULTS), report.read(report.TRAINING_RESULTS))
    assert report.PAGE.read_text(encoding="utf-8") == made


@pytest.mark.parametrize("name", peers.PEERS)
def test_a_wrong_checkout_is_named(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, words in ((tmp_path / "gone", "is no folder"), (tmp_path, "is no checkout of")):
        with pytest.raises(SystemExit) as ended:
            training.main(["steps", "--size", "sd15", f"--{name}", str(path)])
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert words in said
        assert name in said
        assert str(path) in said


def test_results_hold_no_path_of_somebodys_machine() -> None:
    command = [
        "steps",
        "--models",
        "/home/me/m",
        "--diffusers",
        "/home/me/d",
        "--sd-scripts-python=/home/me/p",
        "--rounds",
        "2",
    ]
    assert training.without_paths(command) == ["steps", "--diffusers", "DIR", "--rounds", "2"]


def test_results_of_other_work_have_other_names() -> None:
    parser = training.build_parser()
    names = {
        training.title_of(parser.parse_args(line.split()))
        for line in (
            "steps",
            "steps --size sd15",
            "steps --precision bf16",
            "steps --checkpointing",
            "ablation",
            "threads",
        )
    }
    assert len(names) == 6


def test_each_fast_way_has_a_value_that_switches_it_off() -> None:
    from trainer.config.sections import SpeedConfig

    slow = training.slow_settings()
    assert SpeedConfig.model_fields.keys() - slow.keys() == {"caching_batch_size"}  # a number of pictures
    chosen, usual = SpeedConfig.model_validate(slow), SpeedConfig()
    assert all(getattr(chosen, name) != getattr(usual, name) for name in slow)


def test_the_stopwatch_times_a_program_as_it_is(tmp_path: Path) -> None:
    program, result = tmp_path / "program.py", tmp_path / "result.json"
    program.write_text(STEPPING.format("10**9"), encoding="utf-8")
    command = [sys.executable, str(contestants.STOPWATCH), str(result), "6", "2", str(program)]
    subprocess.run(command, check=True, timeout=120)
    figures = json.loads(result.read_text(encoding="utf-8"))
    assert [step for step, _ in figures["moments"]] == [1, 2, 4, 6]
    assert figures["peak_memory"] > 50_000_000 or sys.platform != "linux"
    assert len(contestants.times_of(figures, 0.0, 2).seconds) == 2


def test_a_program_that_ends_too_soon_gives_no_figures(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(STEPPING.format(3) + "raise SystemExit('had enough')", encoding="utf-8")
    work = Work("tiny", "sd15", "", "fp32", 64, 1, ATTENTION)
    one = contestants.Contestant(
        "short", work, (str(program),), sys.executable, contestants.untuned_environment(), tmp_path
    )
    with pytest.raises(RuntimeError, match=r"short broke[\s\S]*ended before step 6 \(exit code had enough\)"):
        contestants.time_once(one, 5, 1, 1)


@pytest.mark.slow
def test_safelight_and_the_bare_loop_are_timed_in_turn(tmp_path: Path) -> None:
    base = tiny_sd15(tmp_path / "base")
    pictures = bases.write_pictures(tmp_path / "pictures", 4, 64)
    work = Work("tiny", "sd15", str(base), "fp32", 64, 2, ATTENTION, rank=4)
    entrants = [
        contestants.ours("ours", work, peers.Folders(base, pictures, tmp_path / "ours")),
        contestants.bare("bare", work, peers.Folders(base, pictures, tmp_path / "bare")),
    ]
    found = training.compare(entrants, training.Plan(rounds=1, steps=2, warm_up=1, window=1))
    for one in found.values():
        assert "fault" not in one
        assert len(one["raw"][0]) == 2
        assert 0 < one["seconds"] < one["first_step_cold"]
    facts = training.facts_of(work)
    assert facts["operations"] > 1e6
    assert facts["matrix_peak"] > 1e6


def test_the_pictures_are_the_same_for_everybody(tmp_path: Path) -> None:
    plain, listed, repeated = bases.write_pictures(tmp_path / "a", 3, 32)
    again = bases.write_pictures(tmp_path / "b", 3, 32)[0]
    names = [f"{number:04d}.png" for number in range(3)]
    for name in names:
        own = (plain / name).read_bytes()
        assert own == (again / name).read_bytes() == (listed / name).read_bytes()
        assert own == (repeated / "1_pictures" / name).read_bytes()
    lines = [json.loads(line) for line in (listed / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    captions = [(plain / name).with_suffix(".txt").read_text(encoding="utf-8") for name in names]
    assert lines == [{"file_name": name, "text": text} for name, text in zip(names, captions, strict=True)]


def test_a_random_model_loads_as_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from tests.tiny import model_files
    from trainer.families import get_family, single_file
    from trainer.families.single_file import CONFIGS_DIR

    small = {
        "unet": {"block_out_channels": [32, 32, 32, 32], "cross_attention_dim": 32, "attention_head_dim": 8},
        "vae": {"block_out_channels": [32, 32, 32, 32]},
        "text_encoder": {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1},
    }
    for part in sorted((CONFIGS_DIR / "sd15").iterdir()):
        target = tmp_path / "configs" / "sd15" / part.name
        target.mkdir(parents=True)
        (settings,) = part.iterdir()
        values = json.loads(settings.read_text(encoding="utf-8")) | small.get(part.name, {})
        (target / settings.name).write_text(json.dumps(values), encoding="utf-8")
    monkeypatch.setattr(single_file, "CONFIGS_DIR", tmp_path / "configs")
    base = bases.build_base(bases.SIZES["sd15"], tmp_path / "base")
    components = get_family("sd15").load(model_files(base, "sd15"), torch.device("cpu"), torch.float32)
    assert components.denoiser.config.cross_attention_dim == 32
    assert len(components.tokenizers[0]("a red house").input_ids) == 5


def test_the_stand_in_prepares_pictures_as_torchvision_does(tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 20), (255, 0, 127))
    steps = [stand_in.Resize(10, stand_in.InterpolationMode.LANCZOS), stand_in.CenterCrop(10), stand_in.ToTensor()]
    values = stand_in.Compose([*steps, stand_in.Normalize([0.5], [0.5])])(picture)
    assert values.shape == (3, 10, 10)
    assert [round(float(channel.mean()), 3) for channel in values] == [1.0, -1.0, -0.004]
    path = stand_in.install(tmp_path)
    script = "from torchvision import transforms; from torchvision.transforms.functional import crop; transforms.RandomCrop(4)"
    subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": str(path)}, check=True, timeout=120)


def test_peers_get_the_same_work(tmp_path: Path) -> None:
    folders = peers.Folders(
        tmp_path, (tmp_path / "plain", tmp_path / "listed", tmp_path / "repeated"), tmp_path / "own"
    )
    work = Work("sd15", "sd15", str(tmp_path), "bf16", 256, 2, ATTENTION, gradient_checkpointing=True)
    for one in peers.PEERS.values():
        command = one.command(work, folders)
        said = dict(itertools.pairwise(command))
        assert said["--train_batch_size"] == "2"
        assert said["--mixed_precision"] == "bf16"
        assert "--gradient_checkpointing" in command
        assert (said.get("--rank") or said["--network_dim"]) == "16"


def test_what_happens_around_steps_is_read_from_the_events() -> None:
    from benchmarks import around

    events: around.Events = [{"event": "began", "time": 0.0}, {"event": "Queued", "time": 1.0}]
    for done, moment in ((0, 2.0), (8, 4.0)):
        events.append({"event": "Preparing", "phase": "Encoding pictures", "done": done, "time": moment})
    moment = 5.0
    for step in range(1, 21):
        moment += 0.5
        events.append({"event": "StepDone", "step": step, "seconds": 0.5, "time": moment})
        moment += 1.0 if step % around.SAVE_EVERY == 0 else 4.0 if step % around.SAMPLE_EVERY == 0 else 0.125
    assert around.first_step(events)["start of the program to first step, seconds"] == 5.5
    assert around.encoding(events) == {"pictures encoded a second": 4.0}
    between = around.between_steps(events)
    assert between["between two steps, seconds"] == 0.125
    assert between["wait for saving, seconds"] == 1.0
    assert between["sample, seconds"] == 2.0
    assert around.percentiles(range(1, 101))["95th"] == 96


def test_what_a_run_waits_for_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import waiting

    monkeypatch.setattr(waiting, "ROUNDS", 1)
    found = waiting.encoding(argparse.Namespace(vae="demo", side=64, source=80, pictures=3))
    assert len(found) == 3 and all(value > 0 for value in found.values())
    held = waiting.saving(argparse.Namespace(megabytes=6, flush=0.0, folder=tmp_path))
    assert held["held by one that is written in the background, seconds"] >= 0 and not list(tmp_path.iterdir())
