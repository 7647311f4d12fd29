"""Learning curves drawn from a model of them, for what no sweep has recorded."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sweeps.metrics import METRICS
from sweeps.results import SweepInfo, TrialInfo
from sweeps.simulation.curves import Curve, CurveSet


@dataclass(frozen=True)
class Model:
    """A power law in the step down to a floor, with noise in proportion to the value.

    With x = step / steps, a cell measures, before noise,
    floor + (start - floor) * ((x * speed + ONSET) / ONSET) ** -decay. Floors and speeds of cells are log-normal,
    `spread` and `pace_spread` wide.

    Args:
        coupling: What a cell's speed says about its floor: 1 everything, 0 nothing.
        seed_noise: What all cells of a seed share, as a share of the value.
        run_noise: A run's own lasting luck, as a share of the value.
        noise: Noise of one measurement, as a share of the value.
        reported: The standard error that is reported, in true ones.
    """

    start: float = 3.0
    floor: float = 0.08
    decay: float = 1.2
    spread: float = 0.35
    pace_spread: float = 0.25
    coupling: float = 0.7
    seed_noise: float = 0.15
    run_noise: float = 0.05
    noise: float = 0.08
    reported: float = 1.5


ONSET = 0.02
"""Share of the run before which the curve is flat."""


def synthetic(info: SweepInfo, model: Model, rng: np.random.Generator) -> CurveSet:
    """Draw curves for the trials of a sweep; the same generator state gives the same curves."""
    cells = list(dict.fromkeys(trial.name for trial in info.trials))
    seeds = list(dict.fromkeys(trial.seed for trial in info.trials))
    quality, own = rng.standard_normal(len(cells)), rng.standard_normal(len(cells))
    pace = model.coupling * quality + math.sqrt(1 - model.coupling**2) * own
    floors = dict(zip(cells, model.floor * np.exp(model.spread * quality), strict=True))
    speeds = dict(zip(cells, np.exp(-model.pace_spread * pace), strict=True))
    luck = dict(zip(seeds, np.exp(model.seed_noise * rng.standard_normal(len(seeds))), strict=True))
    curves = []
    for trial in info.trials:
        clean = _clean(info, model, floors[trial.name], speeds[trial.name])
        scale = luck[trial.seed] * np.exp(model.run_noise * rng.standard_normal())
        values = clean * scale * np.exp(model.noise * rng.standard_normal(len(clean)))
        seconds = float(np.exp(0.2 * rng.standard_normal()))
        curves.append(Curve(trial, _measured(info, model, values), seconds))
    return CurveSet(info, tuple(curves))


def _clean(info: SweepInfo, model: Model, floor: float, speed: float) -> np.ndarray:
    """Give a cell's values without noise, one a boundary."""
    share = np.arange(info.eval_every, info.steps + 1, info.eval_every) / info.steps
    return floor + (model.start - floor) * ((share * speed + ONSET) / ONSET) ** -model.decay


def _measured(info: SweepInfo, model: Model, values: np.ndarray) -> dict[int, tuple[float, float]]:
    sign = 1.0 if info.mode == "min" else -1.0
    steps = range(info.eval_every, info.steps + 1, info.eval_every)
    error = model.noise * model.reported
    return {step: (sign * float(v), error * float(v)) for step, v in zip(steps, values, strict=True)}


def grid_info(cells: int, seeds: int, steps: int, every: int, metric: str = "cmmd") -> SweepInfo:
    """Describe a sweep of so many cells; the first is the baseline."""
    names = [f"c{cell:03d}" for cell in range(cells)]
    trials = tuple(
        TrialInfo(f"{name}-{seed}", name, name, name == names[0], seed, {}) for seed in range(seeds) for name in names
    )
    return SweepInfo("synthetic", metric, METRICS[metric].better, steps, every, (), trials)
