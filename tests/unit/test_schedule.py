"""Weights over time, and a term that has stopped: absent in every respect, at every ZeRO stage."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from prx import recipe
from prx.batches import Batches
from prx.config import TermConfig
from prx.engine import Engine
from prx.trainer import Trainer
from tests.helpers import moments, randomise, running, same, weights

STAGES = (0, 1, 2, 3)


def weight_at(step: int, steps: int = 100, **settings) -> float:
    return TermConfig(use="term", weight=0.5, **settings).weight_at(step, steps)


def test_constant_weight_holds_until_the_stop():
    assert {weight_at(step) for step in (0, 1, 99, 100, 1000)} == {0.5}
    found = [weight_at(step, stop_step=3) for step in range(6)]
    assert found == [0.5, 0.5, 0.5, 0.0, 0.0, 0.0]
    assert weight_at(150, stop_step=200) == 0.5


@pytest.mark.parametrize(("schedule", "quarter"), [("linear", 0.75), ("cosine", (1 + math.sqrt(0.5)) / 2)])
def test_falling_weights_start_whole_and_end_at_nothing(schedule, quarter):
    for settings, end in (({}, 100), ({"stop_step": 40}, 40)):
        found = [weight_at(step, schedule=schedule, **settings) for step in range(end)]
        assert found[0] == 0.5
        assert found == sorted(set(found), reverse=True)
        assert found[end // 4] == pytest.approx(0.5 * quarter)
        assert found[end // 2] == pytest.approx(0.25)
        assert 0 < found[-1] < 0.02
        assert weight_at(end, schedule=schedule, **settings) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("value", [0, -1, 2.5, "soon"])
def test_stop_is_a_step_or_never(value):
    with pytest.raises(ValidationError, match="stop_step"):
        weight_at(0, stop_step=value)


def denoiser(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value for name, value in weights(trainer).items() if name.startswith("denoiser.")}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("clip", [None, 1e-3], ids=["free", "clipped"])
def test_run_whose_term_is_absent_is_the_baseline(world, tmp_path, stage, clip):
    changes = {"zero_stage": stage, "grad_clip": clip, "micro_batch": 4}
    with (
        running(world, tmp_path / "a", **changes) as plain,
        running(world, tmp_path / "b", losses={"repa": world.repa()}, **changes) as stopped,
    ):
        stopped.batches.stopped = {"repa": 0}
        for step in (1, 2, 3):
            assert plain.advance(step).loss == stopped.advance(step).loss
        assert same(denoiser(plain), denoiser(stopped))


def continued(plain: Engine, other: Engine) -> None:
    """Put one run's denoiser and its Adam moments into another."""
    mine, theirs = (dict(engine.module.denoiser.named_parameters()) for engine in (plain, other))
    with torch.no_grad():
        for name, parameter in mine.items():
            parameter.copy_(theirs[name])
            state = other.optimizer.state[theirs[name]]
            plain.optimizer.state[parameter] = {key: value.clone() for key, value in state.items()}


@pytest.mark.parametrize("clip", [None, 1e-3], ids=["free", "clipped"])
def test_from_the_stop_on_it_is_the_baseline_from_that_state(world, tmp_path, clip):
    changes = {"zero_stage": 0, "grad_clip": clip, "steps": 6}
    part = world.repa(stop_step=2)
    with running(world, tmp_path / "a", **changes) as plain, running(
        world, tmp_path / "b", losses={"repa": part}, **changes
    ) as stopped:  # fmt: skip
        stopped.advance(2)
        continued(plain.engine, stopped.engine)
        plain.step = 2
        for step in (3, 4, 5):
            assert plain.advance(step).loss == stopped.advance(step).loss
        assert same(denoiser(plain), denoiser(stopped))


