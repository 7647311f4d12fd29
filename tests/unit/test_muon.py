"""Muon's update as mathematics, one optimizer step outside DeepSpeed's engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prx import recipe
from prx.config import parse_run_config
from prx.interfaces import RunShape
from prx.techniques.muon import Muon

SHAPES = [(96, 32), (32, 112), (64, 64)]
CLIPPED = RunShape(channels=4, latent_size=4, depth=2, grid=(4, 4), grad_clip=0.2)


def draw(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def factory(**settings: Any) -> Muon:
    return Muon(Muon.Config(use="muon", **settings))


def stepped(gradients: list[Tensor], name: str = "blocks.0.weight", **settings: Any) -> Tensor:
    """Give what a parameter that starts at zero is after steps along `gradients`."""
    weight = nn.Parameter(torch.zeros_like(gradients[0]))
    optimizer = factory(**settings).build(iter([(name, weight)]))
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("factor", [0.1, 3.0, 1e6])
def test_update_does_not_depend_on_the_gradients_scale(shape, factor):
    first = stepped([draw(shape), draw(shape, 1)], lr=1.0)
    scaled = stepped([factor * draw(shape), factor * draw(shape, 1)], lr=1.0)
    torch.testing.assert_close(scaled, first, rtol=0, atol=1e-6 * float(first.norm()))


@pytest.mark.parametrize("shape", [(96, 32), (32, 112), (112, 48)])
def test_singular_values_of_an_update_are_near_one(shape):
    update = stepped([draw(shape)], lr=1.0, scale="original")
    values = torch.linalg.svdvals(update) / max(1.0, shape[0] / shape[1]) ** 0.5
    assert float(values.min()) > 0.66
    assert float(values.max()) < 1.15


@pytest.mark.parametrize("rank", [1, 3])
def test_update_has_the_gradients_rank(rank):
    update = stepped([draw((48, rank)) @ draw((rank, 32), 1)], lr=1.0)
    assert int(torch.linalg.matrix_rank(update, rtol=1e-4)) == rank


@pytest.mark.parametrize("shape", [(96, 32), (32, 112), (256, 256)])
def test_matched_updates_are_as_large_as_adamws(shape):
    update = stepped([draw(shape)], lr=1e-2)
    assert float(update.square().mean().sqrt()) == pytest.approx(0.185e-2, rel=0.12)


@pytest.mark.parametrize("shape", SHAPES)
def test_two_scales_differ_by_the_root_of_the_input_width(shape):
    matched, original = (stepped([draw(shape)], lr=0.1, scale=scale) for scale in ("rms_matched", "original"))
    torch.testing.assert_close(matched, original * 0.2 * shape[1] ** 0.5, rtol=1e-5, atol=0)


@pytest.mark.parametrize("shape", [(96, 32), (48, 40)])
def test_transposed_gradient_gives_the_transposed_update_if_matched(shape):
    gradient = draw(shape)
    straight, turned = stepped([gradient], lr=1.0), stepped([gradient.T.contiguous()], lr=1.0)
    torch.testing.assert_close(turned.T, straight, rtol=1e-4, atol=1e-4)
    straight, turned = (stepped([g], lr=1.0, scale="original") for g in (gradient, gradient.T.contiguous()))
    torch.testing.assert_close(turned.T * (shape[0] / shape[1]) ** 0.5, straight, rtol=1e-4, atol=1e-4)


def test_momentum_is_nesterovs():
    """The second step's direction is that of (1 - b) g2 + b ((1 - b) b g1 + (1 - b) g2)."""
    first, second = draw((48, 32)), draw((48, 32), 1)
    moved = stepped([first, second], lr=1.0) - stepped([first], lr=1.0)
    momentum = 0.05 * (0.95 * first + second)
    torch.testing.assert_close(moved, stepped([0.05 * second + 0.95 * momentum], lr=1.0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("name", "shape"), [("blocks.0.norm", (48,)), ("img_in.weight", (48, 32))])
def test_rest_steps_bitwise_as_adamw(name, shape):
    settings = {"lr": 3e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}
    gradients = [draw(shape, seed) for seed in range(3)]
    expected = nn.Parameter(torch.zeros(shape))
    adamw = torch.optim.AdamW([expected], lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for gradient in gradients:
        expected.grad = gradient.clone()
        adamw.step()
    assert torch.equal(stepped(gradients, name, **settings), expected.detach())


def test_rest_may_have_a_rate_of_its_own():
    gradient = draw((48,))
    assert torch.equal(stepped([gradient], "norm", lr=0.02, rest_lr=1e-4), stepped([gradient], "norm", lr=1e-4))


@pytest.mark.parametrize("scale", ["rms_matched", "original"])
def test_weight_decay_is_the_rate_times_the_decay(scale):
    """A matrix without gradient only decays, by the same share at either scale."""
    weight = nn.Parameter(torch.ones(48, 32))
    optimizer = factory(lr=0.1, weight_decay=0.5, scale=scale).build(iter([("blocks.0.weight", weight)]))
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((48, 32), 0.95))


def test_kernels_are_not_compiled():
    from deepspeed.runtime.zero.muon import muon_optimizer, original_muon

    factory().build(iter([("blocks.0.weight", nn.Parameter(torch.zeros(4, 4)))]))
    for found in (original_muon.zeropower_via_gram_newtonschulz, muon_optimizer.muon_update):
        assert not hasattr(found, "_torchdynamo_orig_callable")


@pytest.mark.parametrize("adaln", [True, False])
def test_groups_name_every_parameter_once(world, adaln):
    optimizer = {"use": "muon", "adaln": adaln}
    losses = {"repa": world.repa()}
    module = recipe.build(parse_run_config(world.settings(optimizer=optimizer, losses=losses)))
    found = factory(adaln=adaln).groups(module.named_parameters())
    assert sorted(name for names in found.values() for name in names) == sorted(dict(module.named_parameters()))
    assert found.keys() == {"muon 32", "muon 112", "adamw"}
    assert [n.removeprefix("denoiser.blocks.") for n in found["muon 112"]] == [
        "0.down_proj.weight",
        "1.down_proj.weight",
    ]
    assert ("denoiser.blocks.0.modulation.lin.weight" in found["muon 32"]) == adaln
    assert "denoiser.blocks.0.attention.img_qkv_proj.weight" in found["muon 32"]
    rest = {"denoiser.img_in.weight", "denoiser.final_layer.linear.weight", "losses.repa.projector.0.weight"}
    assert rest | {"denoiser.blocks.0.modulation.lin.bias"} <= set(found["adamw"])


def test_adamw_reports_one_group(world):
    config = parse_run_config(world.settings())
    names = list(dict(recipe.build(config).named_parameters()))
    assert recipe.optimizer(config).groups(recipe.build(config).named_parameters()) == {"all": names}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_clipping_is_refused_where_it_would_shrink_the_updates(world, stage):
    infrastructure = {"device": "cpu", "zero_stage": stage}
    settings = {"optimizer": {"use": "muon"}, "infrastructure": infrastructure}
    clipped = recipe.problems(parse_run_config(world.settings(**settings, grad_clip=0.2)))
    assert [problem.path for problem in clipped] == (["optimizer.use"] if stage else [])
    assert all("grad_clip" in problem.message and "0.2" in problem.message for problem in clipped)
    assert recipe.problems(parse_run_config(world.settings(**settings, grad_clip=None))) == []
    assert Muon.problems(Muon.Config(use="muon"), CLIPPED) == []
