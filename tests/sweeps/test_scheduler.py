"""The cohort scheduler against a simulated Tune: random arrival, few workers, failures; and Ray's ASHA."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from ray.tune.schedulers import TrialScheduler

from sweeps.early_stopping import make_scheduler
from sweeps.halving import Cohort
from sweeps.ray_schedulers import RayAsha
from sweeps.results import TrialInfo
from sweeps.scheduler import CohortHalving
from tests.sweeps.fakes import make_info, make_plan

STEPS, EVERY = 40, 10


@dataclass(eq=False)
class SimTrial:
    trial_id: str
    status: str = "PENDING"
    step: int = 0
    is_saving: bool = False
    placement_group_factory: str = "one CPU"

    def is_finished(self):
        return self.status in ("TERMINATED", "ERROR")


@dataclass
class Verdicts:
    paused_at: list = field(default_factory=list)
    reasons: dict = field(default_factory=dict)

    def paused(self, trial_id, step):
        self.paused_at.append((trial_id, step))

    def pruned(self, trial_id, reason):
        assert trial_id not in self.reasons
        self.reasons[trial_id] = reason


class Simulation:
    """Tune's controller and the trial queue, reduced to what a scheduler touches."""

    def __init__(self, names, workers, rng, failing=()):
        self.max_concurrent, self.rng, self.failing = workers, rng, set(failing)
        self.waiting = [SimTrial(name) for name in names]
        self.trials, self.ran = [], dict.fromkeys(names, 0)
        self.verdicts = Verdicts()

    def attach(self, scheduler):
        self.scheduler = scheduler
        return self

    def full(self):
        return sum(trial.status in ("PENDING", "RUNNING") for trial in self.trials) >= self.max_concurrent

    def drop(self, trial_id):
        self.waiting = [trial for trial in self.waiting if trial.trial_id != trial_id]

    def get_trials(self):
        return self.trials

    def stop_trial(self, trial):
        hook = "on_trial_complete" if trial.status == "RUNNING" else "on_trial_remove"
        args = ({},) if trial.status == "RUNNING" else ()
        getattr(self.scheduler, hook)(self, trial, *args)
        trial.status = "TERMINATED"

    def run(self, value):
        for _ in range(10_000):
            if not self.waiting and all(trial.is_finished() for trial in self.trials):
                return self
            self._start()
            running = [trial for trial in self.trials if trial.status == "RUNNING"]
            if running:
                self._advance(self.rng.choice(running), value)
        raise AssertionError("the sweep never ends")

    def _start(self):
        if self.waiting and not self.full():
            trial = self.waiting.pop(0)
            self.trials.append(trial)
            self.scheduler.on_trial_add(self, trial)
        chosen = self.scheduler.choose_trial_to_run(self)
        if chosen:
            chosen.status = "RUNNING"

    def _advance(self, trial, value):
        if self.rng.random() < 0.5:  # a progress report between boundaries
            report = {"step": trial.step + 1, "done": False}
            assert self.scheduler.on_trial_result(self, trial, report) in ("CONTINUE", "STOP")
            return
        if trial.trial_id in self.failing and trial.step == EVERY:
            trial.status = "ERROR"
            self.scheduler.on_trial_error(self, trial)
            return
        trial.step += EVERY
        self.ran[trial.trial_id] += 1
        if trial.step == STEPS:
            self.stop_trial(trial)
            return
        result = {"step": trial.step, "cmmd": value(trial.trial_id, trial.step), "cmmd_se": 0.0}
        action = self.scheduler.on_trial_result(self, trial, result)
        if action == TrialScheduler.STOP:
            self.stop_trial(trial)
        elif action == TrialScheduler.PAUSE:
            trial.status = "PAUSED"


def halving(simulation, units, rungs=(10, 20), factor=2, baseline=()):
    def make_cohort(trials, judged):
        return Cohort(units if trials else {}, rungs if judged else (), factor=factor, protected=baseline)

    scheduler = CohortHalving(simulation, make_cohort, simulation.verdicts, "cmmd")
    scheduler.join([
        TrialInfo(f"{unit}-{seed}", unit, unit, unit in baseline, seed, {})
        for unit, seeds in units.items() for seed in seeds
    ])  # fmt: skip
    simulation.attach(scheduler)
    return scheduler


def quality(trial_id, step):
    return float(trial_id.split("-")[0][1:]) + 1 / step


