"""TensorBoard, and the choice of trackers by name."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import yaml

from sweeps.tracking.follower import Tracker
from sweeps.tracking.view import Tracked

LONGEST_NAME = 200
"""Of a cell, in the name of a folder: file systems take 255 bytes, and a search names a point by all its settings."""


class TensorBoard:
    """Event files, a folder a trial.

    They can only be appended to, and what a killed process had written of them is unknown: a run that is opened again
    is written anew, whole.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self._folder = folder

    @property
    def where(self) -> str:
        """The command that shows them."""
        return f"tensorboard --logdir {self._folder}"

    def open(self, trial: Tracked) -> TensorBoardRun:
        """Begin a trial's folder."""
        cell = re.sub(r"[^\w.+-]+", "-", trial.info.name)[:LONGEST_NAME]
        target = self._folder / f"{cell}-seed-{trial.info.seed}-{trial.info.trial_id[:6]}"
        shutil.rmtree(target, ignore_errors=True)
        return TensorBoardRun(target, trial)


class TensorBoardRun:
    """One trial's event file."""

    def __init__(self, target: Path, trial: Tracked) -> None:
        from tensorboardX import SummaryWriter

        self.has = 0
        self._writer = SummaryWriter(str(target))
        text = yaml.safe_dump({**trial.about(), "config": trial.config}, sort_keys=False, allow_unicode=True)
        self._writer.add_text("config", "".join(f"    {line}\n" for line in text.splitlines()))

    def log(self, trial: Tracked, step: int) -> None:
        """Add scalars, and the sample grid as an image."""
        for name, value in trial.metrics(step).items():
            self._writer.add_scalar(name, value, step)
        grid = trial.grid(step)
        if grid is not None:
            import numpy as np
            from PIL import Image

            with Image.open(grid) as image:
                self._writer.add_image("samples", np.asarray(image.convert("RGB")), step, dataformats="HWC")
        self._writer.flush()
        self.has = step

    def close(self, trial: Tracked) -> None:
        """Add how it ended, and finish the file."""
        self._writer.add_text("outcome", ", ".join(f"{key}: {value}" for key, value in trial.outcome().items()))
        self._writer.close()


def make_tracker(settings: dict[str, Any], folder: Path) -> Tracker:
    """Make a tracker from its plain settings; `folder` is for what it keeps on this machine."""
    if settings["use"] == "wandb":
        from sweeps.tracking.wandb_tracker import Wandb

        return Wandb(folder, settings)
    if settings["use"] == "mlflow":
        from sweeps.tracking.mlflow_tracker import Mlflow

        return Mlflow(folder, settings)
    return TensorBoard(folder, settings)
