"""Every row of the table of optimizers: the class it names, that it learns, and that it goes on exactly after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from security.errors import SafelightError
from tests.tiny import tiny_dataset, tiny_sd15
from tests.trainer.test_training import final_state, losses, make_config, only_run, prepared, trained
from trainer import events
from trainer.config.choices import OptimizerName
from trainer.config.files import ConfigError, parse_config
from trainer.config.sections import OptimizerConfig
from trainer.jobs import Control
from trainer.learning_rates import learning_rate_warnings
from trainer.nested import flatten, unflatten
from trainer.optimizers import (
    OPTIMIZERS,
    averaged_weights,
    build_optimizer,
    load_optimizer_state,
    optimizer_class,
    optimizer_state,
)
from trainer.workspace import Workspace

CLASSES = {
    "adamw": "torch.optim.adamw.AdamW",
    "adamw_8bit": "bitsandbytes.optim.adamw.AdamW8bit",
    "prodigy": "prodigyopt.prodigy.Prodigy",
    "prodigy_plus_schedule_free": "prodigyplus.prodigy_plus_schedulefree.ProdigyPlusScheduleFree",
    "adafactor": "transformers.optimization.Adafactor",
    "came": "pytorch_optimizer.optimizer.came.CAME",
    "lion": "pytorch_optimizer.optimizer.lion.Lion",
    "muon": "pytorch_optimizer.optimizer.muon.muon.Muon",
    "schedule_free_adamw": "schedulefree.adamw_schedulefree.AdamWScheduleFree",
    "radam": "torch.optim.radam.RAdam",
}
AVERAGING = {"prodigy_plus_schedule_free", "schedule_free_adamw"}
every_optimizer = pytest.mark.parametrize("name", list(OptimizerName), ids=lambda name: name.value)


class Problem:
    """A LoRA, a kernel, a vector and a token's embedding that have to reach given values, in two groups and a third."""

    def __init__(self, name: OptimizerName, **settings: Any) -> None:
        torch.manual_seed(3)
        usual = {"learning_rate": OPTIMIZERS[name].band.usual, "weight_decay": 0.01}
        self.settings = OptimizerConfig(name=name, **{**usual, **settings})
        self.down = nn.Parameter(torch.randn(8, 640) / 25)
        self.up = nn.Parameter(torch.zeros(48, 8))
        self.kernel = nn.Parameter(torch.zeros(8, 4, 3, 3))
        self.vector = nn.Parameter(torch.zeros(24))
        self.token = nn.Parameter(torch.zeros(2, 32))
        self.goals = [0.02 * torch.randn(48, 8) @ torch.randn(8, 640) / 4]
        self.goals += [0.05 * torch.randn_like(one) for one in (self.kernel, self.vector, self.token)]
        rate = self.settings.learning_rate
        groups: list[dict[str, Any]] = [
            {"params": [self.down, self.up, self.kernel], "lr": rate, "name": "denoiser"},
            {"params": [self.vector], "lr": rate, "name": "magnitudes"},
            {"params": [self.token], "lr": rate, "name": "embedding", "is_embedding": True, "weight_decay": 0.0},
        ]
        self.optimizer = build_optimizer(self.settings, groups)
        self.weights = [self.down, self.up, self.kernel, self.vector, self.token]

    def loss(self) -> torch.Tensor:
        found = [self.up @ self.down, self.kernel, self.vector, self.token]
        return sum(((one - goal) ** 2).mean() / (goal**2).mean() for one, goal in zip(found, self.goals, strict=True))

    def steps(self, count: int, *, begin: int = 0) -> None:
        """Steps with gradients that are a function of the step, as in training."""
        for step in range(begin, begin + count):
            torch.manual_seed(step)
            self.loss().backward()
            for one in self.weights:
                one.grad += 0.01 * one.grad.norm() * torch.randn_like(one) / one.numel() ** 0.5
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)


def test_every_name_has_a_row() -> None:
    assert set(OPTIMIZERS) == set(OptimizerName)
    assert {name.value for name in OptimizerName} == set(CLASSES)


