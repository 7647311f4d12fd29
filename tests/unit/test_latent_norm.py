"""What stands around a trained tokenizer: normalisation, frozen parts, the adversary."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prx.discriminator import PatchDiscriminator, hinge
from prx.latent_norm import EPS, MOMENTUM, LatentNorm
from prx.layers import frozen


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_running_statistics_normalise_by_their_formula():
    norm, latents = LatentNorm(3), drawn(4, 3, 5, 5)
    norm.start_from(torch.tensor([1.0, -2.0, 0.5]), torch.tensor([4.0, 0.25, 1e-6]))
    for channel, (mean, var) in enumerate([(1.0, 4.0), (-2.0, 0.25), (0.5, 1e-6)]):
        expected = (latents[:, channel] - mean) / (var + 1e-4) ** 0.5
        torch.testing.assert_close(norm(latents)[:, channel], expected)
    torch.testing.assert_close(norm.inverse(norm(latents)), latents)


def test_normalisation_is_torchs_batch_norm():
    norm, theirs = LatentNorm(3), nn.BatchNorm2d(3, affine=False, eps=EPS, momentum=MOMENTUM)
    for seed in range(4):
        latents = 3 * drawn(4, 3, 5, 5, seed=seed) + 2
        torch.testing.assert_close(norm.batch(latents), theirs(latents), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm.running_mean, theirs.running_mean)
    torch.testing.assert_close(norm.running_var, theirs.running_var)
    torch.testing.assert_close(norm(latents), theirs.eval()(latents))


def test_running_statistics_follow_the_closed_form():
    norm = LatentNorm(2)
    norm.start_from(torch.tensor([3.0, -1.0]), torch.tensor([2.0, 5.0]))
    latents = drawn(3, 2, 4, 4)
    for _ in range(5):
        norm.batch(latents)
    kept = 0.9**5
    mean, var = latents.mean((0, 2, 3)), latents.var((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, kept * torch.tensor([3.0, -1.0]) + (1 - kept) * mean)
    torch.testing.assert_close(norm.running_var, kept * torch.tensor([2.0, 5.0]) + (1 - kept) * var)


def test_statistics_stay_float32_in_a_bfloat16_model():
    model = nn.Sequential(LatentNorm(2), nn.Linear(2, 2))
    value = torch.tensor([1 + 2**-12, 0.1])
    model[0].start_from(value, value)
    model.to(torch.bfloat16)
    assert model[1].weight.dtype == torch.bfloat16
    assert model[0].running_mean.dtype == torch.float32
    assert torch.equal(model[0].running_mean, value)
    assert model[0](drawn(1, 2, 3, 3)).dtype == torch.float32
    assert set(model[0].state_dict()) == {"running_mean", "running_var"}


def test_latents_that_are_no_numbers_leave_the_statistics_alone():
    norm, latents = LatentNorm(2), drawn(2, 2, 3, 3)
    latents[0, 0, 0, 0] = float("inf")
    assert not norm.batch(latents).isfinite().all()
    assert torch.equal(norm.running_mean, torch.zeros(2))
    assert torch.equal(norm.running_var, torch.ones(2))


def test_only_the_running_normalisation_has_a_gradient():
    norm, latents = LatentNorm(2), drawn(2, 2, 3, 3).requires_grad_()
    assert not norm.batch(latents).requires_grad
    norm(latents).sum().backward()
    torch.testing.assert_close(latents.grad, (1 / norm.std).expand_as(latents))


def test_frozen_lets_gradients_through_and_gives_parameters_back():
    layer, fixed, x = nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False), drawn(3, 2).requires_grad_()
    with frozen(layer, fixed):
        loss = layer(x).square().sum()
    assert all(p.requires_grad for p in layer.parameters())
    assert not any(p.requires_grad for p in fixed.parameters())
    (loss + layer(x.detach()).sum()).backward()
    torch.testing.assert_close(x.grad, 2 * layer(x).detach() @ layer.weight.detach())
    torch.testing.assert_close(layer.weight.grad, x.detach().sum(0).expand(2, 2))
    with pytest.raises(KeyError), frozen(layer):
        raise KeyError
    assert layer.weight.requires_grad


def test_hinge_ends_at_a_margin_of_one():
    zero, one = torch.zeros(2, 1, 3, 3), torch.ones(2, 1, 3, 3)
    assert hinge(zero, zero) == 1
    assert hinge(one, -one) == 0
    assert hinge(5 * one, -5 * one) == 0
    assert hinge(-one, one) == 2


@pytest.mark.parametrize(("size", "depth", "patches"), [(16, 2, 4), (16, 3, 2), (32, 3, 4)])
def test_discriminator_judges_patches_one_picture_at_a_time(size, depth, patches):
    torch.manual_seed(0)
    model, images = PatchDiscriminator(8, depth), drawn(3, 3, size, size)
    judged = model(images)
    assert judged.shape == (3, 1, patches, patches)
    torch.testing.assert_close(model(images[1:2]), judged[1:2])
