"""Layers with ordered weights answer, and pass gradients back, as the plain ones do."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from trainer.speed.choose import num_weights
from trainer.speed.packed import PackedConv2d, PackedLinear, can_pack, pack, packable, packable_bytes

pytestmark = pytest.mark.skipif(not can_pack(), reason="this build of torch has no oneDNN")

LAYERS = [
    (nn.Linear(512, 640), (2, 30, 512)),
    (nn.Linear(640, 512, bias=False), (70, 640)),
    (nn.Conv2d(192, 320, 3, padding=1), (2, 192, 9, 7)),
    (nn.Conv2d(512, 640, 1), (1, 512, 8, 8)),
]
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def _answer_and_gradient(model: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    inputs = inputs.clone().requires_grad_()
    answer = model(inputs)
    answer.float().square().sum().backward()
    assert inputs.grad is not None
    return answer.detach().float(), inputs.grad.float()


def _distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / one.abs().max())


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_answers_and_gradients_are_those_of_the_plain_layer(
    layer: nn.Module, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    plain = nn.Sequential(copy.deepcopy(layer)).to(dtype).requires_grad_(False)
    packed = copy.deepcopy(plain)
    assert pack(packed) == 1
    assert isinstance(packed[0], PackedLinear | PackedConv2d)
    torch.manual_seed(0)
    for size in (shape, (shape[0] + 1, *shape[1:])):  # ordered for the first size, right for all
        inputs = torch.randn(size).to(dtype)
        for one, other in zip(_answer_and_gradient(plain, inputs), _answer_and_gradient(packed, inputs), strict=True):
            assert _distance(one, other) < BOUNDS[dtype]
        with torch.no_grad():
            assert _distance(plain(inputs).float(), packed(inputs).float()) < BOUNDS[dtype]
    assert torch.equal(packed[0].weight, plain[0].weight)
    assert num_weights(packed) == num_weights(plain)
    kept, before = packed.state_dict(), plain.state_dict()
    assert kept.keys() == before.keys()
    assert all(torch.equal(kept[name], before[name]) for name in before)


def test_layers_that_gain_nothing_or_cannot_be_packed_stay_as_they_are() -> None:
    odd = [
        nn.Linear(16, 16),
        nn.Conv2d(320, 320, 3, padding=1, stride=2),
        nn.Conv2d(320, 320, 3),
        nn.Conv2d(320, 320, 3, padding=1, groups=2),
        nn.Conv2d(320, 320, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(320, 320, 3, padding=2, dilation=2),
        nn.Conv2d(320, 320, 5, padding=2),
        nn.Linear(512, 640).to(torch.float16),
        nn.Linear(512, 640, device="meta"),
    ]
    model = nn.Sequential(*odd).requires_grad_(False)
    learning = nn.Linear(512, 640)
    assert not any(map(packable, [*odd, learning]))
    assert packable_bytes(model) == 0
    assert pack(model) == 0


def test_a_whole_u_net_computes_as_before() -> None:
    torch.manual_seed(0)
    plain = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(64, 128),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    ).requires_grad_(False)
    packed = copy.deepcopy(plain)
    assert pack(packed, everything=True) > 40
    latents, text, steps = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 32), torch.tensor([10, 900])
    found = []
    for model in (plain, packed):
        inputs = latents.clone().requires_grad_()
        answer = model(inputs, steps, text).sample
        answer.square().sum().backward()
        assert inputs.grad is not None
        found.append((answer.detach(), inputs.grad))
    for one, other in zip(*found, strict=True):
        assert _distance(one, other) < 1e-4
