"""Sweeps of the embedded world with one worker and with two: the same decisions, the same numbers, one history."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from cluster.connect import attach
from prx.yamlsource import parse_yaml
from sweeps.logs import ENVIRONMENT, environment
from sweeps.plan import make_plan
from sweeps.results import SweepFolder, read_results, read_state
from sweeps.run import run_sweep
from sweeps.spec import parse_spec

YAML = """
name: {name}
base: embedded
axes:
  pace: [usual, {{name: slow, patch: {{optimizer.lr: 1e-7}}}}, {{name: fast, patch: {{optimizer.lr: 6e-3}}}}]
catalogue: {catalogue}
scheduler: {{use: halving, grace_steps: 4, reduction_factor: 3, noise_aware: false}}
trial: {{steps: {steps}, eval_every: 4, workers: {workers}, zero_stage: {stage}}}
set:
  batch_size: 8
  warmup_steps: 2
  data.num_train: 64
  data.num_reference: 64
  sampling.num_steps: 2
  evaluation: {{num_samples: 48, batch_size: 16, dino: null, inception: null, reader: null}}
"""
CATALOGUE = "pace: {usual: {patch: {}, summary: as the base}}\n"


class Sweeps:
    """Sweeps of one store, each with the history it is given."""

    def __init__(self, store: Path) -> None:
        self.store = store
        (store / "catalogue.yaml").write_text(CATALOGUE)

    def run(self, name: str, history: str, *, steps: int = 8, workers: int = 1, stage: int = 0) -> str:
        """Run a sweep to its end; gives what it printed."""
        text = YAML.format(
            name=name, steps=steps, workers=workers, stage=stage, catalogue=self.store / "catalogue.yaml"
        )
        source = parse_yaml(text, "sweep.yaml")
        self.plan, output = make_plan(parse_spec(source), source), io.StringIO()
        console = Console(file=output, width=300)
        outcome = run_sweep(
            self.plan, store=self.store, history=self.store / history, max_concurrent=1, console=console
        )
        assert outcome.exit_code == 0, output.getvalue()
        return output.getvalue()

    def table(self, name: str) -> pd.DataFrame:
        """Read a sweep's boundaries, by cell and step."""
        return read_results(SweepFolder(self.store, name).results).set_index(["name", "step"]).sort_index()

    def states(self, name: str) -> dict[str, str]:
        """Read how each cell ended."""
        folder = SweepFolder(self.store, name)
        return {trial.cell.name: read_state(folder.trial(trial.trial_id)).state for trial in self.plan.trials}


def assert_alike(first: pd.DataFrame, second: pd.DataFrame) -> None:
    """Compare what was measured; sums of two workers' gradients are rounded otherwise."""
    assert list(first.index) == list(second.index)
    for metric in ("cmmd", "cmmd_se"):  # the loss is of the last seconds before a boundary
        assert list(first[metric]) == pytest.approx(list(second[metric]), rel=1e-5), metric


@pytest.mark.slow
def test_two_workers_are_one_and_go_on_from_each_others_history(tmp_path):
    sweeps = Sweeps(tmp_path)
    with environment(), attach(
        "local", num_cpus=3, log_dir=tmp_path / "ray", environment=ENVIRONMENT,
        object_store_bytes=100 * 1024**2, dashboard=True,
    ):  # fmt: skip
        sweeps.run("alone", "first")
        alone = sweeps.states("alone")
        text = sweeps.run("zero2", "second", workers=2, stage=2)
        assert " paused " in text
        assert " resumed " in text
        assert sweeps.states("zero2") == alone
        assert set(alone.values()) == {"complete", "pruned"}
        assert_alike(sweeps.table("zero2"), sweeps.table("alone"))
        sweeps.run("zero3", "first", steps=12, workers=2, stage=3)
        sweeps.run("again", "second", steps=12)
        ends = [name for name, state in alone.items() if state == "complete"]
        for name in ("zero3", "again"):
            table = sweeps.table(name)
            assert {end: list(table.loc[end, "replayed"]) for end in ends} == {key: [True, True, False] for key in ends}
        assert_alike(sweeps.table("zero3"), sweeps.table("again"))
