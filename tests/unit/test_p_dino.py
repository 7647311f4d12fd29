"""P-DINO: bounds, symmetry, the gate, and a gradient that reaches pictures but no weight."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prx.images import to_uint8, to_unit
from prx.interfaces import FlowSample, RunShape, StepView
from prx.teachers import Teacher
from prx.techniques.p_dino import PDino, shared

CPU = torch.device("cpu")
READY = frozenset({"pixels", "clean_prediction"})
SHAPE = RunShape(3, 16, depth=2, grid=(4, 4), provides=READY)


@pytest.fixture(params=["dinov2", "dinov3"])
def teacher(request, world) -> str:
    return str(world.root / request.param)


def term(teacher: str, **settings) -> PDino:
    return PDino("p_dino", PDino.Config(use="p_dino", teacher=teacher, **{"grid": 4} | settings), SHAPE)


def view(estimate: Tensor, clean: Tensor, t: Tensor | None = None) -> StepView:
    t = torch.full((len(clean),), 0.5) if t is None else t
    return StepView(FlowSample(clean, clean, t, clean), clean, {}, estimate=estimate)


def pictures(num: int, seed: int) -> Tensor:
    return torch.rand(num, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_features_are_the_tokens_of_the_same_picture(teacher):
    """Alignment's cached tokens and this loss's features agree where no clamp is at work."""
    images = to_uint8(pictures(2, 0))
    frozen = Teacher(teacher, CPU)
    torch.testing.assert_close(frozen.features(to_unit(images), (4, 4)), frozen.tokens(images, (4, 4)))
    smooth = torch.nn.functional.interpolate(pictures(2, 0) / 2, scale_factor=0.25, mode="area")
    smooth = to_uint8(torch.nn.functional.interpolate(smooth, scale_factor=4, mode="bilinear"))
    assert frozen.features(to_unit(smooth), (6, 6)).shape == (2, 36, frozen.width)
    torch.testing.assert_close(
        frozen.features(to_unit(smooth), (6, 6)), frozen.tokens(smooth, (6, 6)), rtol=1e-4, atol=1e-4
    )


def test_value_is_the_mean_of_one_minus_the_cosine(teacher):
    clean, estimate = pictures(3, 0), pictures(3, 1)
    found, wanted = (Teacher(teacher, CPU).features(images, (4, 4)) for images in (estimate, clean))
    cosine = (found * wanted).sum(-1) / found.norm(dim=-1) / wanted.norm(dim=-1)
    value = term(teacher)(view(estimate, clean))
    torch.testing.assert_close(value, 1 - cosine.mean())
    assert 0 < float(value) < 2
    assert term(teacher).config.weight == 0.01


def test_equal_pictures_have_no_distance(teacher):
    clean = pictures(3, 0)
    assert float(term(teacher)(view(clean, clean))) == pytest.approx(0, abs=1e-6)


def test_distance_is_symmetric(teacher):
    clean, estimate = pictures(3, 0), pictures(3, 1)
    torch.testing.assert_close(term(teacher)(view(estimate, clean)), term(teacher)(view(clean, estimate)))


def test_bounds_are_reached_at_equal_and_opposite_features(teacher, monkeypatch):
    monkeypatch.setattr(Teacher, "features", lambda self, images, grid: images.flatten(2))
    clean = pictures(3, 0)
    assert float(term(teacher)(view(clean, clean))) == pytest.approx(0, abs=1e-6)
    assert float(term(teacher)(view(-clean, clean))) == pytest.approx(2, abs=1e-6)


def test_gradient_reaches_the_estimate_and_no_weight(teacher):
    clean = pictures(2, 0).requires_grad_()
    estimate = (3 * pictures(2, 1)).requires_grad_()  # outside of [-1, 1] too: nothing is clamped
    loss = term(teacher)
    loss(view(estimate, clean)).backward()
    assert estimate.grad.ne(0).float().mean() > 0.99
    assert clean.grad is None
    frozen = shared(teacher, "cpu").model
    assert all(p.grad is None and not p.requires_grad for p in frozen.parameters())
    assert not frozen.training
    assert list(loss.modules()) == [loss]
    assert not loss.state_dict()


def test_samples_over_the_threshold_count_as_zero(teacher):
    clean, t = pictures(4, 0), torch.tensor([0.2, 0.7, 0.71, 1.0])
    estimate = pictures(4, 1)
    estimate[2:] = float("nan")
    estimate.requires_grad_()
    value = term(teacher, max_t=0.7)(view(estimate, clean, t))
    value.backward()
    torch.testing.assert_close(value, term(teacher)(view(estimate[:2], clean[:2])) / 2)
    assert not estimate.grad[2:].any()
    assert estimate.grad[:2].any()
    nothing = term(teacher, max_t=0.1)(view(estimate, clean, t))
    assert float(nothing) == 0
    assert not nothing.requires_grad


def test_descending_brings_features_together(teacher):
    clean = pictures(2, 0)
    estimate = pictures(2, 1).requires_grad_()
    before = float(term(teacher)(view(estimate, clean)).detach())
    optimizer = torch.optim.Adam([estimate], lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        term(teacher)(view(estimate, clean)).backward()
        optimizer.step()
    assert float(term(teacher)(view(estimate, clean)).detach()) < 0.5 * before


def test_what_cannot_work_is_refused(teacher, tmp_path):
    config = term(teacher).config
    assert PDino.problems(config, SHAPE) == []
    latent = RunShape(4, 16, depth=2, grid=(4, 4), provides=frozenset({"clean_prediction"}))
    assert PDino.problems(config, latent) == [("use", "compares pictures, needs tokenizer.use: pixels")]
    velocity = RunShape(3, 16, depth=2, grid=(4, 4), provides=frozenset({"pixels"}))
    assert PDino.problems(config, velocity) == []
    assert [key for key, _ in PDino.problems(term(str(tmp_path)).config, SHAPE)] == ["teacher"]
