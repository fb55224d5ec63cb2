"""A run that went astray: what the page and the command line offer, and what they say after a change of settings."""

from __future__ import annotations

import pytest

from security.errors import SafelightError
from trainer import events
from trainer.config.files import ConfigError
from trainer.config.schema import TrainConfig
from trainer.runs import RunFolder
from ui.cli_run import changes_by
from ui.messages import ShownError
from ui.monitor import run_action
from ui.services import Services
from ui.views import run_detail

STARTED = events.Started(100, 0, 12, 3.0, "sd15", "CPU, fp32", 1000)
TOLD = "The first unusable numbers are in the output of unet.conv_in."


def astray_run(services: Services, setting: str = "optimizer.learning_rate", value: float | str = 3e-5) -> RunFolder:
    folder = RunFolder.create(services.workspace, TrainConfig(name="mira", model={"base": "nowhere"}))  # type: ignore[arg-type]
    for event in (
        *(events.Preparing("x"), STARTED, events.StepDone(41, 0.1, 1e-4, 0.5, 82, 0.1)),
        events.CheckpointSaved(40, "checkpoints/step-00000040"),
        events.WentAstray(42, ["a.png"], "unet.conv_in", TOLD, setting, value, 40),
        events.Failed("The loss of step 42 is nan.", 41),
    ):
        folder.append(event)
    return folder


def test_the_change_is_a_button_that_lets_the_run_go_on_with_it(services: Services) -> None:
    folder = astray_run(services)
    shown = run_detail(services.jobs.progress("mira"))
    assert shown["actions"][0] == ["retry", "Go on from step 40 with learning rate 3e-05"]
    assert [action for action, _ in shown["actions"]] == ["retry", "resume", "extend", "again", "delete"]
    assert run_action(services, "mira", "retry") == {"text": "mira goes on with the change."}
    assert folder.config().optimizer.learning_rate == 3e-5
    assert services.jobs.wait(30)
    assert "nowhere" in services.jobs.progress("mira").message  # it was started again


def test_without_a_change_there_is_no_such_button(services: Services) -> None:
    astray_run(services, "", "")
    assert "retry" not in [action for action, _ in run_detail(services.jobs.progress("mira"))["actions"]]
    with pytest.raises(ShownError, match="Nothing is proposed"):
        run_action(services, "mira", "retry")


def test_what_changed_on_going_on_is_shown(services: Services) -> None:
    folder = astray_run(services, "model.precision", "fp32")
    assert run_detail(services.jobs.progress("mira"))["actions"][0][1].endswith("with precision fp32")
    folder.append(events.Resumed(40, {"training.seed": "42 -> 7"}))
    folder.append(STARTED)
    progress = services.jobs.progress("mira")
    assert ["Changed (since step 40)", "training.seed: 42 -> 7"] in run_detail(progress)["facts"]
    assert "retry" not in [action for action, _ in run_detail(progress)["actions"]]
    assert any("going on from step 40; training.seed: 42 -> 7" in line for _, line in services.jobs.lines("mira"))
    assert any("step 42 gave no usable numbers. " + TOLD in line for _, line in services.jobs.lines("mira"))


def test_flags_of_resume_are_the_settings_that_they_change() -> None:
    config = TrainConfig()
    assert changes_by([], config) == {}
    assert changes_by(["--optimizer.learning_rate", "3e-5", "--training.seed", "42"], config) == {
        "optimizer.learning_rate": 3e-5
    }
    with pytest.raises(ConfigError, match="learning_rat"):
        changes_by(["--optimizer.learning_rat", "1"], config)


def test_a_finished_run_goes_on_with_more_steps_only(services: Services) -> None:
    folder = RunFolder.create(services.workspace, TrainConfig(name="done", model={"base": "nowhere"}))  # type: ignore[arg-type]
    for event in (events.Preparing("x"), STARTED, events.StepDone(100, 0.1, 1e-4, 0.5, 82, 0.1)):
        folder.append(event)
    folder.append(events.Finished(100, stopped=False))
    for changes in ({}, {"training.max_train_steps": 100}, {"optimizer.learning_rate": 1e-5}):
        folder.change({"training.max_train_steps": 100})
        with pytest.raises(SafelightError, match=r"is finished\. Give it more"):
            services.jobs.resume("done", changes)
    services.jobs.resume("done", {"training.max_train_steps": 200})
    assert folder.config().training.max_train_steps == 200
    assert services.jobs.wait(30)
