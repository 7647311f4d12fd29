"""The latent's size as a condition, by vector or by tokens, and the patch embedding through a bottleneck."""

from __future__ import annotations

import pytest
import torch
from diffusers import PRXTransformer2DModel
from torch import Tensor

from prx import denoiser, recipe
from prx.config import DenoiserConfig
from prx.denoiser import ResolutionTokens, walk
from tests.helpers import randomise, running, same, weights

SETTINGS = {"width": 32, "depth": 2, "heads": 2, "patch_size": 2, "mlp_ratio": 2.0}


def fresh(**settings) -> PRXTransformer2DModel:
    torch.manual_seed(0)
    return denoiser.build(DenoiserConfig(**SETTINGS | settings), channels=3, text_width=8)


def built(**settings) -> PRXTransformer2DModel:
    model = fresh(**settings)
    randomise(model)
    return model


def inputs(height: int = 8, width: int = 8) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    mask = torch.tensor([[True, True, True, False, False], [True, False, False, False, False]])
    return torch.randn(2, 3, height, width), torch.tensor([0.2, 0.9]), torch.randn(2, 5, 8), mask


def tokens(scale: float = 0.5) -> ResolutionTokens:
    found = ResolutionTokens(32)
    randomise(found, seed=1, scale=scale)
    return found


@pytest.mark.parametrize(
    "settings", [{"resolution": "vec"}, {"bottleneck": 4}, {"resolution": "vec", "bottleneck": 4}], ids=str
)
@pytest.mark.parametrize("size", [(8, 8), (4, 12)], ids=str)
def test_walk_is_diffusers_own_forward(settings, size):
    model, given = built(**settings), inputs(*size)
    expected = model(*given, return_dict=False)[0]
    assert expected.abs().min() > 0
    assert torch.equal(walk(model, *given)[0], expected)
    walked = torch.autograd.grad(walk(model, *given)[0].square().sum(), list(model.parameters()))
    plain = torch.autograd.grad(model(*given, return_dict=False)[0].square().sum(), list(model.parameters()))
    assert all(torch.equal(a, b) and a.any() for a, b in zip(walked, plain, strict=True))


@pytest.mark.parametrize("settings", [{"resolution": "vec"}, {"bottleneck": 4}, {"resolution": "token"}], ids=str)
def test_saved_denoiser_is_one_that_diffusers_loads(settings, tmp_path):
    model, given = built(**settings), inputs()
    model.save_pretrained(tmp_path)
    loaded, report = PRXTransformer2DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(loaded(*given, return_dict=False)[0], walk(model, *given)[0])


def test_vector_starts_as_if_it_were_off():
    """The embedder is added last and ends in zeros: equal weights, equal features, equal everything."""
    off, vec = fresh(), fresh(resolution="vec")
    named = dict(vec.named_parameters())
    assert all(torch.equal(parameter, named[name]) for name, parameter in off.named_parameters())
    for model in (off, vec):
        for name, parameter in model.named_parameters():
            if "resolution" not in name and not parameter.any():  # gates and outputs that are zero at first
                torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    assert torch.equal(walk(vec, *inputs())[0], walk(off, *inputs())[0])
    assert walk(off, *inputs())[0].any()


def test_vector_starts_to_learn_from_its_last_layer():
    vec = built(resolution="vec")
    last = vec.resolution_embedder.mlp.out_layer
    for parameter in last.parameters():
        torch.nn.init.zeros_(parameter)
    walk(vec, *inputs())[0].square().sum().backward()
    assert last.weight.grad.any()
    assert last.bias.grad.any()


def vector(height: int, width: int, model: PRXTransformer2DModel) -> Tensor:
    sides = (torch.tensor([float(side)]) for side in (height, width))
    return model.resolution_embedder(*sides, dtype=torch.float32)


def test_vector_knows_height_from_width():
    model = built(resolution="vec")
    assert not torch.allclose(vector(4, 8, model), vector(8, 4, model), atol=1e-3)
    assert torch.equal(vector(8, 8, model), vector(8, 8, model))


def prepended(found: ResolutionTokens, height: int, width: int) -> Tensor:
    context, mask = found(torch.randn(2, 5, 32), torch.ones(2, 5, dtype=torch.bool), height, width)
    assert context.shape == (2, 7, 32)
    assert mask.shape == (2, 7)
    assert torch.equal(context[0, :2], context[1, :2])
    return context[0, :2]


def test_tokens_depend_on_the_size_only_height_first():
    found = tokens()
    first, again = prepended(found, 4, 8), prepended(found, 4, 8)
    assert torch.equal(first, again)  # whatever the text
    taller, wider = prepended(found, 16, 8), prepended(found, 4, 16)
    assert not torch.allclose(taller[0], first[0], atol=1e-3)
    assert torch.equal(taller[1], first[1])
    assert torch.equal(wider[0], first[0])
    assert not torch.allclose(wider[1], first[1], atol=1e-3)