@every_optimizer
def test_the_class_is_the_one_that_is_named(name: OptimizerName) -> None:
    optimizer = Problem(name).optimizer
    kind = type(optimizer)
    assert f"{kind.__module__}.{kind.__qualname__}" == CLASSES[name.value]
    assert kind is optimizer_class(OPTIMIZERS[name])
    assert hasattr(optimizer, "eval") == (name.value in AVERAGING)
    assert OPTIMIZERS[name].uses_schedule != (name.value in AVERAGING)


@every_optimizer
def test_it_learns_at_the_rates_of_its_band(name: OptimizerName, capsys: pytest.CaptureFixture[str]) -> None:
    band = OPTIMIZERS[name].band
    problem = Problem(name, learning_rate=band.usual if OPTIMIZERS[name].one_rate else band.high)
    before = [one.detach().clone() for one in problem.weights]
    start = float(problem.loss().detach())
    problem.steps(250)
    with averaged_weights(problem.optimizer):
        end = float(problem.loss().detach())
    assert end < 0.5 * start
    assert all(not torch.equal(one, old) for one, old in zip(problem.weights, before, strict=True))
    assert capsys.readouterr().out == "", "a library prints into the output of --json"


@every_optimizer
@pytest.mark.parametrize(
    ("field", "value"),
    [("beta1", 0.5), ("beta2", 0.5), ("beta3", 0.5), ("epsilon", 1e-2), ("weight_decay", 1.0), ("d_coefficient", 50.0)],
)
def test_it_listens_to_the_fields_that_its_row_names_and_to_no_others(
    name: OptimizerName, field: str, value: float
) -> None:
    usual, changed = Problem(name), Problem(name, **{field: value})
    for one in (usual, changed):
        one.steps(8)
    differ = any(not torch.equal(one, two) for one, two in zip(usual.weights, changed.weights, strict=True))
    assert differ == (field in OPTIMIZERS[name].uses)


@every_optimizer
def test_it_goes_on_bit_for_bit_after_a_checkpoint(name: OptimizerName) -> None:
    whole, first, second = (Problem(name) for _ in range(3))
    whole.steps(8)
    first.steps(5)
    tensors, structure = flatten(optimizer_state(first.settings, first.optimizer))
    state = unflatten(load(save(tensors)), json.loads(json.dumps(structure)))
    with torch.no_grad():
        for new, old in zip(second.weights, first.weights, strict=True):
            new.copy_(old)
    assert load_optimizer_state(second.settings, second.optimizer, state) == ""
    second.steps(3, begin=5)
    for new, old in zip(second.weights, whole.weights, strict=True):
        assert torch.equal(new, old)
    expected, found = (flatten(optimizer_state(one.settings, one.optimizer)) for one in (whole, second))
    assert found[1] == expected[1]
    assert all(torch.equal(found[0][key], expected[0][key]) for key in expected[0])
    assert {key: one.dtype for key, one in found[0].items()} == {key: one.dtype for key, one in expected[0].items()}


@every_optimizer
def test_looking_at_the_weights_in_between_changes_nothing(name: OptimizerName) -> None:
    quiet, looked_at = Problem(name), Problem(name)
    quiet.steps(6)
    looked_at.steps(3)
    stepped = [one.detach().clone() for one in looked_at.weights]
    with averaged_weights(looked_at.optimizer):
        shown = [one.detach().clone() for one in looked_at.weights]
    assert (name.value in AVERAGING) == any(not torch.equal(one, two) for one, two in zip(stepped, shown, strict=True))
    assert all(torch.equal(one, two) for one, two in zip(stepped, looked_at.weights, strict=True))
    looked_at.steps(3, begin=3)
    assert all(torch.equal(one, two) for one, two in zip(quiet.weights, looked_at.weights, strict=True))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("adamw", {"learning_rate": 3e-4, "beta1": 0.5}),
        ("prodigy", {"d_coefficient": 2.0, "weight_decay": 0.1}),
        ("muon", {"beta1": 0.5}),
        ("schedule_free_adamw", {"beta2": 0.9}),
    ],
)
def test_an_edit_between_stop_and_resume_wins(name: str, changes: dict[str, float]) -> None:
    before = Problem(OptimizerName(name))
    before.steps(3)
    after = Problem(OptimizerName(name), **changes)
    wanted = [{key: group[key] for key in group if key != "params"} for group in after.optimizer.param_groups]
    load_optimizer_state(after.settings, after.optimizer, optimizer_state(before.settings, before.optimizer))
    chosen = ("lr", "betas", "eps", "weight_decay", "momentum", "d_coef")
    for group, want in zip(after.optimizer.param_groups, wanted, strict=True):
        assert {key: group[key] for key in chosen if key in group} == {key: want[key] for key in chosen if key in want}


