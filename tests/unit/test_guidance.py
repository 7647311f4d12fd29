"""Guidance by captions, by routes and by dropped paths: written-out loops, who pays what, whose draws."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prx import recipe
from prx.batches import Prompts
from prx.config import SamplingConfig, parse_run_config
from prx.interfaces import Route
from prx.rng import stream
from prx.sampling import ROUTE_SEED, PromptBatch, draw, routes_of, velocity_of
from prx.train_step import TrainStep
from tests.helpers import randomise, running
from tests.routes import GRID, TOKENS, inputs_of, module_of, router_of, traffic

KINDS = [("tread", "routing"), ("sprint", "routing"), ("sprint", "path_drop")]
STEPS = 3


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def ready(use: str, **settings) -> TrainStep:
    module = module_of(router_of(use, **settings))
    randomise(module.router, seed=2)
    return module


def prompts_of(num: int = 4) -> PromptBatch:
    noise, _, text, mask = inputs_of(num)
    null_mask = torch.zeros_like(mask)
    null_mask[:, 0] = True
    return PromptBatch(10 + torch.arange(num), text, mask, text.roll(1, -1)[:1].expand_as(text), null_mask, noise)


def some(prompts: PromptBatch, rows: list[int]) -> PromptBatch:
    return PromptBatch(*(value[rows] for value in prompts))


def settings(guidance: str, scale: float, num_steps: int = STEPS) -> SamplingConfig:
    return SamplingConfig(guidance=guidance, guidance_scale=scale, num_steps=num_steps)


def kept_by_hand(module: TrainStep, prompts: PromptBatch, step: int) -> Tensor:
    """Draw step by step and row by row what one prompt keeps."""
    found = []
    for row in prompts.rows.tolist():
        rng = stream(ROUTE_SEED, "guidance", row)
        found.append(module.router.draw(step + 1, module.grid, rng).kept[step])
    return torch.stack(found)


def by_hand(module: TrainStep, prompts: PromptBatch, guidance: str, scale: float) -> Tensor:
    """Integrate with a loop written out."""
    p, noised, times = prompts, prompts.noise, torch.linspace(1, 0, STEPS + 1).tolist()
    for step in range(STEPS):
        t = torch.full((len(noised),), times[step])
        strong = module.predict(noised, t, p.text, p.mask)
        if guidance == "routing":
            weak = module.predict(noised, t, p.text, p.mask, Route(kept_by_hand(module, p, step)))
        elif guidance == "path_drop":
            nothing = Route(torch.empty(len(noised), 0, dtype=torch.int64))
            weak = module.predict(noised, t, p.null_text, p.null_mask, nothing)
        else:
            weak = module.predict(noised, t, p.null_text, p.null_mask)
        noised = noised - (times[step] - times[step + 1]) * (weak + scale * (strong - weak))
    return noised


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0, 3.5])
@pytest.mark.parametrize(("use", "guidance"), [*KINDS, ("tread", "text"), ("sprint", "text")])
def test_sampling_is_the_written_out_loop(use, guidance, scale):
    module, prompts = ready(use), prompts_of()
    drawn, expected = draw(module, prompts, settings(guidance, scale)), by_hand(module, prompts, guidance, scale)
    # Captions are guided in one pass of twice the batch; weights of size 0.2 enlarge what that rounds differently.
    tolerance = 2e-3 if guidance == "text" or scale == 1.0 else 1e-4
    torch.testing.assert_close(drawn, expected, rtol=tolerance, atol=tolerance)


def velocity(module: TrainStep, guidance: str, scale: float) -> Tensor:
    prompts = prompts_of()
    return velocity_of(module, prompts, settings(guidance, scale))(prompts.noise, torch.full((4,), 0.7))


@pytest.mark.parametrize(("use", "guidance"), KINDS)
def test_velocity_is_affine_in_the_scale(use, guidance):
    module = ready(use)
    weak, strong, far = (velocity(module, guidance, scale) for scale in (0.0, 1.0, 3.5))
    torch.testing.assert_close(far, weak + 3.5 * (strong - weak), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(weak, strong, atol=1e-2)


@pytest.mark.parametrize(("use", "guidance"), KINDS)
def test_scale_one_is_one_dense_pass_without_any_draw(use, guidance, monkeypatch):
    module, prompts = ready(use), prompts_of()
    monkeypatch.setattr(module.router, "draw", lambda *_: pytest.fail("a route was drawn"))
    with traffic(module) as found:
        drawn = draw(module, prompts, settings(guidance, 1.0))
    assert found == [(block, 4, TOKENS) for _ in range(STEPS) for block in range(4)]
    assert torch.equal(drawn, draw(module, prompts, settings("text", 1.0)))


WEAK = {
    ("tread", "routing"): [(0, 4, 16), (1, 4, 8), (2, 4, 8), (3, 4, 16)],
    ("sprint", "routing"): [(0, 4, 16), (1, 4, 4), (2, 4, 4), (3, 4, 16)],
    ("sprint", "path_drop"): [(0, 4, 16), (3, 4, 16)],
}


@pytest.mark.parametrize(("use", "guidance"), KINDS)
def test_weak_prediction_costs_what_is_left_of_the_route(use, guidance):
    module = ready(use)
    with traffic(module) as found:
        velocity(module, guidance, 0.0)
    assert found == WEAK[use, guidance]
    with traffic(module) as found:
        velocity(module, guidance, 2.0)
    assert found == WEAK[use, guidance] + [(block, 4, TOKENS) for block in range(4)]
    with traffic(module) as found:
        velocity(module, "text", 2.0)
    assert found == [(block, 8, TOKENS) for block in range(4)]


def test_path_drop_hears_neither_caption_nor_deep_blocks():
    module, prompts = ready("sprint"), prompts_of()
    t, config = torch.full((4,), 0.7), settings("path_drop", 0.0)
    weak = velocity_of(module, prompts, config)(prompts.noise, t)
    other = prompts._replace(text=prompts.text + 1)
    randomise(module.denoiser.blocks[1:3], seed=8)
    assert torch.equal(velocity_of(module, other, config)(prompts.noise, t), weak)
    changed = prompts._replace(null_text=prompts.null_text + 1)
    assert not torch.allclose(velocity_of(module, changed, config)(prompts.noise, t), weak, atol=1e-2)


def test_routing_compares_the_same_caption():
    """Where the routed blocks do nothing, both predictions agree and the scale has no say."""
    module, config = ready("tread"), settings("routing", 5.0)
    for block in module.denoiser.blocks[1:3]:
        torch.nn.init.zeros_(block.modulation.lin.weight)
        torch.nn.init.zeros_(block.modulation.lin.bias)
    prompts = prompts_of()
    torch.testing.assert_close(draw(module, prompts, config), draw(module, prompts, settings("text", 1.0)))
    changed = prompts._replace(null_text=prompts.null_text + 1)
    assert torch.equal(draw(module, changed, config), draw(module, prompts, config))


@pytest.mark.parametrize("use", ["tread", "sprint"])
def test_routes_belong_to_the_prompt_and_the_step(use):
    module, prompts = ready(use), prompts_of(6)
    whole = torch.stack([route.kept for route in routes_of(module, prompts, 8)])
    assert whole.shape == (8, 6, module.router.config.num_kept(TOKENS))
    mixed = routes_of(module, some(prompts, [4, 0, 3]), 8)
    assert torch.equal(torch.stack([route.kept for route in mixed]), whole[:, [4, 0, 3]])
    shorter = torch.stack([route.kept for route in routes_of(module, prompts, 5)])
    assert torch.equal(shorter, whole[:5])
    assert len({tuple(row) for row in whole.flatten(0, 1).tolist()}) > 40


def test_nobody_skips_the_path_in_guidance_by_routes():
    module = ready("sprint", path_drop=0.9)
    assert all(route.skipped is None for route in routes_of(module, prompts_of(), STEPS))
    assert module.router.draw(100, GRID, stream(0, "routing")).skipped.any()


@pytest.mark.parametrize(("use", "guidance"), KINDS)
def test_pictures_do_not_depend_on_the_batch(use, guidance):
    module, prompts, config = ready(use), prompts_of(5), settings(guidance, 2.0)
    whole = draw(module, prompts, config)
    parts = torch.cat([draw(module, some(prompts, rows), config) for rows in ([0, 1], [2], [3, 4])])
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)
    moved = draw(module, some(prompts, [3, 1, 4]), config)
    torch.testing.assert_close(moved, whole[[3, 1, 4]], rtol=1e-4, atol=1e-4)


def refused(world, routing: dict | None, guidance: str) -> list[tuple[str, str]]:
    sampling = {"num_steps": 2, "guidance": guidance}
    config = parse_run_config(world.settings(routing=routing, sampling=sampling))
    return [(problem.path, problem.message) for problem in recipe.problems(config)]


def test_guidance_needs_a_router_that_offers_it(world):
    tread, sprint = {"use": "tread"}, {"use": "sprint"}
    rule = "with this routing, got"
    assert refused(world, None, "routing") == [("sampling.guidance", f"must be text {rule} 'routing'")]
    assert refused(world, tread, "path_drop") == [("sampling.guidance", f"must be text or routing {rule} 'path_drop'")]
    for routing, guidance in ((tread, "routing"), (sprint, "routing"), (sprint, "path_drop"), (None, "text")):
        assert refused(world, routing, guidance) == []


@pytest.mark.parametrize(("use", "guidance"), KINDS)
def test_a_run_samples_alike_in_any_batch_size(world, tmp_path, use, guidance):
    evaluation, found = world.settings()["evaluation"], []
    changes = {
        "routing": {"use": use}, "optimizer": {"use": "adamw", "lr": 1e-2},
        "sampling": {"num_steps": 3, "guidance_scale": 3.0, "guidance": guidance},
    }  # fmt: skip
    for size in (8, 3):
        with running(world, tmp_path, evaluation=evaluation | {"batch_size": size}, **changes) as trainer:
            with torch.enable_grad():
                trainer.advance(4)
            assert isinstance(trainer.prompts, Prompts)
            found.append(trainer.sample().int())
            plain = draw(trainer.engine.module, trainer.prompts.chunk(0, 4), settings("text", 1.0))
            steered = draw(trainer.engine.module, trainer.prompts.chunk(0, 4), trainer.config.sampling)
            assert not torch.allclose(plain, steered, atol=1e-3)
    assert (found[0] - found[1]).abs().max() <= 1


@pytest.mark.parametrize("guidance", ["text", "path_drop"])
def test_averaged_weights_sample_through_the_router_too(world, tmp_path, guidance):
    """An average that keeps nothing of the past is the model, its fusion and mask token included."""
    found = []
    for weights, decay in (("model", 0.0), ("ema", 0.0), ("ema", 0.9)):
        sampling = {"num_steps": 3, "guidance_scale": 3.0, "guidance": guidance, "weights": weights}
        changes = {"sampling": sampling, "ema": {"decay": decay, "every": 1}, "routing": {"use": "sprint"}}
        with running(world, tmp_path, optimizer={"use": "adamw", "lr": 1e-2}, **changes) as trainer:
            with torch.enable_grad():
                trainer.advance(4)
            found.append(trainer.sample())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
