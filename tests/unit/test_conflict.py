"""Gradient conflict: the cosine itself, what it is measured on, and a term that ends when it should."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from prx import conflict, recipe
from prx.config import ConflictStop, parse_run_config
from prx.interfaces import LossTerm, RunShape, StepView
from prx.techniques.repa import Repa
from prx.techniques.velocity import Velocity
from prx.train_step import StepBatch, TrainStep
from tests.helpers import moments, random_denoiser, running, same, weights

SHAPE = RunShape(channels=3, latent_size=8, depth=4, grid=(4, 4))
ALWAYS = {"below": 1.0, "every": 1, "start": 1, "block": 0, "times": [0.5], "num_samples": 8}


class Scaled(LossTerm):
    """The objective's own loss, times a number."""

    def __init__(self, scale: float) -> None:
        super().__init__("term", None, SHAPE)
        self.scale = scale

    def forward(self, view: StepView) -> Tensor:
        return self.scale * (view.velocity - view.sample.velocity).square().mean()


class Shallow(LossTerm):
    """A term that reads one block and no later one."""

    def __init__(self, layer: int, bias: float = 0.0) -> None:
        super().__init__("term", None, SHAPE)
        self.tapped, self.bias = layer, bias

    @property
    def layer(self) -> int:
        return self.tapped

    def forward(self, view: StepView) -> Tensor:
        return (view.taps[self.tapped].features - self.bias).square().mean()


def module_of(term: LossTerm) -> TrainStep:
    return TrainStep(random_denoiser(), Velocity(Velocity.Config(use="velocity")), {"term": term}, grid=(4, 4))


def batch_at(t: float, num: int = 4, seed: int = 0) -> StepBatch:
    rng = torch.Generator().manual_seed(seed)
    clean, noise = torch.randn(num, 3, 8, 8, generator=rng), torch.randn(num, 3, 8, 8, generator=rng)
    mask = torch.ones(num, 5, dtype=torch.bool)
    return StepBatch(clean, noise, torch.full((num,), t), torch.randn(num, 5, 8, generator=rng), mask)


def measured(term: LossTerm, **settings: Any) -> float | None:
    stop = ConflictStop(**({"block": 1, "times": [0.1, 0.5]} | settings))
    return conflict.agreement(module_of(term), "term", stop, lambda t: [batch_at(t)])


@pytest.mark.parametrize(("scale", "expected"), [(1, 1), (1e-3, 1), (250, 1), (-1, -1), (-0.2, -1)])
def test_same_and_opposite_losses(scale, expected):
    assert measured(Scaled(scale)) == pytest.approx(expected, abs=1e-6)


def test_undefined_where_a_gradient_is_zero():
    assert measured(Scaled(0.0)) is None
    assert measured(Shallow(0)) is None  # block 1 comes after what the term reads
    fresh = module_of(Shallow(1))
    torch.nn.init.zeros_(fresh.denoiser.final_layer.linear.weight)
    assert conflict.agreement(fresh, "term", ConflictStop(block=1), lambda t: [batch_at(t)]) is None


def test_cosine_by_hand():
    assert conflict.cosine(torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0])) == pytest.approx(24 / 25)
    assert conflict.cosine(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])) == 0
    assert conflict.cosine(torch.zeros(2), torch.ones(2)) is None
    assert conflict.cosine(torch.tensor([math.nan, 1.0]), torch.ones(2)) is None
    tiny = torch.full((4,), 1e-30)
    assert conflict.cosine(tiny, tiny) == pytest.approx(1)


def test_it_is_the_cosine_of_the_blocks_gradients_averaged_over_times():
    term, found = Shallow(2), []
    for t in (0.1, 0.5):
        module, batch = module_of(term), batch_at(t)
        parameters = list(module.denoiser.blocks[1].parameters())
        rows = []
        for value in module.term_and_objective(batch, "term"):
            module.zero_grad()
            value.backward(retain_graph=True)
            rows.append(torch.cat([p.grad.flatten() for p in parameters]))
        found.append(float(torch.nn.functional.cosine_similarity(*rows, dim=0)))
    assert measured(term) == pytest.approx(sum(found) / 2, abs=1e-5)
    assert abs(found[0] - found[1]) > 1e-3


def test_gradients_are_summed_before_the_cosine_is_taken():
    module, stop = module_of(Shallow(1)), ConflictStop(block=1, times=[0.3])
    whole = conflict.agreement(module, "term", stop, lambda t: [batch_at(t)])
    parts = conflict.agreement(module, "term", stop, lambda t: batch_at(t).split(1))
    alone = [conflict.agreement(module, "term", stop, lambda t, n=n: batch_at(t).split(1)[n : n + 1]) for n in range(4)]
    assert parts == pytest.approx(whole, abs=1e-5)
    assert sum(alone) / 4 != pytest.approx(whole, abs=1e-3)


