"""Everything a report is made of, read from a sweep's folder and analysed once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import yaml

from sweeps import measured_with
from sweeps.analysis.differences import Difference, stopped_early, to_baseline
from sweeps.analysis.effects import Effects, estimate_effects
from sweeps.analysis.importance import Importance, searched_importances
from sweeps.analysis.observations import CellKey, Observations, cell_keys, observe
from sweeps.analysis.pareto import Point, quality_price
from sweeps.analysis.speed import TimeToQuality, time_to_quality
from sweeps.analysis.verdict import Verdict, verdict
from sweeps.costs import Costs, read_costs
from sweeps.leaderboard import CellResult, heading, ranking
from sweeps.metrics import METRICS, QUALITY
from sweeps.other_settings import OtherSettings, other_settings
from sweeps.report.about import About, read
from sweeps.results import SweepFolder, SweepInfo, TrialState, read_info, read_results, read_state
from sweeps.status import is_running

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Material:
    """A sweep as it stands on the disk. What is derived from it is computed on first use."""

    folder: SweepFolder
    info: SweepInfo
    frame: pd.DataFrame
    states: dict[str, TrialState]
    running: bool
    about: About

    @cached_property
    def metric(self) -> str:
        """The metric that decides."""
        return self.info.metric

    def heading(self, metric: str) -> str:
        """Write a metric's name the way the field does."""
        return heading(metric)

    @cached_property
    def full_name(self) -> str:
        """Name the deciding metric with the settings it was measured under: `CMMD@num_steps=10,guidance_scale=3.5`."""
        return measured_with.full_name(self.heading(self.metric), self.info)

    @cached_property
    def own_settings(self) -> dict[str, str]:
        """Say how a cell was measured, by name, where that is not the same for all."""
        return {name: measured_with.words(found) for name, found in measured_with.own(self.info).items()}

    @cached_property
    def cells(self) -> tuple[CellKey, ...]:
        """The planned cells."""
        return cell_keys(self.info)

    @cached_property
    def ranked(self) -> list[CellResult]:
        """The leaderboard."""
        return ranking(self.frame, self.info) if len(self.frame) else []

    @cached_property
    def observed(self) -> Observations:
        """The deciding metric at full length."""
        return self.observed_metric(self.metric)

    def observed_metric(self, metric: str) -> Observations:
        """Take any metric at full length, or one under other settings (`cmmd@guidance_scale=2`)."""
        return observe(self.frame, self.info, metric, METRICS[metric.partition("@")[0]].better)

    @cached_property
    def other_settings(self) -> tuple[OtherSettings, ...]:
        """Quality metrics under other sampling settings, the deciding one first; empty where there are none."""
        metrics = dict.fromkeys([self.metric, *QUALITY])
        found = (other_settings(self.frame, self.info, metric) for metric in metrics)
        return tuple(one for one in found if one is not None)

    @cached_property
    def effects(self) -> Effects:
        """Main effects and interactions on the deciding metric."""
        return estimate_effects(self.observed)

    @cached_property
    def differences(self) -> dict[str, Difference]:
        """Every cell against the baseline, by cell."""
        return {one.cell_id: one for one in to_baseline(self.observed)}

    @cached_property
    def early(self) -> tuple[Difference, ...]:
        """Cells that were stopped early against the baseline where they stopped."""
        return stopped_early(self.frame, self.info, self.metric, self.info.mode)

    def reason(self, cell_id: str) -> str:
        """Say why trials of a cell were stopped early, the reasons of several seeds after each other."""
        states = [self.states[trial.trial_id] for trial in self.info.trials if trial.cell_id == cell_id]
        return "; ".join(dict.fromkeys(state.reason for state in states if state.state == "pruned"))

    @cached_property
    def verdict(self) -> Verdict | None:
        """Whether there is a winner."""
        return verdict(self.observed)

    @cached_property
    def points(self) -> tuple[Point, ...]:
        """Quality and price of every cell."""
        return quality_price(self.frame, self.observed)

    @cached_property
    def speed(self) -> tuple[TimeToQuality, ...]:
        """Device-hours to the baseline's final figure."""
        return time_to_quality(self.frame, self.info, self.metric, self.info.mode)

    @cached_property
    def costs(self) -> Costs:
        """What the sweep cost, and what it was spared."""
        return read_costs(self.folder, self.info)

    @property
    def price(self) -> float | None:
        """Money per device-hour, None where none was declared."""
        return self.info.price_per_device_hour

    @cached_property
    def importances(self) -> tuple[Importance, ...]:
        """Which searched setting moved the deciding metric."""
        return searched_importances(self.frame, self.info, self.metric, self.info.mode)

    @cached_property
    def extractors(self) -> dict[str, str]:
        """Name the networks that the baseline's metrics come from, by role; none where it was not started."""
        baseline = next((cell for cell in self.cells if cell.is_baseline), None)
        given = (self.config(baseline.cell_id) if baseline else None) or {}
        roles = dict.fromkeys(metric.role for metric in METRICS.values() if metric.role)
        return {role: str(given["evaluation"][role]) for role in roles if given.get("evaluation", {}).get(role)}

    @cached_property
    def counts(self) -> Counter[str]:
        """How many trials stand where."""
        return Counter(state.state for state in self.states.values())

    @cached_property
    def seeds(self) -> list[int]:
        """The seeds planned."""
        return sorted({trial.seed for trial in self.info.trials})

    def first_trial(self, cell_id: str) -> str:
        """Give the trial of a cell's first seed."""
        return next(trial.trial_id for trial in self.info.trials if trial.cell_id == cell_id)

    def config(self, cell_id: str) -> dict[str, Any] | None:
        """Read a cell's configuration; None where its first trial has not been started."""
        return read_config(self.folder, self.first_trial(cell_id))


def read_config(folder: SweepFolder, trial_id: str) -> dict[str, Any] | None:
    """Read a trial's configuration; None where it has not been started."""
    path = folder.trial(trial_id) / "config.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None


def read_measured(folder: SweepFolder) -> SweepInfo:
    """Read what was planned, and how it was measured also where an older version did not write that down.

    Raises:
        UserError: There is no such sweep.
    """
    return measured_with.recalled(read_info(folder), lambda trial: read_config(folder, trial.trial_id))


def gather(folder: SweepFolder, running: bool | None = None) -> Material:
    """Read a sweep; `running` says whether it runs where the caller knows better than the sweep's lock.

    Raises:
        UserError: There is no such sweep.
    """
    import pandas as pd

    info = read_measured(folder)
    frame = read_results(folder.results) if folder.results.is_file() else pd.DataFrame()
    states = {trial.trial_id: read_state(folder.trial(trial.trial_id)) for trial in info.trials}
    return Material(folder, info, frame, states, is_running(folder) if running is None else running, read(folder))