def test_another_optimizer_begins_without_a_memory_and_says_so() -> None:
    before, after = Problem(OptimizerName.ADAMW), Problem(OptimizerName.LION)
    before.steps(2)
    told = load_optimizer_state(after.settings, after.optimizer, optimizer_state(before.settings, before.optimizer))
    assert "adamw" in told and "lion" in told
    after.steps(1)
    other = build_optimizer(before.settings, [{"params": [nn.Parameter(torch.zeros(2))], "lr": 1e-4}])
    assert "groups" in load_optimizer_state(before.settings, other, optimizer_state(before.settings, before.optimizer))


def test_muon_takes_matrices_and_leaves_vectors_and_tokens_to_adamw() -> None:
    problem = Problem(OptimizerName.MUON)
    problem.steps(2)
    by_muon = {id(one) for group in problem.optimizer.param_groups if group["use_muon"] for one in group["params"]}
    assert by_muon == {id(problem.down), id(problem.up), id(problem.kernel)}
    assert "exp_avg_sq" in problem.optimizer.state[problem.token]
    before = problem.up.detach().clone()
    problem.steps(1, begin=2)
    step = problem.up.detach() - before
    rate = problem.settings.learning_rate
    # 0.2 in root mean square times the rate is AdamW's usual step; Newton-Schulz leaves singular values near one
    assert 0.1 * rate < float(step.square().mean().sqrt()) < 0.4 * rate
    ratio = torch.linalg.svdvals(step)
    assert float(ratio.max() / ratio.min()) < 3.0, "the step's directions are evened out"


def test_bits_are_saved_by_the_8_bit_memory() -> None:
    small, large = Problem(OptimizerName.ADAMW_8BIT), Problem(OptimizerName.ADAMW)
    for one in (small, large):
        one.steps(2)
    assert small.optimizer.state[small.down]["state1"].dtype == torch.uint8
    assert large.optimizer.state[large.down]["exp_avg"].dtype == torch.float32


def test_a_device_that_an_optimizer_lacks_is_refused_with_the_way_out() -> None:
    weight = nn.Parameter(torch.zeros(4, 4, device="meta"))  # stands for any kind of device that a row doesn't name
    with pytest.raises(SafelightError, match=r"adamw_8bit.*does not run on meta.*adafactor"):
        build_optimizer(OptimizerConfig(name=OptimizerName.ADAMW_8BIT), [{"params": [weight], "lr": 1e-4}])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd15(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("pictures") / "set", 4)


def configured(base: Path, pictures: Path, name: str, **sections: Any) -> Any:
    rate = OPTIMIZERS[OptimizerName(name)].band.usual
    values = {"training": {"max_train_steps": 5}, "lora": {"rank": 4, "alpha": 4.0}, **sections}
    return make_config(base, pictures, optimizer={"name": name, "learning_rate": rate}, **values)


