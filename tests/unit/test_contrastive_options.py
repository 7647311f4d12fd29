"""What contrastive flow matching offers beyond PRX: partners by prompt, captioned samples only, correction."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from prx import recipe
from prx.batches import Batches
from prx.config import parse_run_config
from prx.errors import UserError
from prx.interfaces import FlowSample, PairContext, RunShape, StepView
from prx.rng import normal, stream
from prx.sampling import euler
from prx.techniques.contrastive import Contrastive
from prx.techniques.velocity import Velocity
from tests.helpers import running, same, weights

WEIGHT = 0.05
SHAPE = RunShape(channels=4, latent_size=8, depth=2, grid=(8, 8))
FLOW = Velocity(Velocity.Config(use="velocity"))
WEIGHTS = {"train": 1.0, "reference": 3.0}
CORRECTED = {"use": "contrastive", "weight": 0.2, "correct_sampling": True}


def term(weight: float = WEIGHT, dropout: float = 0.0, **settings) -> Contrastive:
    config = Contrastive.Config(use="contrastive", weight=weight, **settings)
    return Contrastive("contrastive", config, replace(SHAPE, caption_dropout=dropout))


def pair(prompts: list[int], step: int = 0, **settings) -> np.ndarray:
    context = PairContext(np.array(prompts), np.zeros(len(prompts), dtype=bool))
    found = term(**settings).pair(context, stream(0, "losses/contrastive", step))
    assert found is not None
    return found


def test_partners_of_another_prompt_are_equally_likely():
    prompts, rounds = [7, 3, 7, 7, 9, 3], 4000
    counts = np.zeros((6, 6), dtype=int)
    for step in range(rounds):
        counts[np.arange(6), pair(prompts, step, negatives="different_prompt")] += 1
    same_prompt = np.equal.outer(prompts, prompts)
    assert counts[same_prompt].sum() == 0
    for row in range(6):
        assert chisquare(counts[row][~same_prompt[row]]).pvalue > 1e-4


def test_any_partner_may_share_the_prompt():
    assert pair([4, 4]).tolist() == [1, 0]


def test_two_different_prompts_swap():
    assert pair([4, 2], negatives="different_prompt").tolist() == [1, 0]


def test_batch_of_one_prompt_has_no_partners_and_says_so():
    with pytest.raises(UserError, match=r"^losses.contrastive.negatives: different_prompt needs two .* all 3 .* any"):
        pair([5, 5, 5], negatives="different_prompt")


def test_prompts_of_the_global_batch_decide(world):
    losses = {"contrastive": {"use": "contrastive", "negatives": "different_prompt"}}
    config = world.config(losses=losses, text={"encoder": str(world.root / "text"), "caption_dropout": 0.5})
    batches = Batches(config, world.cache, recipe.build(config))
    for step in range(4):
        batch, order = batches.batch(step), batches.order(step)
        prompts = batches._prompts(order, batches._captions(step)[0])
        context = PairContext(prompts, np.zeros(8, dtype=bool))
        index = term(negatives="different_prompt").pair(context, stream(config.seed, "losses/contrastive", step))
        assert (prompts[index] != prompts).all()
        assert torch.equal(batch.partners["contrastive"], (batch.noise - batch.clean)[torch.from_numpy(index)])


def view(velocity, partner, unconditional=None) -> StepView:
    sample = FlowSample(velocity, velocity, torch.zeros(len(velocity)), velocity)
    return StepView(sample, velocity, {}, partners={"contrastive": partner}, unconditional=unconditional)


def test_dropped_captions_leave_the_term_and_the_rest_weighs_more():
    velocity, partner = torch.randn(8, 2, 4, 4, requires_grad=True), torch.randn(8, 2, 4, 4)
    dropped = torch.tensor([False, True, False, False, True, False, False, False])
    value = term(dropout=0.25, contrast_unconditional=False)(view(velocity, partner, dropped))
    kept = (velocity - partner)[~dropped].square().mean()
    torch.testing.assert_close(value, -kept)  # a quarter was dropped, as expected
    value.backward()
    assert not velocity.grad[dropped].any()
    assert velocity.grad[~dropped].all()


def test_share_is_the_expected_one_so_that_micro_batches_add_up():
    velocity, partner = torch.randn(8, 2, 4, 4), torch.randn(8, 2, 4, 4)
    dropped = torch.tensor([True, True, True, True, False, True, False, False])
    chosen = term(dropout=0.1, contrast_unconditional=False)
    whole = chosen(view(velocity, partner, dropped))
    halves = [chosen(view(velocity[s], partner[s], dropped[s])) for s in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(whole, torch.stack(halves).mean())
    assert halves[0] == 0


def test_nothing_dropped_is_the_plain_term():
    velocity, partner = torch.randn(2, 3, 2, 4, 4)
    nobody = torch.zeros(3, dtype=torch.bool)
    chosen = term(contrast_unconditional=False)(view(velocity, partner, nobody))
    torch.testing.assert_close(chosen, term()(view(velocity, partner)))


@pytest.mark.parametrize(
    ("settings", "dropout", "key"),
    [
        ({"weight": 0.5, "contrast_unconditional": False}, 0.5, "weight"),
        ({"contrast_unconditional": False}, 1.0, "weight"),
        ({"contrast_unconditional": False, "correct_sampling": True}, 0.1, "correct_sampling"),
    ],
)
def test_impossible_settings_are_found(world, settings, dropout, key):
    config = parse_run_config(
        world.settings(
            losses={"away": {"use": "contrastive"} | settings},
            text={"encoder": str(world.root / "text"), "caption_dropout": dropout},
        )
    )
    assert [problem.path for problem in recipe.problems(config)] == [f"losses.away.{key}"]


def optimum(noised: torch.Tensor, t: torch.Tensor, mean: float, sigma: float) -> torch.Tensor:
    """E[noise - clean | noised] for data of N(mean, sigma²)."""
    time = t.view(-1, 1, 1, 1)
    slope = (time - (1 - time) * sigma**2) / ((1 - time) ** 2 * sigma**2 + time**2)
    return slope * (noised - (1 - time) * mean) - mean


@pytest.mark.parametrize("t", [0.1, 0.8])
@pytest.mark.parametrize("mean", [0.0, 0.7])
def test_optimum_of_the_loss_is_undone_by_the_correction(t, mean):
    """Fit velocity = a noised + b to the loss by least squares; corrected, it is the true velocity."""
    num, weight, sigma = 1_000_000, 0.2, 0.5
    clean = mean + sigma * normal(stream(0, "clean"), num, 1, 1, 1)
    sample = FLOW.sample(clean, normal(stream(0, "noise"), num, 1, 1, 1), torch.full((num,), t))
    partner = sample.velocity[torch.from_numpy(pair(list(range(num))))]
    parts = torch.zeros(2, dtype=torch.float64, requires_grad=True)

    def gradient(at: list[float]) -> torch.Tensor:
        a, b = parts + torch.tensor(at).double()
        velocity = a * sample.noised.double() + b
        loss = FLOW.loss(velocity, sample) + weight * term(weight)(view(velocity, partner))
        return torch.autograd.grad(loss, parts)[0]

    start = gradient([0.0, 0.0])  # the loss is a parabola: one Newton step from anywhere
    hessian = torch.stack([gradient([1.0, 0.0]) - start, gradient([0.0, 1.0]) - start])
    a, b = torch.linalg.solve(hessian, -start).tolist()
    noised = torch.linspace(-2, 2, 9).view(-1, 1, 1, 1)
    fitted, true = a * noised + b, optimum(noised, torch.full((9,), t), mean, sigma)
    torch.testing.assert_close(fitted, (true + weight * mean) / (1 - weight), rtol=0, atol=0.02)
    assert (fitted - true).abs().max() > 0.1
    corrected = term(weight, correct_sampling=True).correct(fitted, torch.full((1, 1, 1), mean), weight)
    torch.testing.assert_close(corrected, true, rtol=0, atol=0.015)


def test_corrected_sampler_ends_at_the_data_where_the_plain_one_narrows_it():
    """The ODE of slope k(t) / (1 - λ) ends at spread σ^(1 / (1 - λ)); the mean is right all the same."""
    mean, sigma, weight, fixed = 0.7, 0.5, 0.2, torch.full((1, 1, 1), 0.7)
    chosen = term(weight, correct_sampling=True)

    def learned(noised, t):
        return (optimum(noised, t, mean, sigma) + weight * mean) / (1 - weight)

    def corrected(noised, t):
        return chosen.correct(learned(noised, t), fixed, weight)

    noise = normal(stream(0, "noise"), 50_000, 1, 1, 1)
    right, wrong = (euler(velocity, noise, FLOW.schedule(400)) for velocity in (corrected, learned))
    assert float(right.mean()) == pytest.approx(mean, abs=0.01)
    assert float(right.std()) == pytest.approx(sigma, abs=0.01)
    assert float(wrong.mean()) == pytest.approx(mean, abs=0.01)
    assert float(wrong.std()) == pytest.approx(sigma ** (1 / (1 - weight)), abs=0.005)


def test_mean_latent_is_that_of_the_cached_modes(world):
    config = world.config()
    batches = Batches(config, world.cache, recipe.build(config))
    modes = batches.tokenizer.latent(batches.latents.take("moments", np.arange(48)), None).double()
    for chunk in (5, 48, 256):
        torch.testing.assert_close(batches.mean_clean(chunk=chunk), modes.mean(0).float(), rtol=0, atol=1e-7)
    spaced = modes[[0, 9, 19, 28, 38]].mean(0).float()
    torch.testing.assert_close(batches.mean_clean(most=5, chunk=2), spaced, rtol=0, atol=1e-7)


def test_mean_latent_is_that_of_the_samples_trained_on(world):
    """A subset's rows only, and several sets by their weights."""
    sets = {name: {"train": str(world.root / name), "weight": weight} for name, weight in WEIGHTS.items()}
    found = {}
    for name, data in (("train", {}), ("subset", {"subset": {"rows": 6}}), ("mixture", {"mixture": sets})):
        given = world.settings()["data"] | data
        if "mixture" in data:
            del given["train"]
        config = world.config(data=given)
        found[name] = Batches(config, world.cache, recipe.build(config))
    rows = found["subset"]._order.chosen[0]
    assert len(rows) == 6
    modes = found["mixture"].tokenizer.latent(found["mixture"].latents.take("moments", np.arange(64)), None)
    expected = {"train": modes[:48].mean(0), "subset": modes[rows].mean(0)}
    expected["mixture"] = 0.25 * expected["train"] + 0.75 * modes[48:].mean(0)
    for name, mean in expected.items():
        torch.testing.assert_close(found[name].mean_clean(chunk=7), mean, rtol=0, atol=1e-6)
    assert not torch.allclose(expected["train"], expected["mixture"], atol=1e-3)


