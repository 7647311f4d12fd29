"""Sweeps from Python: the same as the command line, with results as pandas tables and trials that load their model.

    from sweeps import Sweep

    results = Sweep.from_yaml("sweeps/configs/quickstart.yaml").run(store="runs")
    results.final.sort_values("cmmd")
    model = results.best().load_model()
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console

from prx.compose import load_run_config
from prx.config import RunConfig
from prx.errors import UserError
from prx.registry import choices
from prx.yamlsource import Source, parse_yaml
from sweeps.leaderboard import Leaderboard, leading_trial, render_leaderboard
from sweeps.plan import Plan, make_plan
from sweeps.results import (
    FINISHED,
    SweepFolder,
    SweepInfo,
    TrialInfo,
    TrialState,
    read_info,
    read_results,
    read_state,
)
from sweeps.show_plan import render_plan
from sweeps.spec import SweepSpec, load_spec, parse_spec

if TYPE_CHECKING:
    import pandas as pd

    from prx.train_step import TrainStep
    from sweeps.history.store import Entry, HistoryStore


@dataclass(frozen=True)
class TrialResult:
    """One trial of a sweep, read from its folder."""

    info: TrialInfo
    sweep: SweepFolder
    state: TrialState
    curve: pd.DataFrame
    """One row for every boundary it reached, by step, in the columns of the table of results."""

    @property
    def folder(self) -> Path:
        """Where its journal, configuration, pictures and newest checkpoint lie."""
        return self.sweep.trial(self.info.trial_id)

    @property
    def name(self) -> str:
        """The name of its cell."""
        return self.info.name

    @property
    def seed(self) -> int:
        """The seed it was trained with."""
        return self.info.seed

    @cached_property
    def config(self) -> RunConfig:
        """Everything that decides what it trains."""
        return load_run_config(self.folder / "config.yaml")

    @property
    def metrics(self) -> dict[str, float]:
        """What was measured at the last boundary it reached; empty before the first."""
        rows = self.curve.select_dtypes("number").drop(columns=["seed"])
        return {str(k): float(v) for k, v in rows.iloc[-1].dropna().items()} if len(rows) else {}

    def samples(self, step: int | None = None) -> Path:
        """Give the picture of samples at a boundary, the last one unless told.

        Raises:
            UserError: There is none.
        """
        step = self._last() if step is None else step
        path = self.folder / "samples" / f"step-{step:08d}.png"
        if not path.is_file():
            raise UserError(f"{path}: does not exist; {self._label()} has boundaries {self._steps()}")
        return path

    def load_model(self, step: int | None = None) -> TrainStep:
        """Load the trained module on the CPU, in evaluation mode, with the weights that its sampler uses.

        Args:
            step: A boundary whose checkpoint was kept; the last one unless told.

        Raises:
            UserError: No checkpoint of that step is kept; lists those that are.
        """
        from prx.checkpoint import read_module

        checkpoint = self.checkpoint(step)
        return read_module(self.config, checkpoint)

    def checkpoint(self, step: int | None = None) -> Path:
        """Give the folder of a checkpoint; one that only the history has is brought into the trial's folder.

        Raises:
            UserError: As `load_model`.
        """
        from prx.trainer import checkpoints

        step = self._last() if step is None else step
        local = checkpoints(self.folder)
        if step in local:
            return local[step]
        entries = self._remembered()
        where = self._label()
        if step not in entries:
            kept = sorted({*local, *entries})
            raise UserError(f"step: {where} has no checkpoint of step {step}; those that are kept: {kept or 'none'}")
        store, entry = entries[step]
        target = self.folder / "checkpoints" / f"step-{step:08d}"
        if not store.fetch(entry, target):
            raise UserError(f"step: the checkpoint of step {step} of {where} cannot be read: {'; '.join(store.damage)}")
        return target

    def _remembered(self) -> dict[int, tuple[HistoryStore, Entry]]:
        """Find the states of this trial of which the history keeps files, by step."""
        from sweeps.history.remember import recorded
        from sweeps.history.store import HistoryStore

        record = recorded(self.sweep.waypoints)
        if record is None or self.info.trial_id not in record.trials:
            return {}
        store = HistoryStore(record.history)
        found = {step: store.get(state) for step, state, _ in record.trials[self.info.trial_id]}
        return {step: (store, entry) for step, entry in found.items() if entry is not None and entry.files}

    def _steps(self) -> list[int]:
        return [int(step) for step in self.curve["step"] if step]

    def _last(self) -> int:
        steps = self._steps()
        if not steps:
            raise UserError(f"{self._label()} has reached no boundary yet ({self.state.state})")
        return steps[-1]

    def _label(self) -> str:
        return f"trial {self.name} (seed {self.seed})"


class Results:
    """What a sweep has found so far.

    Args:
        folder: The sweep's own folder in a store.

    Raises:
        UserError: The folder holds no sweep.
    """

    def __init__(self, folder: SweepFolder, exit_code: int | None = None) -> None:
        self.folder, self.exit_code = folder, exit_code
        self.info: SweepInfo = read_info(folder)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The table of results: one row for every trial and boundary."""
        return read_results(self.folder.results)

    @property
    def final(self) -> pd.DataFrame:
        """Every trial's last boundary, one row a trial, indexed by its id."""
        return self.frame.sort_values("step").groupby("trial_id", sort=False).tail(1).set_index("trial_id")

    @cached_property
    def trials(self) -> list[TrialResult]:
        """Every planned trial, in planned order."""
        rows = dict(tuple(self.frame.groupby("trial_id")))
        empty = self.frame[:0]
        return [
            TrialResult(info, self.folder, read_state(self.folder.trial(info.trial_id)),
                        rows.get(info.trial_id, empty).sort_values("step"))
            for info in self.info.trials
        ]  # fmt: skip

    def trial(self, name: str, seed: int | None = None) -> TrialResult:
        """Find a trial by its id, or by its cell's name and its seed (the first of the cell unless told).

        Raises:
            UserError: There is none; lists what there is.
        """
        named = [t for t in self.trials if name in (t.info.trial_id, t.name) and seed in (None, t.seed)]
        if not named:
            known = [f"{trial.name} (seed {trial.seed})" for trial in self.trials]
            raise UserError(f"trial: {choices(name if seed is None else f'{name} (seed {seed})', known)}")
        return named[0]

    def best(self, metric: str | None = None) -> TrialResult:
        """Give the best trial of the cell that leads at full length, by the metric that decides unless told.

        Its cell leads; whether it wins is what `leaderboard` says.

        Raises:
            UserError: No trial is complete, or the metric was not measured.
        """
        from sweeps.metrics import METRICS

        metric = metric or self.info.metric
        if metric not in METRICS:
            raise UserError(f"metric: {choices(metric, list(METRICS))}")
        leader = leading_trial(self.frame, self.info, metric)
        if leader is None:
            which = f"no trial of {self.info.name} has {metric} at step {self.info.steps}"
            ended = all(trial.state.state in FINISHED for trial in self.trials)
            raise UserError(f"{which}: name a trial that ended before" if ended else f"{which} yet")
        return self.trial(leader)

    def leaderboard(self) -> Leaderboard:
        """Give the table that `prx-sweep run` ends with; `rich` draws it."""
        return render_leaderboard(self.frame, self.info)