def test_never_stopping_is_stopping_after_the_end(world, tmp_path):
    results = []
    for name, part in (("never", world.repa()), ("late", world.repa(stop_step=4)), ("early", world.repa(stop_step=3))):
        with running(world, tmp_path / name, losses={"repa": part}) as trainer:
            trainer.advance(4)
            results.append(weights(trainer))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_step_of_a_stopped_term_has_the_gradient_of_a_step_without(world):
    config = world.config(losses={"repa": world.repa()})
    module, bare = recipe.build(config), recipe.build(world.config())
    for part in (module, bare):
        randomise(part.denoiser)
    batch = Batches(config, world.cache, module).batch(0)
    gradients = []
    for part, given in ((module, replace(batch, weights={}, targets={})), (bare, batch)):
        part(given)[0].backward()
        gradients.append([p.grad for p in part.denoiser.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert all(p.grad is None for p in module.losses.parameters())


def norm(trainer: Trainer) -> float:
    return float(trainer.engine.engine.get_global_grad_norm())


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_stopped_term_is_not_in_the_norm_that_clips(world, tmp_path, stage):
    """ZeRO 3 keeps a gradient until the next one of the same parameter; a stopped term has no next one."""
    norms = []
    for number in (1, stage):
        with running(
            world, tmp_path / str(len(norms)), zero_stage=number, losses={"repa": world.repa(stop_step=2)}
        ) as run:
            run.advance(2)
            with_term = norm(run)
            run.advance(3)
            norms.append((with_term, norm(run)))
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert norms[0][0] > norms[0][1]


@pytest.mark.parametrize("stage", STAGES)
def test_training_goes_on_and_the_projector_rests(world, tmp_path, stage):
    """Without ZeRO a parameter without a gradient is left alone; the others step it by fading momentum."""
    part = world.repa(stop_step=2)
    with running(world, tmp_path, zero_stage=stage, losses={"repa": part}, steps=30) as trainer:
        trainer.advance(2)
        states = [weights(trainer)]
        for step in (3, 29, 30):
            assert trainer.advance(step).terms.keys() == {"objective"}
            states.append(weights(trainer))
    names = [name for name in states[0] if name.startswith("losses.")]
    moved = [max(float((b[n] - a[n]).abs().max()) for n in names) for a, b in itertools.pairwise(states)]
    assert any(not torch.equal(states[3][n], value) for n, value in states[2].items() if n.startswith("denoiser."))
    if stage == 0:
        assert moved == [0, 0, 0]
    else:
        assert moved[2] < 0.1 * moved[0]


def test_teacher_is_not_read_after_the_stop(world, tmp_path, monkeypatch):
    part = world.repa(stop_step=2)
    with running(world, tmp_path, losses={"repa": part}) as trainer:
        read: list[int] = []
        target, take = trainer.batches.targets["repa"], trainer.batches.targets["repa"].take

        def noted(column: str, index: np.ndarray) -> torch.Tensor:
            read.append(trainer.step)
            return take(column, index)

        monkeypatch.setattr(target, "take", noted)
        trainer.advance(4)
        assert read == [0, 1]
        assert trainer.batches.batch(3).targets == {}


def test_chunk_across_a_stop_reports_each_term_over_its_own_steps(world, tmp_path):
    losses = {"repa": world.repa(stop_step=3), "contrastive": {"use": "contrastive"}}
    with (
        running(world, tmp_path / "a", losses=losses) as whole,
        running(world, tmp_path / "b", losses=losses) as single,
    ):
        chunk = whole.advance(4)
        parts = [single.advance(step) for step in (1, 2, 3, 4)]
    assert chunk.terms.keys() == {"objective", "repa", "contrastive"}
    assert parts[3].terms.keys() == {"objective", "contrastive"}
    for name in chunk.terms:
        values = [part.terms[name] for part in parts if name in part.terms]
        assert chunk.terms[name] == pytest.approx(sum(values) / len(values))
    assert chunk.loss == pytest.approx(sum(part.loss for part in parts) / 4)


@pytest.mark.parametrize("stage", STAGES)
def test_resuming_on_either_side_of_a_stop_changes_nothing(world, tmp_path, stage):
    changes = {"zero_stage": stage, "steps": 6, "losses": {"repa": world.repa(stop_step=3, schedule="linear")}}
    with running(world, tmp_path / "whole", **changes) as whole:
        expected = [whole.advance(step).loss for step in range(1, 6)]
        for at in (2, 4):
            with running(world, tmp_path / str(at), **changes) as first:
                first.advance(at)
                first.save()
            with running(world, tmp_path / str(at), **changes) as second:
                assert second.resume() == at
                assert [second.advance(step).loss for step in range(at + 1, 6)] == expected[at:]
                assert same(weights(second), weights(whole))
                assert all(torch.equal(a, b) for a, b in zip(moments(second), moments(whole), strict=True))
