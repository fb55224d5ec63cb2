"""The limit on a layer's change: exact for every kind that has a length, and nothing else is touched."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainer.adapters.layer import AdaptedLayer, AdapterOptions, BaseLayer
from trainer.adapters.norms import limit_norms
from trainer.adapters.table import make_adapter
from trainer.config.choices import AdapterName
from trainer.config.files import ConfigError, parse_config

WITH_LENGTH = [AdapterName.LORA, AdapterName.LOCON, AdapterName.LOHA, AdapterName.LOKR]
WITHOUT = [AdapterName.DORA, AdapterName.OFT, AdapterName.BOFT]


def learned_layer(name: AdapterName, base: BaseLayer, rank: int = 3) -> AdaptedLayer:
    """A layer whose adapter has learned something."""
    torch.manual_seed(4)
    layer = AdaptedLayer(base, make_adapter(name, base, AdapterOptions(rank=rank, scale=0.7, block_size=4)))
    with torch.no_grad():
        for parameter in layer.adapter.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return layer


def bases() -> dict[str, BaseLayer]:
    torch.manual_seed(3)
    return {"linear": nn.Linear(16, 32), "convolution": nn.Conv2d(16, 32, 3, padding=1)}


@pytest.mark.parametrize("shape", ["linear", "convolution"])
@pytest.mark.parametrize("name", WITH_LENGTH)
def test_a_long_change_is_shortened_to_the_limit_and_keeps_its_direction(name: AdapterName, shape: str) -> None:
    layer = learned_layer(name, bases()[shape])
    before = layer.delta()
    limit = float(before.norm()) / 3
    limit_norms([layer], limit)
    torch.testing.assert_close(layer.delta(), before / 3, rtol=1e-4, atol=1e-6)
    assert float(layer.delta().norm()) == pytest.approx(limit, rel=1e-4)


@pytest.mark.parametrize("name", WITH_LENGTH)
def test_a_change_that_is_short_enough_stays_bit_for_bit(name: AdapterName) -> None:
    layer = learned_layer(name, bases()["linear"])
    before = [parameter.clone() for parameter in layer.adapter.parameters()]
    limit_norms([layer], float(layer.delta().norm()) * 1.001)
    assert all(torch.equal(old, new) for old, new in zip(before, layer.adapter.parameters(), strict=True))


def test_a_kronecker_product_of_three_matrices_is_shortened_as_well() -> None:
    layer = learned_layer(AdapterName.LOKR, nn.Linear(64, 64), rank=1)
    assert len(list(layer.adapter.parameters())) == 3
    before = layer.delta()
    limit_norms([layer], float(before.norm()) / 10)
    torch.testing.assert_close(layer.delta(), before / 10, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", WITHOUT)
def test_kinds_without_a_length_are_left_alone(name: AdapterName) -> None:
    layer = learned_layer(name, bases()["linear"])
    before = [parameter.clone() for parameter in layer.adapter.parameters()]
    limit_norms([layer], 1e-6)
    assert all(torch.equal(old, new) for old, new in zip(before, layer.adapter.parameters(), strict=True))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"lora": {"init": "pissa"}}, "pissa"),
        ({"optimizer": {"name": "schedule_free_adamw"}}, "schedule_free_adamw"),
    ],
)
def test_where_shortening_would_break_the_training_it_is_refused(values: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"training\.max_weight_norm is 1 but .*{words}"):
        parse_config({**values, "training": {"max_weight_norm": 1.0}})
