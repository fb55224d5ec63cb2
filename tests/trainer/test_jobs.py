"""The one running job and its queue: started, watched, stopped, gone on with - and never lost by a reader."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from security.errors import SafelightError
from tests.tiny import tiny_dataset, tiny_sd15
from trainer.config.files import parse_config
from trainer.config.schema import TrainConfig
from trainer.jobs import Jobs
from trainer.runs import RunState
from trainer.workspace import Workspace


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("jobs")
    return str(tiny_sd15(folder / "base")), str(tiny_dataset(folder / "set", 4))


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    made = Jobs(Workspace.open(tmp_path / "space"))
    yield made
    assert made.shutdown(30)


@pytest.fixture
def make_config(places: tuple[str, str]) -> Callable[..., TrainConfig]:
    def make(name: str = "tiny", steps: int = 3, **sections: Any) -> TrainConfig:
        return parse_config(
            {
                "name": name,
                "model": {"base": places[0]},
                "dataset": {"folder": places[1], "resolution": 64},
                "training": {"max_train_steps": steps},
                **sections,
            }
        )

    return make


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)


def test_a_run_goes_through_its_states_to_a_file(jobs: Jobs, make_config) -> None:
    run_id = jobs.submit(make_config())
    assert jobs.progress(run_id).state.is_active
    assert jobs.wait(60)
    progress = jobs.progress(run_id)
    assert progress.state is RunState.FINISHED and progress.step == progress.total_steps == 3
    assert not progress.can_resume
    for saved in progress.loras:
        assert (jobs.workspace.runs_dir / run_id / saved.path).stat().st_size == saved.num_bytes
    assert any("finished after 3 steps" in line for _, line in jobs.lines(run_id))
    assert jobs.active_run_id is None
    with pytest.raises(SafelightError, match="finished"):
        jobs.resume(run_id)


def test_stopped_it_saves_and_goes_on_to_the_end(jobs: Jobs, make_config) -> None:
    run_id = jobs.submit(make_config(steps=100_000))
    until(lambda: jobs.progress(run_id).step >= 2)
    began = time.monotonic()
    jobs.stop()
    assert jobs.progress(run_id).state in (RunState.STOPPING, RunState.STOPPED)
    assert jobs.wait(20) and time.monotonic() - began < 20
    progress = jobs.progress(run_id)
    assert progress.state is RunState.STOPPED and progress.loras and progress.checkpoint_step == progress.step
    assert Jobs(jobs.workspace).progress(run_id) == progress
    jobs.resume(run_id)
    until(lambda: jobs.progress(run_id).step > progress.step)
    assert jobs.progress(run_id).state is RunState.TRAINING
    jobs.pause()
    assert jobs.wait(20)
    assert jobs.progress(run_id).state is RunState.PAUSED
    assert jobs.progress(run_id).resumes == (progress.step,)


def test_runs_wait_for_each_other_and_can_be_taken_out(jobs: Jobs, make_config) -> None:
    first = jobs.submit(make_config("first", 100_000))
    until(lambda: jobs.progress(first).step >= 1)
    second, third = jobs.submit(make_config("second")), jobs.submit(make_config("third"))
    assert jobs.waiting == (second, third)
    assert jobs.progress(third).state is RunState.WAITING
    jobs.cancel(second)
    with pytest.raises(SafelightError):
        jobs.progress(second)
    with pytest.raises(SafelightError, match="not waiting"):
        jobs.cancel(first)
    with pytest.raises(SafelightError, match="Stop it before"):
        jobs.delete(first)
    with pytest.raises(SafelightError, match="already"):
        jobs.resume(first)
    jobs.stop()
    assert jobs.wait(60)
    assert jobs.progress(first).state is RunState.STOPPED
    assert jobs.progress(third).state is RunState.FINISHED


def test_a_fault_is_told_and_the_next_run_still_starts(jobs: Jobs, make_config) -> None:
    broken = jobs.submit(make_config("broken", model={"base": "nowhere"}))
    good = jobs.submit(make_config("good"))
    assert jobs.wait(60)
    progress = jobs.progress(broken)
    assert progress.state is RunState.FAILED and "nowhere" in progress.message and progress.error_id == ""
    assert jobs.progress(good).state is RunState.FINISHED


def test_an_unforeseen_fault_gets_a_number_and_its_details_go_to_the_log(
    jobs: Jobs, make_config, monkeypatch, caplog
) -> None:
    import trainer.guards

    def explode(*_: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(trainer.guards, "train_step", explode)
    run_id = jobs.submit(make_config())
    assert jobs.wait(60)
    progress = jobs.progress(run_id)
    assert progress.state is RunState.FAILED and len(progress.error_id) == 6
    assert "secret detail" not in progress.message
    assert "secret detail" in caplog.text and progress.error_id in caplog.text


def test_sample_and_save_now(jobs: Jobs, make_config) -> None:
    sample = {"prompts": ["a red circle"], "width": 64, "height": 64, "num_inference_steps": 2}
    run_id = jobs.submit(make_config(steps=100_000, sample=sample))
    until(lambda: jobs.progress(run_id).step >= 1)
    jobs.sample_now()
    jobs.save_now()
    until(lambda: len(jobs.progress(run_id).samples) == 2 and bool(jobs.progress(run_id).loras))
    jobs.stop()
    assert jobs.wait(20)


def test_nothing_to_stop_is_said(jobs: Jobs) -> None:
    for request in (jobs.stop, jobs.pause, jobs.sample_now, jobs.save_now):
        with pytest.raises(SafelightError, match="Nothing is training"):
            request()


def test_shutting_down_saves_the_run_and_takes_no_more(make_config, tmp_path) -> None:
    jobs = Jobs(Workspace.open(tmp_path / "space"))
    run_id = jobs.submit(make_config(steps=100_000))
    waiting = jobs.submit(make_config("next"))
    until(lambda: jobs.progress(run_id).step >= 1)
    assert jobs.shutdown(20)
    assert jobs.progress(run_id).state is RunState.STOPPED
    assert jobs.progress(waiting).state is RunState.INTERRUPTED  # it can be continued after the restart
    with pytest.raises(SafelightError, match="shutting down"):
        jobs.submit(make_config())
