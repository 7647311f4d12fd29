"""What shared prefixes save: steps trained against steps asked for, where trials differ in when a technique stops.

Steps are counted on the stage tree (`sweeps.tree`), which names states as the history store does; the tests train
the grid of the first row, scaled down, and count the same. Searches ask the sweep's own waves for their points and
answer with a bowl in the place of CMMD, so that nothing is trained here.
"""

from __future__ import annotations

import math
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from prx.config import RunConfig
from prx.yamlsource import parse_yaml
from sweeps.cells import Plan, Trial
from sweeps.ledger import Ledger
from sweeps.plan import make_plan
from sweeps.results import SweepFolder
from sweeps.session import sweep_info, trial_info
from sweeps.spec import parse_spec
from sweeps.tree import grow
from sweeps.waves import make_waves

STEPS, EVERY, TRIALS = 600, 100, 40
STOPS = (100, 200, 300, 400, 500, "never")
TERM = "losses.repa"
SEARCHED = {
    "40 points of TPE, λ of 8 values × stop step": "{choice: [0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 2.0]}",
    "40 points of TPE, λ continuous × stop step": "{log_uniform: [0.05, 2.0]}",
}


def _plan(text: str) -> Plan:
    source = parse_yaml(
        "name: stops\nbase: embedded\nscheduler: {use: none}\n"
        f"trial: {{steps: {STEPS}, eval_every: {EVERY}}}\n{text}",
        "tree.yaml",
    )
    return make_plan(parse_spec(source), source)


def grid_plan(weights: Iterable[float] = (0.25, 0.5)) -> Plan:
    """Plan two weights × six stops: 1/6, 2/6, ..., 5/6 of the run, and never."""
    levels = ", ".join(
        f"{{name: w{weight}_{stop}, patch: {{{TERM}: "
        f"{{use: repa, teacher: 'embedded:dinov2', layer: 1, weight: {weight}, stop_step: {stop}}}}}}}"
        for weight in weights
        for stop in STOPS
    )
    return _plan(f"axes: {{repa: [{levels}]}}\n")


def search_plan(weights: str) -> Plan:
    """Plan a search over the weight, from a range as in a sweep's YAML, and the stop step."""
    stops = ", ".join(map(str, STOPS))
    space = f"{{{TERM}.weight: {weights}, {TERM}.stop_step: {{choice: [{stops}]}}}}"
    return _plan(f"axes: {{alignment: [repa_dinov2]}}\nsearch: {{sampler: tpe, trials: {TRIALS}, space: {space}}}\n")


def searched(plan: Plan, store: Path) -> list[Trial]:
    """Let a search choose all its points; gives the trials of every wave."""
    ledger = Ledger(SweepFolder(store, plan.spec.name), sweep_info(plan))
    waves, found = make_waves(plan, ledger), list[Trial]()
    while (wave := waves.next(ledger.trials)) is not None:
        found += wave.trials
        ledger.add([trial_info(trial, ledger.info.searched) for trial in wave.trials])
        for trial in wave.trials:
            seconds = {"wall_seconds": 1.0, "device_seconds": 1.0}
            ledger.report(trial.trial_id, {"step": STEPS, "metrics": bowl(trial.config), "replayed": False} | seconds)
    return found


def bowl(config: RunConfig) -> dict[str, float]:
    """Score a point: best at weight 0.5, stopped at two thirds of the run."""
    term: Any = config.losses["repa"]
    stop = STEPS if term.stop_step == "never" else term.stop_step
    return {"cmmd": math.log2(term.weight / 0.5) ** 2 + 4 * (stop / STEPS - 2 / 3) ** 2, "cmmd_se": 0.01}


def count(trials: Iterable[Trial]) -> tuple[int, int, int]:
    """Count trials, the steps they ask for, and those to train when every shared one is trained once."""
    by_seed: dict[int, list[tuple[str, RunConfig]]] = defaultdict(list)
    for trial in trials:
        by_seed[trial.seed].append((trial.trial_id, trial.config))
    configs = [config for runs in by_seed.values() for _, config in runs]
    needed = sum(root.steps for runs in by_seed.values() for root in grow(runs))
    return len(configs), sum(config.steps for config in configs), needed


def measure() -> None:
    """Print steps asked for, steps to train, and their ratio."""
    table = Table(title=f"Runs of {STEPS} steps, measured every {EVERY}, that stop REPA at different steps")
    for heading in ("what varies", "trials", "steps asked for", "steps to train", "ratio"):
        table.add_column(heading, justify="left" if heading == "what varies" else "right")
    rows = {"grid, λ of 2 values × stop step of 6": grid_plan().trials}
    for name, weights in SEARCHED.items():
        with tempfile.TemporaryDirectory() as store:
            rows[name] = tuple(searched(search_plan(weights), Path(store)))
    for name, trials in rows.items():
        number, asked, needed = count(trials)
        table.add_row(name, str(number), f"{asked:,}", f"{needed:,}", f"{needed / asked:.3f}")
    Console().print(table)