def test_survivors_depend_on_neither_arrival_nor_workers():
    outcomes = set()
    for trial in range(300):
        rng = random.Random(trial)
        units = {f"u{i}": (0,) for i in rng.sample(range(9), 9)}
        names = [f"{unit}-0" for unit in units]
        simulation = Simulation(names, workers=rng.randint(1, 9), rng=rng)
        halving(simulation, units)
        simulation.run(quality)
        outcomes.add(tuple(sorted(simulation.verdicts.reasons.items())))
        full = {trial.trial_id for trial in simulation.trials if trial.step == STEPS}
        assert full == {"u0-0", "u1-0", "u2-0"}
        assert sum(simulation.ran.values()) == 9 + 5 + 3 * 2
    (reasons,) = outcomes
    assert dict(reasons)["u8-0"] == "rung 10: cmmd 8.1 behind 4.1 (kept best 5 of 9)"
    assert dict(reasons)["u3-0"] == "rung 20: cmmd 3.05 behind 2.05 (kept best 3 of 5)"


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_failures_and_seeds_never_hang(workers):
    for seed in range(100):
        rng = random.Random(seed)
        units = {f"u{i}": (0, 1) for i in range(4)}
        names = [f"{unit}-{s}" for unit in units for s in (0, 1)]
        failing = rng.sample(names, rng.randint(1, 8))
        simulation = Simulation(names, workers, rng, failing)
        halving(simulation, units, baseline={"u3"})
        simulation.run(quality)
        ended = {trial.trial_id: trial for trial in simulation.trials}
        for name in ("u3-0", "u3-1"):
            assert ended[name].step == STEPS or ended[name].status == "ERROR"
        assert all(unit.split("-")[0] != "u3" for unit in simulation.verdicts.reasons)


def test_waiting_for_a_trial_that_never_comes_is_an_error_and_no_hang():
    simulation = Simulation(["u0-0"], 1, random.Random(0))
    halving(simulation, {"u0": (0,), "lost": (7,)})
    with pytest.raises(RuntimeError, match="rung 10 waits for lost seed 7, which no trial will report"):
        simulation.run(quality)


def test_replay_decides_before_anything_starts():
    names = [f"u{i}-0" for i in range(4)]
    simulation = Simulation(names, 2, random.Random(0))
    scheduler = halving(simulation, {f"u{i}": (0,) for i in range(4)})
    for name in names:
        scheduler.replay(name, 10, {"cmmd": quality(name, 10)})
    assert [trial.trial_id for trial in simulation.waiting] == ["u0-0", "u1-0"]
    assert set(simulation.verdicts.reasons) == {"u2-0", "u3-0"}
    assert scheduler.open_rungs() == (20,)
    simulation.run(quality)
    assert set(simulation.verdicts.reasons) == {"u1-0", "u2-0", "u3-0"}


def test_a_loser_that_is_replaying_is_stopped_at_its_next_report():
    simulation = Simulation(["u0-0", "u1-0"], 2, random.Random(0))
    scheduler = halving(simulation, {"u0": (0,), "u1": (0,)}, rungs=(10,))
    scheduler.replay("u1-0", 10, {"cmmd": 9.0})
    for trial in simulation.waiting:
        trial.status = "RUNNING"
        simulation.trials.append(trial)
        scheduler.on_trial_add(simulation, trial)
    first, second = simulation.trials
    assert scheduler.on_trial_result(simulation, first, {"step": 10, "cmmd": 1.0}) == TrialScheduler.CONTINUE
    assert second.status == "RUNNING"
    assert scheduler.on_trial_result(simulation, second, {"step": 10, "cmmd": 9.0}) == TrialScheduler.STOP
    assert simulation.verdicts.reasons == {"u1-0": "rung 10: cmmd 9 behind 1 (kept best 1 of 2)"}


def test_ray_asha_sees_evaluations_only():
    simulation = Simulation(["a", "b"], 2, random.Random(0))
    options = {"grace_period": 10, "reduction_factor": 2, "max_t": 40}
    asha = RayAsha(simulation, simulation.verdicts, "cmmd", "min", **options)
    asha.replay("past", 10, {"cmmd": 1.0})
    trial = SimTrial("a", status="RUNNING")
    asha.on_trial_add(simulation, trial)
    assert asha.on_trial_result(simulation, trial, {"step": 5}) == TrialScheduler.CONTINUE
    assert asha.on_trial_result(simulation, trial, {"step": 10, "cmmd": 2.0}) == TrialScheduler.STOP
    assert simulation.verdicts.reasons == {"a": "asha at step 10: cmmd 2 behind those that came before"}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("{use: none}", "RunAll"),
        ("{use: asha, grace_steps: 10}", "RayAsha"),
        ("{use: halving}", "CohortHalving"),
    ],
)
def test_the_sweep_names_its_scheduler(text, kind):
    plan = make_plan("good-1", "good-2", scheduler=text)
    scheduler = make_scheduler(plan, make_info("good-1", "good-2"), SimpleNamespace(), Verdicts())
    assert type(scheduler).__name__ == kind
    assert scheduler.metric is None  # else Tune demands it in progress reports
