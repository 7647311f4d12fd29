"""What it costs to take up finished trials again: the same sweep once more, and another sweep on one history.

The trials are synthetic: their journals and entries are written as training would have left them, so that what
is measured is the way from the command to "everything is trained already", without Ray or a model.
"""

from __future__ import annotations

import io
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from prx.config import RunConfig
from prx.yamlsource import parse_yaml
from sweeps.history.keys import Lineage, digest
from sweeps.history.recall import MEASUREMENT, STATE
from sweeps.history.store import RECORD, HistoryStore
from sweeps.plan import Plan, make_plan
from sweeps.results import SweepFolder, TrialState, write_steps_trained
from sweeps.run import run_sweep
from sweeps.spec import parse_spec
from sweeps.trial import Parts

CELLS = 10
PARTS = Parts(prepare="sweeps.benchmarks.replay:prepare", lineage="sweeps.benchmarks.replay:Names")


class Names:
    """Names of a run's states from its configuration alone: no data is opened."""

    def __init__(self, config: RunConfig, cache: Path) -> None:
        self._lineage = Lineage(config, None)

    def key(self, step: int) -> str:
        """Name the state after `step` updates."""
        return self._lineage.key(step)

    def measurement(self, step: int) -> str:
        """Name what is measured there."""
        return digest([self.key(step), "measured"])


def prepare(configs: Sequence[RunConfig], cache: Path, report: Any) -> None:
    """Encode nothing: nothing is trained."""


def plan_of(trials: int, name: str) -> Plan:
    """Plan ten cells with as many seeds as make up the trials, losers stopped early, four boundaries each."""
    levels = ", ".join(
        f"{{name: w{i}, patch: {{losses.c: {{use: contrastive, weight: {i / 100}}}}}}}" for i in range(1, CELLS)
    )
    text = (
        f"name: {name}\nbase: embedded\naxes: {{weight: [{{name: none, patch: {{}}}}, {levels}]}}\n"
        f"scheduler: {{use: halving, grace_steps: 100, reduction_factor: 2}}\n"
        f"seeds: {list(range(max(1, trials // CELLS)))}\ntrial: {{steps: 400, eval_every: 100}}\n"
    )
    source = parse_yaml(text, "replay.yaml")
    return make_plan(parse_spec(source), source)


def finish(plan: Plan, folder: SweepFolder, history: HistoryStore) -> None:
    """Leave behind what training every trial to its end would."""
    for number, trial in enumerate(plan.trials):
        names, home = Names(trial.config, folder.cache), folder.trial(trial.trial_id)
        lines = []
        for step in (100, 200, 300, 400):
            metrics = {"cmmd": 1 / step + (number % CELLS) / 100, "cmmd_se": 0.001, "loss": 0.5}
            entry = {"kind": "boundary", "step": step, "metrics": metrics, "wall_seconds": step / 10}
            entry["device_seconds"] = step / 10
            lines.append(entry | {"steps_trained": step})
            _put(history, names.key(step), STATE, {"step": step})
            _put(history, names.measurement(step), MEASUREMENT, entry)
        home.mkdir(parents=True)
        (home / "journal.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
        (home / "state.json").write_text(json.dumps(asdict(TrialState("complete"))), encoding="utf-8")
        write_steps_trained(home, 400)


def _put(history: HistoryStore, key: str, kind: str, record: dict[str, Any]) -> None:
    """Write an entry as the store does, but without waiting for the disk: there are thousands to write."""
    folder = Path(history.folder(key))
    folder.mkdir(parents=True, exist_ok=True)
    content = {"key": key, "kind": kind, "record": record, "attempt": "", "files": {}}
    (folder / RECORD).write_text(json.dumps(content), encoding="utf-8")


def seconds(plan: Plan, store: Path, history: Path) -> float:
    """Take a sweep up to its end; gives the seconds.

    Raises:
        RuntimeError: Something was left to train, or a row is missing.
    """
    output, started = io.StringIO(), time.perf_counter()
    outcome = run_sweep(plan, store=store, history=history, parts=PARTS, console=Console(file=output, width=200))
    spent = time.perf_counter() - started
    if outcome.exit_code or outcome.steps.left or "everything is trained already" not in output.getvalue():
        raise RuntimeError(f"the replay did not end as it should: {outcome.steps}; {output.getvalue()}")
    return spent


def measure(sizes: Sequence[int], folder: Path | None) -> None:
    """Print seconds of replay for several numbers of finished trials, and how they grow."""
    table = Table(title="Replay of finished trials, no Ray and no model started")
    headings = ("trials", "same sweep again s", "ms a trial", "other sweep, from the history s", "ms a trial", "plan s")
    for heading in headings:
        table.add_column(heading, justify="right")
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            root = Path(scratch)
            started = time.perf_counter()
            plan = plan_of(size, "replay")
            planned, history = time.perf_counter() - started, root / "history"
            finish(plan, SweepFolder(root / "first", "replay"), HistoryStore(history))
            same = seconds(plan, root / "first", history)
            other = seconds(plan, root / "second", history)
        each = [f"{spent * 1000 / size:.1f}" for spent in (same, other)]
        table.add_row(f"{size:,}", f"{same:.1f}", each[0], f"{other:.1f}", each[1], f"{planned:.1f}")
    Console().print(table)