def test_tokens_are_the_sinusoids_of_the_definition():
    found = tokens()
    angles = 12.0 * 10_000 ** (-torch.arange(64) / 64)
    wave = torch.cat([angles.cos(), angles.sin()])
    expected = torch.stack([found.height(wave), found.width(wave)])
    torch.testing.assert_close(prepended(found, 12, 12), expected, rtol=1e-4, atol=1e-4)


def test_swapping_the_sides_changes_the_output_unless_they_are_equal():
    """No text key has a position: were both tokens made alike, the attention could not tell them apart."""
    model, given, found = built(), inputs(), tokens()
    context, mask = model.txt_in(given[2]), given[3]

    def output(height: int, width: int) -> Tensor:
        class Fixed(ResolutionTokens):
            def forward(self, context, mask, *_):
                return found(context, mask, height, width)

        return walk(model, *given, resolution=Fixed(32))[0]

    assert found(context, mask, 8, 8)[1].sum() == mask.sum() + 4
    assert not torch.allclose(output(4, 8), output(8, 4), atol=1e-4)
    assert torch.equal(output(8, 8), walk(model, *given, resolution=found)[0])


def test_tokens_that_carry_nothing_still_take_attention():
    model, given, found = built(), inputs(), tokens(scale=0.0)
    context, _ = found(model.txt_in(given[2]), given[3], 8, 8)
    assert not context[:, :2].any()
    assert not torch.allclose(walk(model, *given, resolution=found)[0], walk(model, *given)[0], atol=1e-4)


def test_tokens_are_read_in_every_block_and_by_every_prompt():
    model, given, found = built(), inputs(), tokens()
    nothing = torch.zeros_like(given[3])
    empty = walk(model, *given[:3], nothing, resolution=found)[0]
    assert not torch.allclose(empty, walk(model, *given[:3], nothing)[0], atol=1e-4)
    gradients = torch.autograd.grad(empty.square().sum(), list(found.parameters()))
    assert all(gradient.any() for gradient in gradients)


def patches(model: PRXTransformer2DModel, num: int = 64) -> Tensor:
    with torch.no_grad():
        rows = torch.randn(num, 12, generator=torch.Generator().manual_seed(0))
        return model.img_in(rows) - model.img_in(torch.zeros(1, 12))


@pytest.mark.parametrize(("bottleneck", "rank"), [(3, 3), (8, 8), (64, 12), (None, 12)])
def test_bottleneck_bounds_the_rank_of_the_embedding(bottleneck, rank):
    model = built(bottleneck=bottleneck)
    assert int(torch.linalg.matrix_rank(patches(model), rtol=1e-5)) == rank


@pytest.mark.parametrize("mode", ["off", "vec", "token"])
def test_recipe_leaves_all_other_weights_alone(world, mode):
    shape = world.settings()["denoiser"]
    off, module = (recipe.build(world.config(denoiser=shape | {"resolution": r})) for r in ("off", mode))
    plain, named = dict(off.named_parameters()), dict(module.named_parameters())
    assert all(torch.equal(parameter, named[name]) for name, parameter in plain.items())
    added = {name.rpartition("_layer.")[0] for name in set(named) - set(plain)}
    owners = {
        "off": [],
        "vec": ["denoiser.resolution_embedder.mlp"],
        "token": ["resolution.height", "resolution.width"],
    }
    assert added == {f"{owner}.{layer}" for owner in owners[mode] for layer in ("in", "out")}
    again = dict(recipe.build(world.config(denoiser=shape | {"resolution": mode})).named_parameters())
    assert same(named, again)


@pytest.mark.parametrize("mode", ["vec", "token"])
@pytest.mark.parametrize("stage", [0, 3])
def test_resolution_is_trained_saved_and_used_when_sampling(world, tmp_path, mode, stage):
    shape = world.settings()["denoiser"] | {"resolution": mode}
    with running(world, tmp_path, denoiser=shape, zero_stage=stage) as trainer:
        before = weights(trainer)
        trainer.advance(4)
        after = weights(trainer)
        own = [name for name in before if "resolution" in name]
        assert own
        assert all(not torch.equal(before[name], after[name]) for name in own)
        trainer.save()
        drawn = trainer.sample()
    with running(world, tmp_path, denoiser=shape, zero_stage=stage) as trainer:
        assert trainer.resume() == 4
        assert same(weights(trainer), after)
        assert torch.equal(trainer.sample(), drawn)
