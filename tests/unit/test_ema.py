"""The average of weights as mathematics."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prx import recipe
from prx.config import EmaConfig, parse_run_config
from prx.ema import Ema


class Part(nn.Module):
    """Weights, a frozen one, and three kinds of buffer."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4, dtype=dtype))
        self.frozen = nn.Parameter(torch.randn(2, dtype=dtype), requires_grad=False)
        self.register_buffer("running", torch.ones(2, dtype=dtype))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)

    def forward(self) -> Tensor:
        return self.weight


def moved(module: Part, ema: Ema, steps: int, first: int = 1) -> list[Tensor]:
    """Change the weights by random steps; gives them as they were before the first and after each."""
    generator, seen = torch.Generator().manual_seed(0), [module.weight.detach().float().clone()]
    for step in range(first, first + steps):
        with torch.no_grad():
            module.weight += torch.randn(3, 4, generator=generator).to(module.weight.dtype)
            module.running += 1
            module.count += 1
        seen.append(module.weight.detach().float().clone())
        ema.update(step)
    return seen


def closed(weights: list[Tensor], decay: float) -> Tensor:
    """Give decay^m w_0 + (1 - decay) sum_i decay^(m - i) w_i."""
    m = len(weights) - 1
    found = decay**m * weights[0].double()
    for i, weight in enumerate(weights[1:], 1):
        found += (1 - decay) * decay ** (m - i) * weight.double()
    return found.float()


def average(ema: Ema, module: Part) -> Tensor:
    with ema.applied():
        return module().detach().clone()


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_closed_form(decay, dtype):
    module = Part(dtype)
    ema = Ema(EmaConfig(decay=decay, every=1), module)
    seen = moved(module, ema, 7)
    torch.testing.assert_close(average(ema, module), closed(seen, decay))
    assert {name: value.dtype for name, value in ema.state().items()} == {
        "weight": torch.float32, "running": torch.float32, "count": torch.int64,
    }  # fmt: skip


def test_constant_weights_are_a_fixed_point():
    module = Part()
    ema = Ema(EmaConfig(decay=0.9, every=1), module)
    before = module.weight.detach().clone()
    for step in range(1, 50):
        ema.update(step)
    assert torch.equal(average(ema, module), before)


def test_without_decay_the_average_is_a_copy():
    module = Part()
    ema = Ema(EmaConfig(decay=0.0, every=1), module)
    last = moved(module, ema, 3)[-1]
    assert torch.equal(average(ema, module), last)


def test_only_every_kth_step_counts():
    module = Part()
    ema = Ema(EmaConfig(decay=0.7, every=3), module)
    seen = moved(module, ema, 8)
    torch.testing.assert_close(average(ema, module), closed([seen[0], seen[3], seen[6]], 0.7))


def test_before_the_start_the_weights_stand_for_the_average():
    module = Part()
    ema = Ema(EmaConfig(decay=0.7, every=2, start=3), module)
    seen = moved(module, ema, 2)
    assert torch.equal(average(ema, module), seen[2])
    assert ema.state() == {}
    later = moved(module, ema, 4, first=3)
    torch.testing.assert_close(average(ema, module), closed([later[1], later[3]], 0.7))


def test_buffers_follow_and_frozen_weights_stay():
    module = Part()
    ema = Ema(EmaConfig(decay=0.5, every=1), module)
    frozen = module.frozen.detach().clone()
    moved(module, ema, 2)
    with ema.applied():
        assert module.running.tolist() == [2.25, 2.25]
        assert int(module.count) == 2
        assert torch.equal(module.frozen, frozen)
    assert module.running.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lending_leaves_the_weights_where_they_were(dtype):
    module = Part(dtype)
    ema = Ema(EmaConfig(decay=0.5, every=1), module)
    moved(module, ema, 2)
    value, place = module.weight.detach().clone(), module.weight.data_ptr()

    def interrupted() -> None:
        with ema.applied():
            assert module.weight.dtype == torch.float32
            assert not torch.equal(module.weight, value.float())
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert module.weight.data_ptr() == place
    assert torch.equal(module.weight, value)


def test_state_comes_back():
    module = Part()
    ema = Ema(EmaConfig(decay=0.5, every=1), module)
    moved(module, ema, 3)
    kept = {name: value.clone() for name, value in ema.state().items()}
    other = Ema(EmaConfig(decay=0.5, every=1), module)
    other.restore(kept)
    assert torch.equal(average(other, module), kept["weight"])
    with pytest.raises(ValueError, match="differ in running"):
        other.restore({name: value for name, value in kept.items() if name != "running"})


def problems(world, **changes: Any) -> list[str]:
    return [str(problem) for problem in recipe.problems(parse_run_config(world.settings(**changes)))]


def test_impossible_averages_are_refused(world):
    stages = [{"device": "cpu", "zero_stage": stage} for stage in (0, 1, 2, 3)]
    found = [problems(world, ema={}, infrastructure=stage) for stage in stages]
    assert found[:3] == [[], [], []]
    assert len(found[3]) == 1
    assert found[3][0].startswith("ema: must be null at infrastructure.zero_stage 3")
    assert problems(world, ema={"start": 4}) == ["ema.start: must be below steps (4), got 4"]
    assert problems(world, ema={"start": 3}) == []
    missing = problems(world, sampling={"weights": "ema"})
    assert missing == ["sampling.weights: must be model where `ema` is not set, got 'ema'"]


def test_other_sampling_settings_are_checked_like_the_runs_own(world):
    def found(*also: dict[str, object], **changes: object) -> list[str]:
        return problems(world, evaluation=world.settings()["evaluation"] | {"also": list(also)}, **changes)

    assert found({"weights": "ema"}, {"guidance_scale": 7.0}, ema={}) == []
    missing = "must be model where `ema` is not set, got 'ema'"
    assert found({"guidance_scale": 7.0}, {"weights": "ema"}) == [f"evaluation.also[1].weights: {missing}"]
    rule = "must differ from `sampling` and from the others, got"
    assert found({}) == [f"evaluation.also[0]: {rule} nothing"]
    assert found(*[{"guidance_scale": 7.0}] * 2) == [f"evaluation.also[1]: {rule} guidance_scale=7"]
    assert found({"guidance": "routing"})[0].startswith("evaluation.also[0].guidance: must be text with this routing")
