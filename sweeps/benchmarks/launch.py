"""What starting a trial costs: our reused actors against the documented pattern, both doing the same work."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from sweeps.plan import Plan, make_plan
from sweeps.results import SweepFolder, read_journal
from sweeps.spec import load_spec
from sweeps.trial import Settings, TrialRun


@dataclass(frozen=True)
class Side:
    """One way of running trials. Units: seconds; `work` is training, evaluation and checkpoints."""

    name: str
    trials: int
    elapsed: float
    work: float

    @property
    def overhead(self) -> float:
        """Seconds a trial that are not its own work, one trial at a time."""
        return (self.elapsed - self.work) / self.trials


def plan_for(name: str, trials: int, steps: int, folder: Path) -> Plan:
    """Plan equal short trials that differ by seed."""
    sweep = {
        "name": name, "base": "embedded", "axes": {"alignment": ["none"]}, "scheduler": {"use": "none"},
        "seeds": list(range(trials)), "trial": {"steps": steps, "eval_every": steps},
        "set": {
            "warmup_steps": 1, "evaluation.num_samples": 96, "evaluation.grid": 4, "data.num_train": 1024,
            "sampling.num_steps": 2,
        },
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(sweep, sort_keys=False), encoding="utf-8")
    return make_plan(*load_spec(file))


def measure(trials: int, documented: int, steps: int, store: Path) -> None:
    """Run both ways on fresh folders, one trial at a time, and print seconds of overhead a trial."""
    shutil.rmtree(store / "sweeps", ignore_errors=True)
    sides = [reused_actors(trials, steps, store), torch_trainers(documented, steps, store)]
    table = Table(title=f"Launch overhead a trial ({steps} steps and one evaluation each, one at a time)")
    for column in ("way", "trials", "elapsed s", "own work s", "overhead s a trial"):
        table.add_column(column, justify="right")
    for side in sides:
        table.add_row(side.name, str(side.trials), f"{side.elapsed:.1f}", f"{side.work:.1f}", f"{side.overhead:.2f}")
    console = Console()
    console.print(table)
    ratio = sides[0].overhead / sides[1].overhead
    console.print(f"overhead a trial, reused actors / TorchTrainer a trial: {ratio:.3f}")


def _work(folder: SweepFolder, trial_ids: Sequence[str]) -> float:
    return sum(read_journal(folder.trial(trial_id)).wall_seconds for trial_id in trial_ids)


def reused_actors(trials: int, steps: int, store: Path) -> Side:
    """Run trials as `prx-sweep run` does, Ray's start and the encoding included."""
    from sweeps.run import run_sweep

    plan = plan_for("reused-actors", trials, steps, store)
    started = time.perf_counter()
    outcome = run_sweep(plan, store=store, max_concurrent=1)
    elapsed = time.perf_counter() - started
    return Side("prx-sweep run", trials, elapsed, _work(outcome.folder, [t.trial_id for t in plan.trials]))


def torch_trainers(trials: int, steps: int, store: Path) -> Side:
    """Run trials as Ray's guide has it: a Tune function that builds a `TorchTrainer` of one worker."""
    import ray
    from ray import tune

    plan = plan_for("torch-trainers", trials, steps, store)
    folder = SweepFolder(store.absolute(), plan.spec.name)
    settings = [asdict(_settings(plan, number, folder)) for number in range(trials)]
    started = time.perf_counter()
    # The dashboard stays on: without it a finished trainer's placement group is never freed.
    ray.init(
        address="local", num_cpus=2, include_dashboard=True, dashboard_host="127.0.0.1",
        _node_ip_address="127.0.0.1", log_to_driver=False,
    )  # fmt: skip
    try:
        tune.Tuner(
            tune.with_resources(_driver, {"CPU": 0.01}),
            param_space={"settings": tune.grid_search(settings)},
            tune_config=tune.TuneConfig(max_concurrent_trials=1),
            run_config=tune.RunConfig(storage_path=str(folder.root / "tune"), verbose=0),
        ).fit()
    finally:
        ray.shutdown()
    elapsed = time.perf_counter() - started
    work = _work(folder, [trial.trial_id for trial in plan.trials])
    if not work:
        raise RuntimeError(f"no trial of the documented pattern finished; see {folder.root / 'tune'}")
    return Side("TorchTrainer a trial", trials, elapsed, work)


def _settings(plan: Plan, number: int, folder: SweepFolder) -> Settings:
    trial = plan.trials[number]
    home = folder.trial(trial.trial_id)
    home.mkdir(parents=True, exist_ok=True)
    return Settings(
        trial_id=trial.trial_id,
        config=trial.config.model_dump(mode="json"),
        root=str(folder.root),
        folder=str(home),
        cache=str(folder.cache),
        metric="cmmd",
        trainer="prx.trainer:Trainer",
        evaluate="sweeps.measure:evaluate",
    )


def _driver(config: dict[str, Any]) -> None:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    home = Path(config["settings"]["folder"])
    TorchTrainer(
        _worker,
        train_loop_config=config["settings"],
        scaling_config=ScalingConfig(num_workers=1, use_gpu=False),
        run_config=RunConfig(storage_path=str(home / "train"), callbacks=[TuneReportCallback()]),
    ).fit()


def _worker(settings: dict[str, Any]) -> None:
    """Do exactly what our own actor does."""
    from ray import train

    run = TrialRun(Settings(**settings))
    while True:
        report = run.next()
        if report.get("done"):
            break
    run.close()
    train.report({"step": report["step"], "cmmd": report["cmmd"]})