def predicted(trainer, *, at: float = 0.5):
    batch = trainer.batches.batch(0)
    t = torch.full_like(batch.t, at)
    return trainer.engine.module.predict(batch.clean, t, batch.text, batch.mask)


def test_correction_acts_on_sampling_alone(world, tmp_path):
    """Training is bitwise that of the term without correction; only what is drawn differs."""
    plain = {"use": "contrastive", "weight": 0.2}
    trained, drawn, velocities = [], [], []
    for number, losses in enumerate(({"away": plain}, {"away": CORRECTED})):
        with running(world, tmp_path / str(number), losses=losses) as trainer:
            assert (trainer.engine.module.mean_clean is None) == (number == 0)
            trainer.advance(2)
            trained.append(weights(trainer))
            velocities.append(predicted(trainer))
            drawn.append(trainer.sample())
            mean = trainer.engine.module.mean_clean
    assert same(*trained)
    torch.testing.assert_close(velocities[1], 0.8 * velocities[0] - 0.2 * mean)
    assert not torch.equal(*drawn)


def test_absent_term_is_the_baseline_bit_for_bit(world, tmp_path):
    """A term that has stopped neither trains nor corrects."""
    stopped = CORRECTED | {"stop_step": 1}
    found = []
    for number, losses in enumerate(({}, {"away": stopped})):
        with running(world, tmp_path / str(number), losses=losses, seed=3) as trainer:
            trainer.step = 1  # as if the stop step had been reached: the same start, and no term since
            trainer.advance(3)
            found.append((weights(trainer), trainer.sample()))
    assert same(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, [0.2] * 4), ({"stop_step": 2}, [0.2, 0.2, 0, 0]), ({"schedule": "linear"}, [0.2, 0.15, 0.1, 0.05])],
)
def test_weight_of_the_last_update_corrects(world, tmp_path, settings, expected):
    """A network follows a weight that falls: what it learned last is what is to be undone."""
    with running(world, tmp_path, losses={"away": CORRECTED | settings}, steps=4) as trainer:
        found = []
        for step in range(1, 5):
            trainer.advance(step)
            trainer.sample()
            found.append(trainer.engine.module.acting.get("away", 0))
            free = trainer.engine.module.acting
            trainer.engine.module.acting = {}
            plain = predicted(trainer)
            trainer.engine.module.acting = free
            weight, mean = found[-1], trainer.engine.module.mean_clean
            torch.testing.assert_close(predicted(trainer), (1 - weight) * plain - weight * mean)
    assert found == pytest.approx(expected)
