"""Schedulers side by side on the same curves, over many arrivals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from prx.errors import UserError
from sweeps.leaderboard import figure
from sweeps.plan import Plan
from sweeps.results import read_results
from sweeps.session import sweep_info
from sweeps.simulation.curves import CurveSet, recorded
from sweeps.simulation.simulate import Arrival, Outcome, Truth, simulate
from sweeps.simulation.synthetic import Model, synthetic
from sweeps.stopping.spec import RULES, SchedulerSpec


@dataclass(frozen=True)
class Study:
    """What one scheduler made of one set of curves, over several arrivals."""

    use: str
    curves: str
    outcomes: tuple[Outcome, ...]
    truth: Truth

    @property
    def saved(self) -> tuple[float, ...]:
        """Share of the steps saved, by arrival."""
        return tuple(outcome.saved for outcome in self.outcomes)

    @property
    def kept_best(self) -> float:
        """Share of arrivals in which the best cell was trained to its end."""
        return _share([self.truth.kept_best(outcome) for outcome in self.outcomes])

    @property
    def kept_as_good(self) -> float:
        """Share of arrivals in which the winner cannot be told from the best cell."""
        return _share([self.truth.kept_as_good(outcome) for outcome in self.outcomes])

    @property
    def verdicts(self) -> int:
        """How many different sets of survivors there were."""
        return len({outcome.survivors for outcome in self.outcomes})

    @property
    def regret(self) -> float:
        """The largest regret."""
        return max(self.truth.regret(outcome) for outcome in self.outcomes)


def _share(found: Sequence[bool]) -> float:
    return sum(found) / len(found)


def study(
    curves: CurveSet, spec: SchedulerSpec, arrivals: Sequence[Arrival], label: str, everything: CurveSet | None = None
) -> Study:
    """Run curves through one scheduler, once for each arrival.

    Args:
        everything: The curves that tell cells apart, of more seeds where there are any.
    """
    outcomes = tuple(simulate(curves, spec, arrival) for arrival in arrivals)
    return Study(spec.use, label, outcomes, Truth(curves, everything))


def arrivals_of(count: int, workers: int) -> tuple[Arrival, ...]:
    """Give so many arrivals: the planned order first, the others shuffled."""
    return tuple(Arrival(workers, seed=index, shuffled=index > 0) for index in range(count))


def variants(spec: SchedulerSpec, uses: Sequence[str] = RULES) -> list[SchedulerSpec]:
    """Give a section with every rule in turn; rules of Ray's count steps."""
    return [spec.model_copy(update={"use": use}) for use in uses]


def render(studies: Sequence[Study], title: str = "") -> Table:
    """Lay studies out, one a line."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=title or None, title_justify="left")
    for heading in ("scheduler", "curves"):
        table.add_column(heading, no_wrap=True)
    for heading in ("steps saved", "cells to the end", "verdicts", "best kept", "as good kept", "worst regret"):
        table.add_column(heading, justify="right")
    for item in studies:
        ended = [len(outcome.survivors) for outcome in item.outcomes]
        table.add_row(
            item.use, item.curves, _range([f"{100 * saved:.0f} %" for saved in sorted(item.saved)]),
            _range([str(count) for count in sorted(ended)]), f"{item.verdicts} of {len(item.outcomes)}",
            f"{100 * item.kept_best:.0f} %", f"{100 * item.kept_as_good:.0f} %", figure(item.regret, 3),
        )  # fmt: skip
    return table


def _range(ordered: Sequence[str]) -> str:
    """Write the median, and the extremes where they differ."""
    middle = ordered[len(ordered) // 2]
    return middle if ordered[0] == ordered[-1] else f"{middle} ({ordered[0]} to {ordered[-1]})"


def read_curves(results: Path, metric: str, seeds: Sequence[int] = ()) -> CurveSet:
    """Read the curves of a table of results, of some seeds only where any are named.

    Raises:
        UserError: There is no such table, or it holds no whole curves.
    """
    if not results.is_file():
        raise UserError(f"{results}: does not exist; name a results.parquet")
    try:
        frame = read_results(results)
    except (OSError, ValueError) as error:
        reason = error.__cause__ or error  # any file may be named here: no run of a sweep would mend it
        raise UserError(f"{results}: must be a table of results in Parquet ({reason})") from error
    return recorded(frame, metric, str(results), seeds)


def planned_curves(plan: Plan, seed: int, model: Model | None = None) -> CurveSet:
    """Draw synthetic curves for the trials of a plan."""
    return synthetic(sweep_info(plan), model or Model(), np.random.default_rng(seed))


def paced(curves: CurveSet, plan: Plan) -> CurveSet:
    """Give recorded curves the batch sizes and schedules of the plan they come from.

    Raises:
        UserError: The table is of another sweep.
    """
    infos = {trial.trial_id: trial for trial in sweep_info(plan).trials}
    unknown = [curve.info.trial_id for curve in curves.curves if curve.info.trial_id not in infos]
    if unknown:
        raise UserError(f"{curves.info.name}: holds trial {unknown[0]}, which {plan.source.file} does not plan")
    return curves.with_pace(infos)
