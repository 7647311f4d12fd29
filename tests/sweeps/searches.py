"""Searches without models or Ray: a driver that trains in no time, in any order, and can be killed anywhere."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from prx.yamlsource import parse_yaml
from sweeps.cells import Cell, Plan, Trial
from sweeps.ledger import Ledger
from sweeps.plan import make_plan
from sweeps.results import SweepFolder, append_journal
from sweeps.session import sweep_info, trial_info
from sweeps.spec import parse_spec
from sweeps.waves import make_waves
from tests.sweeps import fakes

STEPS, EVERY = 40, 10
WEIGHT, STOP = "losses.repa.weight", "losses.repa.stop_step"


class Killed(Exception):
    """The driver is gone."""


def plan(search: str = "", *, alignment: str = "[none, repa_dinov2]", more: str = "") -> Plan:
    """Plan 40-step trials with evaluations every 10 steps."""
    section = f"search:\n{search}" if search else ""
    source = parse_yaml(
        f"name: found\nbase: embedded\naxes:\n  alignment: {alignment}\n{more}"
        "set: {warmup_steps: 0, infrastructure.threads: 1}\n"
        f"trial: {{steps: {STEPS}, eval_every: {EVERY}}}\n{section}",
        "search.yaml",
    )
    return make_plan(parse_spec(source), source)


def score(trial: Trial, step: int) -> dict[str, float]:
    """A bowl around weight 0.5 and stop step 20, lower with every step; the second metric wants a late stop."""
    losses = trial.config.losses
    repa: Any = next(iter(losses.values()), None)
    weight = repa.weight if repa else 0.1
    stop = STEPS if repa is None or repa.stop_step == "never" else repa.stop_step
    rate = math.log10(getattr(trial.config.optimizer, "lr", 1e-3))
    bowl = math.log2(weight / 0.5) ** 2 + ((stop - 20) / 20) ** 2 + (rate + 3) ** 2
    return {"cmmd": bowl + 1 / step + trial.seed / 100, "cmmd_se": 0.01, "adherence": stop / STEPS}


def evaluate(config: Any, cache: Path) -> Any:
    """Score a trial of `tests.sweeps.fakes` by its settings."""
    trial = Trial("", Cell("", config.name, {}, config, False, {}), config.seed, config)
    return lambda images: score(trial, int(images[0, 0, 0, 0]))


PARTS = replace(fakes.PARTS, evaluate="tests.sweeps.searches:evaluate")


class Driver:
    """One process that runs a sweep; `kill_after` trials it is gone, half-way through the next.

    A trial whose metric is below `enough` is complete.
    """

    def __init__(
        self, plan: Plan, store: Path, *, order: int = 0, kill_after: int | None = None, fails: str = "",
        noise: float = 0.0, enough: float = -math.inf,
    ) -> None:
        self.plan, self.folder, self.fails, self.noise = plan, SweepFolder(store, "found"), fails, noise
        self.enough = enough
        self.ledger = Ledger(self.folder, sweep_info(plan))
        self.waves: list[list[str]] = []
        self._random, self._left = random.Random(order), kill_after
        self.stages = make_waves(plan, self.ledger)

    def run(self) -> Driver:
        while (wave := self.stages.next(self.ledger.trials)) is not None:
            self.waves.append(sorted(f"{trial.cell.name} {trial.seed}" for trial in wave.trials))
            self.ledger.add([trial_info(trial, self.ledger.info.searched) for trial in wave.trials])
            pending = [t for t in wave.trials if self.ledger.trials[t.trial_id].state.state == "pending"]
            self._random.shuffle(pending)
            for trial in pending:
                self._train(trial)
        self.ledger.interrupted()  # writes the table, as the end of every run does
        return self

    def _train(self, trial: Trial) -> None:
        for step in range(EVERY, STEPS + 1, EVERY):
            if self._left == 0 and step > EVERY:
                raise Killed
            if step in self.ledger.trials[trial.trial_id].journal.boundaries:
                continue
            if self.fails and self.fails in trial.cell.name and step > EVERY:
                self.ledger.failed(trial.trial_id, "RuntimeError: the fake broke")
                break
            metrics = score(trial, step)
            metrics["cmmd"] += self.noise * random.Random(f"{trial.cell.name} {trial.seed} {step}").gauss(0, 1)
            entry: dict[str, Any] = {"kind": "boundary", "step": step, "metrics": metrics}
            entry |= {"wall_seconds": 1.0, "device_seconds": 1.0}
            append_journal(self.folder.trial(trial.trial_id), entry)
            self.ledger.report(trial.trial_id, entry | {"replayed": False})
            if metrics["cmmd"] < self.enough:
                self.ledger.completed(trial.trial_id, "target")
                break
        self._left = None if self._left is None else self._left - 1