class Sweep:
    """A sweep: what it varies, what it would train, and running it.

    Args:
        spec: The sweep, validated.
        source: Where each of its values was written, for messages.

    Raises:
        ConfigError: As `sweeps.plan.make_plan`.
    """

    def __init__(self, spec: SweepSpec, source: Source) -> None:
        self.spec = spec
        self.plan: Plan = make_plan(spec, source)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Sweep:
        """Read a sweep from its YAML.

        Raises:
            ConfigError: Every problem at once, with file and line.
        """
        return cls(*load_spec(Path(path)))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Sweep:
        """Make a sweep of a mapping with the keys of the YAML.

        Raises:
            ConfigError: Every problem at once; lines are those of the mapping written as YAML.
        """
        source = parse_yaml(yaml.safe_dump(dict(content), sort_keys=False))
        return cls(parse_spec(source), source)

    def show(self, console: Console | None = None) -> None:
        """Print the plan: cells, what is left out and why, rungs. Trains nothing."""
        (console or Console(highlight=False)).print(render_plan(self.plan))

    def run(
        self,
        store: str | Path = "runs",
        *,
        history: str | Path | None = None,
        address: str | None = None,
        max_concurrent: int | None = None,
        console: Console | None = None,
    ) -> Results:
        """Train what the sweep asks for and the store does not have yet; again resumes.

        Trials that fail are no error: they are in the results, with their reason, and `exit_code` is 1.

        Args: as `sweeps.run.run_sweep`.

        Raises:
            UserError: Plan, store, data or cluster cannot be used; nothing was trained.
        """
        from sweeps.run import run_sweep

        outcome = run_sweep(
            self.plan,
            store=Path(store),
            history=history,
            address=address,
            max_concurrent=max_concurrent,
            console=console,
        )
        return Results(outcome.folder, outcome.exit_code)

    def results(self, store: str | Path = "runs") -> Results:
        """Read what a store holds of this sweep, while it runs or after.

        Raises:
            UserError: It was never started there.
        """
        return Results(SweepFolder(Path(store).absolute(), self.spec.name))
