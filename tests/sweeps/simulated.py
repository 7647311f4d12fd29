"""Results of sweeps that nobody trained: their truth is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from sweeps.results import SweepInfo, TrialInfo

GRID = {
    "alignment": ["none", "repa_dinov2", "repa_dinov3"],
    "objective": ["flow_matching", "contrastive", "x_prediction"],
    "tokenizer": ["flux", "repa_e", "flux2"],
}
STEPS, EVERY = 300, 100
Truth = Callable[[Mapping[str, str]], float]


def cells_of(axes: Mapping[str, Sequence[str]] = GRID) -> list[dict[str, str]]:
    """List all combinations, the baseline (first levels) first."""
    return [dict(zip(axes, levels, strict=True)) for levels in product(*axes.values())]


def name_of(levels: Mapping[str, str], base: Mapping[str, str]) -> str:
    return " · ".join(level for axis, level in levels.items() if level != base[axis]) or "baseline"


def info_of(cells: Sequence[Mapping[str, str]], seeds: Iterable[int] = (0,)) -> SweepInfo:
    """Describe a sweep of these cells; the first is the baseline."""
    trials = tuple(
        TrialInfo(f"{i}-{seed}", str(i), name_of(levels, cells[0]), i == 0, seed, dict(levels))
        for seed in seeds
        for i, levels in enumerate(cells)
    )
    return SweepInfo("simulated", "cmmd", "min", STEPS, EVERY, tuple(cells[0]), trials)


SETTINGS = {"num_steps": 10, "guidance_scale": 3.5, "guidance": "text", "weights": "model", "num_samples": 192}


def measured(info: SweepInfo, settings: Mapping[str, Any] = SETTINGS, **changed: Mapping[str, Any]) -> SweepInfo:
    """Say how figures were measured; `changed` gives a level's own settings."""
    trials = []
    for trial in info.trials:
        own = {key: value for level in trial.levels.values() for key, value in changed.get(level, {}).items()}
        trials.append(replace(trial, measured=dict(settings) | own))
    return replace(info, trials=tuple(trials))


def frame_of(
    info: SweepInfo, truth: Truth, *, noise: float = 0.0, seed_noise: float = 0.0, random: int = 0, se: float = 0.05
) -> pd.DataFrame:
    """Train every trial in an instant: figures fall to truth + seed's share + noise as 3, 1.5 and 1 times that."""
    rng = np.random.default_rng(random)
    shared = {seed: seed_noise * rng.standard_normal() for seed in sorted({t.seed for t in info.trials})}
    rows = []
    for trial in info.trials:
        final = truth(trial.levels) + shared[trial.seed] + noise * rng.standard_normal()
        for step, factor in ((100, 3.0), (200, 1.5), (300, 1.0)):
            rows.append(_row(trial, step, {"cmmd": factor * final, "cmmd_se": se, "batches_per_second": 2.0}))
    return pd.DataFrame(rows)


def _row(trial: TrialInfo, step: int, metrics: Mapping[str, float]) -> dict[str, object]:
    return {
        "trial_id": trial.trial_id, "cell_id": trial.cell_id, "name": trial.name, "is_baseline": trial.is_baseline,
        "seed": trial.seed, **trial.levels, "step": step, **metrics, "state": "complete", "wall_seconds": step / 2.0,
        "device_seconds": step / 2.0, "replayed": False, "reason": "",
    }  # fmt: skip


def without_end(frame: pd.DataFrame, trial_ids: Iterable[str], state: str = "pruned", step: int = 100) -> pd.DataFrame:
    """Let some trials end at a step."""
    gone = frame["trial_id"].isin(list(trial_ids))
    kept = frame[~gone | (frame["step"] <= step)].copy()
    kept.loc[kept["trial_id"].isin(list(trial_ids)), ["state", "reason"]] = [state, f"{state} at step {step}"]
    return kept


def also_measured(
    frame: pd.DataFrame, label: str, truth: Truth, *, noise: float = 0.0, random: int = 1, se: float = 0.05
) -> pd.DataFrame:
    """Measure finished trials once more, under settings with another truth; their seeds' shares stay out of it."""
    rng = np.random.default_rng(random)
    frame, end = frame.copy(), frame["step"] == STEPS
    axes = [name for name in frame.columns if name in GRID]
    figures = [truth({axis: row[axis] for axis in axes}) for _, row in frame[end].iterrows()]
    frame.loc[end, f"cmmd@{label}"] = np.array(figures) + noise * rng.standard_normal(int(end.sum()))
    frame.loc[end, f"cmmd_se@{label}"] = se
    return frame
