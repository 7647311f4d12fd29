"""Finished trials sampled again at several guidance scales: whether a ranking depends on the scale."""

from __future__ import annotations

from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from prx.config import RunConfig, parse_run_config
from prx.errors import UserError
from prx.quiet import hush
from prx.trainer import Trainer, checkpoints
from sweeps.measure import evaluate
from sweeps.results import SweepFolder, TrialInfo, read_info

SHOWN = ("fid", "cmmd", "dino_mmd", "adherence")


def measure(sweep: str, scales: list[float], store: Path) -> None:
    """Print every metric of every trial that has a checkpoint, at every scale.

    Raises:
        UserError: The sweep has no trial with a checkpoint.
    """
    hush()
    folder = SweepFolder(store.absolute(), sweep)
    trials = [trial for trial in read_info(folder).trials if checkpoints(folder.trial(trial.trial_id))]
    if not trials:
        raise UserError(f"{folder.root}: holds no trial with a checkpoint; run the sweep first")
    table = Table(title=f"{sweep}: the same weights at several guidance scales")
    for column in ("trial", "seed", "step", "guidance", *SHOWN):
        table.add_column(column, justify="left" if column == "trial" else "right")
    for trial in trials:
        for row in _rows(folder, trial, scales):
            table.add_row(*row)
        table.add_section()
    Console().print(table)


def _rows(folder: SweepFolder, trial: TrialInfo, scales: list[float]) -> list[list[str]]:
    home, rows = folder.trial(trial.trial_id), []
    config = parse_run_config(yaml.safe_load((home / "config.yaml").read_text(encoding="utf-8")))
    for scale in scales:
        found, step = _sampled(config, scale, home, folder.cache)
        figures = [f"{found[name]:.3g}" if name in found else "" for name in SHOWN]
        rows.append([trial.name, str(trial.seed), str(step), f"{scale:g}", *figures])
    return rows


def _sampled(config: RunConfig, scale: float, home: Path, cache: Path) -> tuple[dict[str, float], int]:
    sampling = config.sampling.model_copy(update={"guidance_scale": scale})
    changed = config.model_copy(update={"sampling": sampling})
    trainer = Trainer(changed, folder=home, cache=cache)
    try:
        step = trainer.resume()
        return evaluate(changed, cache)(trainer.sample()), step
    finally:
        trainer.close()
