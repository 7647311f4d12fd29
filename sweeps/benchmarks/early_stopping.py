"""What early stopping saves, and whom it loses, on the recorded curves of a sweep that stopped nobody."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from rich.console import Console
from scipy.stats import spearmanr

from sweeps.simulation.curves import CurveSet
from sweeps.simulation.study import Study, arrivals_of, read_curves, render, study, variants
from sweeps.stopping.spec import SchedulerSpec

COMPARED = ("halving", "asha", "none")
TOGETHER = "together"
SAVED = 0.60
"""The share of steps that is to be saved with the best cell, or one not separable from it, kept every time."""


def measure(
    results: Path, seeds: Sequence[int], metric: str, arrivals: int, workers: int, spec: SchedulerSpec
) -> list[Study]:
    """Print, for every seed alone and for all together, what each scheduler saves and keeps.

    The best cell is that of the curves a scheduler saw; what counts as not separable from it is told by all seeds
    named (paired differences, one-sided, 5 %).
    """
    curves = read_curves(results, metric, seeds)
    studies = [
        study(part, one, arrivals_of(arrivals if one.use != "none" else 1, workers), label, curves)
        for one in variants(spec, COMPARED)
        for label, part in _parts(curves)
    ]
    console = Console(highlight=False, width=120)
    console.print(render(studies, f"{len(curves.curves)} trials, {metric}, {arrivals} arrivals on {workers} workers"))
    for use in COMPARED[:-1]:
        mine = [item for item in studies if item.use == use]
        alone = [item for item in mine if item.curves != TOGETHER]
        console.print(_summary(alone, use, "every seed alone"))
        if len(mine) > len(alone):
            console.print(_summary(mine[-1:], use, "seeds judged together"))
    early = ", ".join(f"{step}: {found:.2f}" for step, found in foresight(curves).items())
    console.print(f"rank correlation of the cells' means with those at the end, by step: {early}")
    return studies


def foresight(curves: CurveSet) -> dict[int, float]:
    """Say how well the ranks of the cells, by their means over seeds, foretell those at the end (Spearman), by step."""
    means: dict[int, dict[str, list[float]]] = {}
    for curve in curves.curves:
        for step, (value, _) in curve.values.items():
            means.setdefault(step, {}).setdefault(curve.info.cell_id, []).append(value)
    last = means.pop(max(means))
    found = {}
    for step, cells in sorted(means.items()):
        both = [cell for cell in last if cell in cells]
        pairs = [[fmean(cells[cell]) for cell in both], [fmean(last[cell]) for cell in both]]
        found[step] = float(spearmanr(*pairs).statistic)
    return found


def _parts(curves: CurveSet) -> list[tuple[str, CurveSet]]:
    """Give the curves of each seed, and of all seeds judged together where there are several."""
    alone = [(f"seed {seed}", curves.of_seeds([seed])) for seed in curves.seeds]
    return [*alone, (TOGETHER, curves)] if len(alone) > 1 else alone


def _summary(studies: Sequence[Study], use: str, label: str) -> str:
    saved = [share for item in studies for share in item.saved]
    mean, kept = sum(saved) / len(saved), min(item.kept_as_good for item in studies)
    met = "met" if mean >= SAVED and kept == 1.0 else "missed"
    every = "every time" if kept == 1.0 else f"in {100 * kept:.0f} % of arrivals at the worst"
    return (
        f"{use}, {label}: {100 * mean:.0f} % of the steps saved on average, the best cell or one not separable kept "
        f"{every} (target: {100 * SAVED:.0f} %, every time: {met})"
    )