def share_of(rank: int, folder: str) -> None:
    """Measure on one worker's half of the batch."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    halves, stop = (lambda t: batch_at(t).split(2)[rank : rank + 1]), ConflictStop(block=1, times=[0.3])
    torch.save(conflict.agreement(module_of(Shallow(1)), "term", stop, halves), f"{folder}/{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_workers_measure_what_one_does(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.multiprocessing.spawn(share_of, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / str(rank)) for rank in (0, 1))
    alone = conflict.agreement(
        module_of(Shallow(1)), "term", ConflictStop(block=1, times=[0.3]), lambda t: [batch_at(t)]
    )
    assert first == second == pytest.approx(alone, abs=1e-5)


def test_nothing_is_left_behind():
    module = module_of(Shallow(1))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    conflict.agreement(module, "term", ConflictStop(block=1), lambda t: [batch_at(t)])
    assert all(p.grad is None for p in module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_due_from_the_start_on_at_every_so_many_steps():
    stop = ConflictStop(start=5, every=3)
    assert [step for step in range(15) if stop.due_at(step)] == [5, 8, 11, 14]


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_measuring_does_not_disturb_the_run(world, tmp_path, stage):
    part = {"stop_when": ALWAYS | {"below": -1.0, "start": 0}}
    with running(world, tmp_path / "a", zero_stage=stage, losses={"repa": world.repa()}) as plain, running(
        world, tmp_path / "b", zero_stage=stage, losses={"repa": world.repa(**part)}
    ) as watched:  # fmt: skip
        assert watched.advance(1).terms.keys() == {"objective", "repa"}  # nothing to compare with a zero output
        plain.advance(1)
        for step in (2, 3, 4):
            report, expected = watched.advance(step), plain.advance(step)
            assert report.loss == expected.loss
            assert -1 <= report.terms["conflict/repa"] <= 1
            assert report.terms.keys() == {"objective", "repa", "conflict/repa"}
        assert same(weights(plain), weights(watched))
        assert watched.batches.stopped == {}


def test_probes_are_the_runs_first_images_at_one_time(world, tmp_path):
    stop = ConflictStop(**ALWAYS | {"num_samples": 12})
    with running(world, tmp_path, micro_batch=4, losses={"repa": world.repa(stop_when=stop.model_dump())}) as trainer:
        found = list(trainer._probes("repa", stop, 0.25))
        expected = [trainer.batches.batch(number) for number in (0, 1)]
        assert [len(batch.clean) for batch in found] == [4, 4, 4, 4]
        for name in ("clean", "noise", "text"):
            together = torch.cat([getattr(batch, name) for batch in found])
            assert torch.equal(together, torch.cat([getattr(batch, name) for batch in expected]))
        assert all(torch.equal(batch.t, torch.full((4,), 0.25)) for batch in found)
        assert all(batch.targets.keys() == {"repa"} for batch in found)


@pytest.fixture
def turning(monkeypatch):
    """Make REPA's value the objective's own, with a sign that the test may turn."""
    sign = {"now": 1.0}
    plain = Repa.forward

    def forward(self, view: StepView) -> Tensor:
        own = (view.velocity - view.sample.velocity).square().mean()
        return sign["now"] * 0.1 * own + 0 * plain(self, view)

    monkeypatch.setattr(Repa, "forward", forward)
    return sign


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_term_ends_at_the_first_check_after_it_turns(world, tmp_path, turning, stage):
    stop = ALWAYS | {"below": -0.05, "every": 2, "start": 2, "times": [0.1, 0.5]}
    losses = {"repa": world.repa(stop_when=stop), "repa_v3": world.repa(layer=1)}
    with running(world, tmp_path, zero_stage=stage, steps=10, losses=losses) as trainer:
        found = [trainer.advance(step).terms for step in (1, 2, 3)]
        assert [round(terms.get("conflict/repa", 9), 5) for terms in found] == [9, 9, 1]
        turning["now"] = -1.0
        assert "repa" in trainer.advance(4).terms  # no check is due at step 3
        ended = trainer.advance(5).terms
        assert ended["conflict/repa"] == pytest.approx(-1, abs=1e-5)
        assert ended.keys() == {"objective", "repa_v3", "conflict/repa"}
        assert trainer.batches.stopped == {"repa": 4}
        assert trainer.advance(8).terms.keys() == {"objective", "repa_v3"}


@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_resumed_around_the_end_is_uninterrupted(world, tmp_path, stage, at):
    """`below: 1` ends the term at its first defined measurement: before the step that follows the second."""
    stop = ALWAYS | {"start": 2}
    changes = {"zero_stage": stage, "steps": 6, "losses": {"repa": world.repa(stop_when=stop)}}
    with running(world, tmp_path / "whole", **changes) as whole, running(world, tmp_path / "parts", **changes) as first:
        reports = [whole.advance(step) for step in range(1, 6)]
        first.advance(at)
        first.save()
    with (
        running(world, tmp_path / "whole2", **changes) as whole,
        running(world, tmp_path / "parts", **changes) as second,
    ):
        whole.advance(5)
        assert second.resume() == at
        assert second.batches.stopped == ({"repa": 2} if at > 2 else {})
        for step in range(at + 1, 6):
            report = second.advance(step)
            assert (report.loss, report.terms) == (reports[step - 1].loss, reports[step - 1].terms)
        assert second.batches.stopped == whole.batches.stopped == {"repa": 2}
        assert same(weights(second), weights(whole))
        assert all(torch.equal(a, b) for a, b in zip(moments(second), moments(whole), strict=True))


@pytest.mark.parametrize("use", ["repa", "irepa", "attention_alignment"])
def test_what_cannot_be_measured_is_refused(world, use):
    given = {"use": use, "teacher": str(world.root / "dinov2"), "stop_when": {"block": 1}}
    given |= {"student_layers": [0], "teacher_layers": [0]} if use == "attention_alignment" else {"layer": 0}
    config = parse_run_config(world.settings(losses={"a": given}, infrastructure={"zero_stage": 3}))
    found = {problem.path: problem.message for problem in recipe.problems(config)}
    assert found == {
        "losses.a.stop_when": "must be null with infrastructure.zero_stage 3, which leaves no worker a whole "
        "gradient; stages 0..2 do",
        "losses.a.stop_when.block": "must be in 0..0, where the term has a gradient, got 1",
    }
