"""A sweep without models: what a trial does is written in its name, and every step it trains is counted.

Names: `good-3` scores 3 + 1/step; `crash-...` raises at step 15; `nan-...` measures no number;
`die-...` kills its process once, `doom-...` each that it gets; `slow-...` takes its time; `fork-20-3` is like every
`fork-20-...` up to step 20.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prx.config import config_id, parse_run_config
from prx.yamlsource import parse_yaml
from sweeps.history.keys import digest
from sweeps.plan import Cell, Plan, Trial
from sweeps.results import SweepInfo, TrialInfo
from sweeps.spec import parse_spec
from sweeps.trial import Parts

PARTS = Parts(
    "tests.sweeps.fakes:FakeTrainer", "tests.sweeps.fakes:evaluate", "tests.sweeps.fakes:prepare",
    "tests.sweeps.fakes:Lineage",
)  # fmt: skip


@dataclass(frozen=True)
class FakeProgress:
    step: int
    loss: float
    terms: dict[str, float]
    step_seconds: list[float]
    losses: list[float]


class FakeTrainer:
    """The interface of `prx.trainer.Trainer`; a checkpoint is a folder with the name of its trainer."""

    def __init__(self, config: Any, *, folder: Path, cache: Path) -> None:
        self.config, self.folder, self.step = config, folder, 0
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)

    def resume(self) -> int:
        found = [int(path.name.split("-")[1]) for path in (self.folder / "checkpoints").glob("step-*")]
        self.step = max(found, default=0)
        return self.step

    def advance(self, until: int, *, seconds: float = float("inf")) -> FakeProgress:
        kind = self.config.name.split("-")[0]
        stop = min(until, self.step + 5)
        taken = stop - self.step
        while self.step < stop:
            self.step += 1
            time.sleep(0.05 if kind == "slow" else float(os.environ.get("FAKE_STEP_SECONDS", "0")))
            if kind == "crash" and self.step == 15:
                raise RuntimeError("the fake broke at step 15")
            if self.step == 5 and (kind == "doom" or (kind == "die" and not (self.folder / "died").exists())):
                with (self.folder / "died").open("a") as log:
                    log.write(f"{os.getpid()}\n")
                os._exit(1)
            with (self.folder / "trained").open("a") as log:
                log.write(f"{self.step}\n")
        losses = [1.0 / step for step in range(self.step - taken + 1, self.step + 1)]
        return FakeProgress(self.step, 1.0 / self.step, {}, [0.01] * taken, losses)

    def save(self) -> None:
        target = self.folder / "checkpoints" / f"step-{self.step:08d}"
        if target.is_dir():  # what is saved is never changed, as with the real one: the history may share the file
            return
        partial = target.with_name(f"partial-{os.getpid()}-{self.step}")
        partial.mkdir(exist_ok=True)
        (partial / "weights").write_text(f"{self.config.name} {self.step}")
        partial.rename(target)

    def sample(self, sampling: Any = None) -> torch.Tensor:
        scale = int(sampling.guidance_scale) if sampling else 0
        return torch.full((4, 3, 8, 8), self.step + scale, dtype=torch.uint8)

    def close(self) -> None:
        self.closed = True


def evaluate(config: Any, cache: Path) -> Any:
    """Score by the number in the name, better with every step."""

    def measure(images: torch.Tensor) -> dict[str, float]:
        kind, _, value = config.name.partition("-")
        step = int(images[0, 0, 0, 0])
        base = float(value.rpartition("-")[2]) if kind != "fork" or step > int(value.partition("-")[0]) else 4.0
        score = float("nan") if kind == "nan" else base + 1 / step + config.seed / 10
        return {"cmmd": score, "cmmd_se": 0.01, "adherence": 1 / base}

    return measure


class Lineage:
    """The interface of `sweeps.history.keys.Lineage`: a name `fork-20-3` shares 20 steps with its like."""

    def __init__(self, config: Any, cache: Path) -> None:
        self.config = config

    def key(self, step: int) -> str:
        parts = self.config.name.split("-")
        shared = parts[0] == "fork" and step <= int(parts[1])
        return digest([parts[0] if shared else self.config.name, self.config.seed, step])

    def measurement(self, step: int) -> str:
        return digest([self.key(step), "measured"])


def prepare(configs: Any, cache: Path, report: Any) -> None:
    """Prepare nothing, audibly."""
    report("nothing", 1, 1)


def trained(folder: Path) -> list[int]:
    """List every step a trial trained, over all its lives."""
    path = folder / "trained"
    return [int(line) for line in path.read_text().split()] if path.is_file() else []


def make_plan(
    *names: str, scheduler: str = "{use: none}", seeds: str = "[0]", more: str = "", workers: int = 1
) -> Plan:
    """Plan 40-step trials with evaluations every 10 steps; the first name is the baseline."""
    source = parse_yaml(
        f"name: fake\nbase: embedded\naxes: {{alignment: [none]}}\nscheduler: {scheduler}\n"
        f"seeds: {seeds}\ntrial: {{steps: 40, eval_every: 10}}\n{more}",
        "fake.yaml",
    )
    spec = parse_spec(source)
    settings = {"steps": 40, "batch_size": 4, "warmup_steps": 0, "evaluation": {"every": 10, "grid": 4}}
    cells = []
    for name in names:
        config = parse_run_config(
            settings
            | {"name": name, "text": {"encoder": name}, "infrastructure": {"threads": 1, "workers": workers}}
        )
        cells.append(Cell(config_id(config), name, {"alignment": name}, config, name == names[0], {}))
    trials = [_trial(cell, seed) for seed in spec.first_seeds for cell in cells]
    return Plan(spec, source, tuple(cells), (), tuple(trials))


def _trial(cell: Cell, seed: int) -> Trial:
    config = cell.config.model_copy(update={"seed": seed})
    return Trial(config_id(config), cell, seed, config)


def make_info(*names: str, metric: str = "cmmd", seeds: tuple[int, ...] = (0,)) -> SweepInfo:
    """Describe a sweep of cells with these names; the first is the baseline."""
    trials = tuple(
        TrialInfo(f"{name}-{seed}", name, name, name == names[0], seed, {"alignment": name})
        for seed in seeds
        for name in names
    )
    return SweepInfo("fake", metric, "min", 40, 10, ("alignment",), trials)
