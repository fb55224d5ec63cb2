"""The command line: help everywhere, one sentence for mistakes, and runs that end well on Ctrl+C."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from security.errors import SafelightError
from security.images import open_image
from security.sandbox import probe
from tests.tiny import tiny_dataset, tiny_sd15
from trainer import events
from trainer.config.files import iter_settings, load_config
from trainer.demo.sheet import CELL, contact_sheet
from trainer.jobs import Jobs
from trainer.runs import Progress, RunFolder, RunState
from trainer.workspace import REPOSITORY_DIR, Workspace
from ui import cli, cli_doctor, cli_run

COMMANDS = ("demo", "train", "check", "resume", "runs", "models", "convert", "tokens", "doctor", "test")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("SAFELIGHT_WORKSPACE", str(tmp_path / "workspace"))
    return Workspace.open()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A workspace with a tiny model and dataset, and a TOML file that trains on them."""
    folder = tmp_path_factory.mktemp("cli")
    workspace = Workspace.open(folder / "workspace")
    tiny_sd15(workspace.models_dir / "tiny")
    tiny_dataset(workspace.datasets_dir / "shapes")
    (folder / "run.toml").write_text(
        'name = "first"\n[model]\nbase = "tiny"\n[dataset]\nfolder = "shapes"\nresolution = 64\n'
        "[training]\nmax_train_steps = 3\n"
    )
    yield folder


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(REPOSITORY_DIR / "launch.py"), "--no-venv", *arguments]


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_everywhere(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([*([name] if name else []), "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: python launch.py")
    for known in COMMANDS if not name else ():
        assert f" {known} " in text


def test_train_help_has_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for setting in iter_settings():
        assert f"--{setting.name} {setting.kind.value.upper()}" in text
        assert " ".join(setting.help.split()) in text.replace("- ", "-") or setting.help.split()[0] in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian", "x.toml"], "Did you mean train?"),
        (["xyzzy"], "is not a command. There are: demo, train"),
        (["--port", "70000"], "70000 is not a port"),
        (["--share-hours", "73"], "73 hours"),
        (["--share-hours", "1.5"], "Choose 1 to 72"),
        (["--host-name", "https://lora.example"], "is not a host name"),
        (["resume"], "RUN"),
        (["resume", "nothing"], "nothing"),
        (["demo", "--steps", "0"], "max_train_steps"),
        (["train", "missing.toml"], "missing.toml"),
        (["runs", "--workspace", "/"], "workspace"),
        (["--unknown"], "--unknown"),
    ],
)
def test_mistakes_get_a_sentence_and_exit_code_2(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    try:
        code = cli.main(arguments)
    except SystemExit as end:
        code = int(str(end.code))
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("safelight: ") and words in error
    assert not Jobs(workspace).runs()


def test_settings_are_told_from_other_arguments() -> None:
    flags, rest = cli.split_settings(["train", "--lora.rank", "8", "a.toml", "--json", "--name=x", "--lora.alpha=4"])
    assert flags == ["--lora.rank", "8", "--name=x", "--lora.alpha=4"]
    assert rest == ["train", "a.toml", "--json"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--lora.rnk", "8"], "Did you mean lora.rank?"),
        (["--lora.nosuch", "8"], "is not a setting. See `python launch.py train --help`"),
        (["--lora.rank", "8", "--lora.alpha"], "lora.alpha needs a value"),
        (["--lora.rank", "many"], "lora.rank is 'many'"),
        (["--lora.rank", "0"], "lora.rank"),
    ],
)
def test_wrong_settings_start_no_run(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    path = tmp_path / "run.toml"
    path.write_text("")
    assert cli.main(["train", str(path), *flags]) == 2
    assert words in capsys.readouterr().err
    assert not Jobs(workspace).runs()


def test_workspace_may_stand_before_or_after_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, place in enumerate((["--workspace", "{}", "runs"], ["runs", "--workspace", "{}"])):
        wanted = tmp_path / f"place {number}"
        assert cli.main([part.format(wanted) for part in place]) == 0
        assert str(wanted) in capsys.readouterr().out
        assert (wanted / "runs").is_dir()


def test_page_gets_its_options(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import ui.server

    served: list[ui.server.ServeOptions] = []
    monkeypatch.setattr(ui.server, "serve", lambda options: served.append(options) or 0)
    assert cli.main([]) == 0
    words = ["--port", "7999", "--listen", "--share", "--no-browser", "--workspace", "w", "--password-file", "p"]
    words += ["--host-name", "Lora.Example", "--host-name", "b.local", "--share-hours", "3", "--allow-root"]
    assert cli.main(words) == 0
    assert served == [
        ui.server.ServeOptions(),
        ui.server.ServeOptions(7999, True, True, Path("w"), False, Path("p"), ("lora.example", "b.local"), 3, True),
    ]


def test_old_packages_are_refused(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "version_faults", lambda: ["requests 2.0 has known security holes."])
    assert cli.main(["runs"]) == 2
    assert "known security holes" in capsys.readouterr().err


def test_models_lists_the_embedded_one(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "--json"]) == 0
    models = json.loads(capsys.readouterr().out)
    assert [model["name"] for model in models if model["builtin"]] == ["demo"]
    assert cli.main(["models"]) == 0
    assert re.search(r"^demo +\S", capsys.readouterr().out, re.MULTILINE)


def test_train_writes_a_lora_and_lists_it(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--workspace", str(trained / "workspace")]
    assert cli.main(["train", str(trained / "run.toml"), "--lora.rank", "2", *where]) == 0
    paths = re.findall(r"^LoRA: (.+)$", capsys.readouterr().out, re.MULTILINE)
    assert paths and all(Path(path).stat().st_size > 1000 for path in paths)
    assert load_config(Path(paths[0]).parent / "config.toml").lora.rank == 2
    assert cli.main(["runs", "--json", *where]) == 0
    assert [(row["run_id"], row["state"], row["step"]) for row in json.loads(capsys.readouterr().out)] == [
        ("first", "finished", 3)
    ]
    assert cli.main(["runs", *where]) == 0
    assert re.search(r"^first +finished +3/3", capsys.readouterr().out, re.MULTILINE)


def test_json_gives_events_as_lines(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--workspace", str(trained / "workspace")]
    assert cli.main(["train", str(trained / "run.toml"), "--json", "--name=second", *where]) == 0
    seen = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    names = [event["event"] for event in seen]
    assert names[0] == "Queued" and names[-1] == "Finished" and names.count("StepDone") == 3
    assert all(events.from_json(event) for event in seen)


def test_run_that_can_not_start_exits_with_2(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--workspace", str(trained / "workspace")]
    words = ["--name", "lost", "--model.base", "no_such_model"]
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main(["train", str(trained / "run.toml"), *words, *where]) == 2
    error = capsys.readouterr().err
    assert "no_such_model" in error and "Traceback" not in error
    assert signal.getsignal(signal.SIGTERM) is before


def test_run_that_breaks_exits_with_1(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*_: Any) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr("trainer.loop.train", break_down)
    where = ["--workspace", str(trained / "workspace")]
    assert cli.main(["train", str(trained / "run.toml"), "--name", "broken", *where]) == 1
    assert "RuntimeError" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX systems")
def test_sigterm_saves_and_resume_goes_on(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--workspace", str(trained / "workspace")]
    words = [
        "train",
        str(trained / "run.toml"),
        "--name",
        "long",
        "--training.max_train_steps",
        "100000",
        "--json",
        *where,
    ]
    process = subprocess.Popen(command(*words), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert any('"StepDone"' in line for line in iter(process.stdout.readline, ""))
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)  # as `timeout` does: to the process, and to its group
    rest = [json.loads(line)["event"] for line in process.stdout.read().splitlines()]
    assert process.wait(60) == 0
    assert time.monotonic() - began < 20
    assert {"Stopping", "CheckpointSaved", "LoraSaved"} <= set(rest) and rest[-1] == "Finished"

    folder = RunFolder.find(Workspace.open(trained / "workspace"), "long")
    text = folder.config_path.read_text()
    reached = Jobs(Workspace.open(trained / "workspace")).progress("long").step
    folder.config_path.write_text(text.replace("max_train_steps = 100000", f"max_train_steps = {reached + 2}"))
    assert cli.main(["resume", "long", *where]) == 0
    output = capsys.readouterr().out
    assert f"going on from step {reached}" in output and "run long created" not in output


def run_folder_with_samples(workspace: Workspace, config_path: Path) -> tuple[RunFolder, list[events.SampleSaved]]:
    config_path.write_text('name = "sheet"\n')
    folder = RunFolder.create(workspace, load_config(config_path))
    folder.samples_dir.mkdir()
    samples = []
    for step, colour in ((0, "red"), (10, "black"), (5, "blue")):
        for index in range(8):
            path = folder.samples_dir / f"{step}-{index}.png"
            Image.new("RGB", (64, 64), colour).save(path)
            samples.append(events.SampleSaved(step, index, f"prompt {index}", index, f"samples/{path.name}"))
    return folder, samples


def test_contact_sheet_shows_before_above_after(workspace: Workspace, tmp_path: Path) -> None:
    folder, samples = run_folder_with_samples(workspace, tmp_path / "c.toml")
    sheet = contact_sheet(folder.path, samples)
    colours = dict(sorted((colour, count) for count, colour in sheet.getcolors(1 << 20) or []))
    assert colours[(255, 0, 0)] == 8 * CELL * CELL
    assert colours[(0, 0, 0)] >= 8 * CELL * CELL
    assert (0, 0, 255) not in colours
    top = next(y for y in range(sheet.height) if sheet.getpixel((100, y)) == (255, 0, 0))
    assert sheet.getpixel((100, top + CELL + 20)) == (0, 0, 0)


def test_contact_sheet_needs_two_steps(workspace: Workspace, tmp_path: Path) -> None:
    folder, samples = run_folder_with_samples(workspace, tmp_path / "c.toml")
    with pytest.raises(SafelightError, match="no samples from before and after"):
        contact_sheet(folder.path, samples[:8])


def test_demo_result_is_written_and_copied(workspace: Workspace, tmp_path: Path) -> None:
    folder, samples = run_folder_with_samples(workspace, tmp_path / "c.toml")
    (folder.path / "sheet.safetensors").write_bytes(b"weights")
    progress = Progress(
        run_id="sheet",
        name="sheet",
        state=RunState.FINISHED,
        step=10,
        elapsed_seconds=12.34,
        samples=tuple(samples),
        loras=(events.LoraSaved(10, "sheet.safetensors", "kohya", 7),),
        validations=(events.Validated(0, 0.5), events.Validated(10, 0.3)),
    )
    out = tmp_path / "out"
    out.mkdir()
    result = cli_run.finish_demo(workspace, progress, out)
    assert result.change == pytest.approx(-0.4)
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["held_out_loss_before"], summary["held_out_loss_after"], summary["seconds"]) == (0.5, 0.3, 12.3)
    assert (out / "sheet.safetensors").read_bytes() == b"weights"
    assert {path.name for path in out.glob("*-*.png")} == {
        f"{step}-{index}.png" for step in (0, 10) for index in range(8)
    }
    assert open_image(out / "contact_sheet.png").size == open_image(folder.path / "contact_sheet.png").size


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        ({"state": RunState.PREPARING, "phase": "Encoding", "phase_done": 3, "phase_total": 9}, "Encoding 3 of 9"),
        ({"state": RunState.WAITING}, "starting"),
        (
            {
                "state": RunState.TRAINING,
                "step": 5,
                "total_steps": 50,
                "loss": 0.1,
                "seconds_per_step": 0.5,
                "eta_seconds": 6000,
            },
            "step 5/50 (10%)  loss 0.1000  0.50 s a step  about 1 h 40 min left",
        ),
    ],
)
def test_progress_line(progress: dict[str, Any], text: str) -> None:
    assert cli_run.progress_text(Progress(run_id="x", name="x", **progress)) == text


def test_doctor_finds_this_machine_well(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["doctor", "--json"])
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert set(checks) == {
        "Python",
        "packages",
        "package hashes",
        "security floors",
        "torch",
        "sandbox",
        "workspace",
        "Chromium",
    }
    assert checks["sandbox"]["ok"] and checks["sandbox"]["detail"] == probe().detail
    assert code == (0 if all(check["ok"] for check in checks.values()) else 1)
    assert checks["torch"]["detail"].startswith("torch 2.13.0")


def test_convert_writes_beside_the_file_or_where_it_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if not probe().active:
        pytest.skip(f"no sandbox here: {probe().detail}")
    torch.save({"state_dict": {"weight": torch.ones(2)}, "epoch": 3}, tmp_path / "model.ckpt")
    assert cli.main(["convert", str(tmp_path / "model.ckpt")]) == 0
    assert "model.safetensors: 1 tensors" in (said := capsys.readouterr().out) and "epoch" in said
    assert cli.main(["convert", str(tmp_path / "model.ckpt")]) == cli.USER_FAULT
    assert "exists already" in capsys.readouterr().err
    (tmp_path / "model.ckpt").write_bytes(b"no checkpoint")
    assert (
        cli.main(["convert", str(tmp_path / "model.ckpt"), "--out", str(tmp_path / "b.safetensors")]) == cli.USER_FAULT
    )
    assert "model.ckpt is not a checkpoint" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.ckpt", "model.safetensors"]


def test_doctor_sees_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text(
        "pydantic==0.1\nno-such-package-1b7==1.0\nwin==1 ; sys_platform == 'none'\n"
    )
    monkeypatch.setattr(cli_doctor, "REPOSITORY_DIR", tmp_path)
    check = cli_doctor.check_packages()
    assert not check.ok and "no-such-package-1b7" in check.detail and "win" not in check.detail
    (tmp_path / "requirements.txt").write_text("pydantic==0.1\n")
    check = cli_doctor.check_packages()
    assert check.ok and "tested: 0.1" in check.detail


def test_doctor_fails_without_room(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_doctor, "FREE_DISK_WANTED", 10**18)
    assert not cli_doctor.check_workspace(None).ok


def test_doctor_sees_a_wrong_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(cli_doctor, "has_nvidia_gpu", lambda: True)
    check = cli_doctor.check_torch()
    assert not check.ok and "Delete .venv" in check.detail


def test_test_command_hands_its_arguments_to_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(pytest, "main", lambda arguments: seen.append(arguments) or 5)
    assert cli.main(["test", "-k", "door", "--lf"]) == 5
    assert seen == [["-k", "door", "--lf"]]


@pytest.mark.skipif(os.name != "posix", reason="signals and process times of POSIX systems")
def test_page_is_up_and_ends_on_sigterm(tmp_path: Path) -> None:
    words = ["--no-browser", "--port", "0", "--workspace", str(tmp_path / "workspace")]
    process = subprocess.Popen(command(*words), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = process.stdout.readline()
    process.terminate()
    assert process.wait(60) == 0
    assert first.startswith("Safelight is ready: http://127.0.0.1:")


def test_a_run_is_checked_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tmp_path / "run.toml"
    settings.write_text('name = "x"\n[dataset]\nresolution = 64\n[optimizer]\nlearning_rate = 9.0\n')
    where = ["--workspace", str(tmp_path / "space")]
    assert cli.main(["check", str(settings), "--no-dry-run", *where]) == 0
    told = capsys.readouterr().out
    assert "WARNING" in told and "optimizer.learning_rate is 9" in told and "Ready to train: " in told
    flags = ["--optimizer.learning_rate", "1e-4", "--dataset.folder", "nowhere"]
    assert cli.main(["check", str(settings), "--json", *flags, *where]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["ok"] and any("nowhere" in one["text"] for one in report["findings"])
    assert cli.main(["check", str(tmp_path / "missing.toml"), *where]) == 2
    capsys.readouterr()
    for command in (["check"], ["train"], ["rebuild"], ["settings", "export"], ["settings", "import"]):
        for path, told in ((tmp_path, "is a folder"), (tmp_path / "missing.toml", "There is no file")):
            assert cli.main([*command, str(path), *where]) == 2
            fault = capsys.readouterr().err
            assert told in fault and str(path) in fault, "the path as it was typed"