@pytest.mark.parametrize("name", ["adamw_8bit", "prodigy_plus_schedule_free", "muon"])
def test_a_run_that_was_interrupted_ends_like_one_that_was_not(
    name: str, base: Path, pictures: Path, tmp_path: Path
) -> None:
    config = configured(base, pictures, name, sample={"prompts": ["a red circle"], "num_inference_steps": 1})
    config = config.model_copy(update={"sample": config.sample.model_copy(update={"width": 64, "height": 64})})
    whole = Workspace.open(tmp_path / "whole")
    expected = losses(trained(config, whole))
    halved = Workspace.open(tmp_path / "halved")
    control = Control()

    from trainer.inputs import find_inputs
    from trainer.loop import train
    from trainer.runs import RunFolder

    folder = RunFolder.create(halved, config)
    seen: list[events.Event] = []

    def emit(event: events.Event) -> None:
        seen.append(event)
        if isinstance(event, events.StepDone) and event.step == 3:
            control.stop.set()

    train(config, find_inputs(config, halved), folder, halved, emit, control)
    found = losses(seen) + losses(trained(config, halved, folder))
    assert found == expected
    first, second = final_state(only_run(whole)), final_state(folder)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_file_holds_the_averaged_weights_and_the_checkpoint_the_stepped_ones(
    base: Path, pictures: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    config = configured(base, pictures, "schedule_free_adamw", save={"precision": "fp32", "key_format": "diffusers"})
    config = config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"learning_rate": 5e-3})})
    workspace = Workspace.open(tmp_path / "space")
    trained(config, workspace)
    run = only_run(workspace)
    resumed = prepared(config, workspace)
    state = final_state(run)
    from trainer.checkpoints import list_checkpoints, load_checkpoint
    from trainer.resume import restore

    restore(resumed, load_checkpoint(list_checkpoints(run.checkpoints_dir)[-1]))
    stepped = sorted(float(one.abs().sum()) for one in state.values())
    with averaged_weights(resumed.optimizer):
        averaged = sorted(float(one.detach().abs().sum()) for one in resumed.parameters)
    (path,) = run.path.glob("*.safetensors")
    written = sorted(float(one.abs().sum()) for one in load_file(path).values())
    assert written == pytest.approx(averaged, rel=1e-5)
    assert written != pytest.approx(stepped, rel=1e-3)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"optimizer": {"name": "schedule_free_adamw", "schedule": "cosine"}}, "optimizer.schedule"),
        ({"optimizer": {"name": "prodigy_plus_schedule_free", "beta1": 0.0}}, "optimizer.beta1"),
        ({"optimizer": {"name": "schedule_free_adamw"}, "training": {"max_weight_norm": 1.0}}, "max_weight_norm"),
        (
            {"optimizer": {"name": "prodigy", "learning_rate": 1.0}, "lora": {"train_text_encoder": True}},
            "optimizer.text_encoder_learning_rate",
        ),
        ({"optimizer": {"name": "prodigy", "lora_plus_ratio": 4.0}}, "optimizer.lora_plus_ratio"),
        ({"optimizer": {"name": "prodigy"}, "lora": {"block_learning_rates": ["mid 0.5"]}}, "block_learning_rates"),
    ],
)
def test_what_an_optimizer_cannot_do_is_refused_with_the_way_out(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_config(values)


@every_optimizer
def test_rates_outside_the_band_are_told(name: OptimizerName) -> None:
    band = OPTIMIZERS[name].band
    assert band.low < band.usual < band.high

    def told(rate: float, **lora: Any) -> list[str]:
        optimizer = {"name": name.value, "learning_rate": rate, "text_encoder_learning_rate": rate}
        return learning_rate_warnings(parse_config({"optimizer": optimizer, "lora": lora}))

    assert told(band.usual) == told(band.low) == told(band.high) == []
    (high,), (low,) = told(band.high * 1.5), told(band.low / 2)
    assert f"{band.usual:g}" in high and "break" in high and "little" in low
    assert len(told(band.high * 1.5, train_text_encoder=True)) == 2
    assert len(told(band.high * 1.5, train_text_encoder=True, train_denoiser=False)) == 1
    if name is OptimizerName.PRODIGY:  # frozen blocks are all that it bears
        parse_config({"optimizer": {"name": "prodigy"}, "lora": {"block_learning_rates": ["mid 0", "up 1"]}})


def test_the_run_warns_before_it_starts(base: Path, pictures: Path, tmp_path: Path) -> None:
    config = make_config(base, pictures, optimizer={"learning_rate": 0.05}, training={"max_train_steps": 1})
    seen = trained(config, Workspace.open(tmp_path / "space"))
    first_step = next(number for number, event in enumerate(seen) if isinstance(event, events.StepDone))
    assert any(isinstance(event, events.Warned) and "0.05" in event.message for event in seen[:first_step])


def test_prodigy_tells_the_rate_that_it_found(base: Path, pictures: Path, tmp_path: Path) -> None:
    config = configured(base, pictures, "prodigy", training={"max_train_steps": 6})
    settings = config.optimizer.model_copy(update={"d_coefficient": 100.0})  # else it begins to grow after 40 steps
    seen = trained(config.model_copy(update={"optimizer": settings}), Workspace.open(tmp_path / "space"))
    rates = [event.learning_rate for event in seen if isinstance(event, events.StepDone)]
    assert rates[0] == pytest.approx(1e-6)
    assert rates[-1] > rates[0]
