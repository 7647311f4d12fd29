"""Weights & Biases: a run a trial, grouped by sweep, online or as folders for `wandb sync`."""

from __future__ import annotations

import logging
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import wandb

from sweeps.tracking.view import Tracked

_log = logging.getLogger(__name__)
ANSWER_S = 10.0
"""A service that has not answered by then is away."""


class Wandb:
    """Runs of one project.

    Online, a run goes on after the last step that the service has. Offline nobody can be asked, a run is one folder,
    and folders with the same id would overwrite each other when they are sent: a run that is opened again is written
    anew, whole. While the service is away, runs are begun offline; one that goes on online is whole there.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self._folder, self._project, self._entity = folder, settings["project"], settings["entity"]
        self._mode, self._unfinished = settings["mode"], dict[str, WandbRun]()
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def where(self) -> str:
        """The project, or the command that sends the folders."""
        if self._mode == "online" and not list(self._folder.glob("offline-run-*")):
            return f"project {self._project}"
        return f"wandb sync {self._folder}/offline-run-*"

    def open(self, trial: Tracked) -> WandbRun:
        """Begin a run, or go on with it."""
        broken = self._unfinished.pop(trial.info.trial_id, None)
        if broken is not None:  # W&B opens no run twice in one process
            broken.close(trial)
        run = self._unfinished[trial.info.trial_id] = self._open(trial)
        return run

    def _open(self, trial: Tracked) -> WandbRun:
        # Asked first, because a run that W&B failed to begin online cannot be begun offline in the same process.
        if self._mode == "online" and answers(service_url()):
            return self._begin(trial, "online")
        if self._mode == "online":
            _log.warning("%s: kept offline, because %s does not answer", trial.label, service_url())
        self._forget(trial)
        return self._begin(trial, "offline")

    def _forget(self, trial: Tracked) -> None:
        for old in self._folder.glob(f"offline-run-*-{trial.run_id}"):
            shutil.rmtree(old)

    def _closed(self, trial: Tracked, mode: str) -> None:
        self._unfinished.pop(trial.info.trial_id, None)
        if mode == "online":  # sent later, what was begun offline would replace it
            self._forget(trial)

    def _begin(self, trial: Tracked, mode: Literal["online", "offline"]) -> WandbRun:
        settings = wandb.Settings(
            console="off",
            silent=True,
            disable_code=True,
            x_disable_machine_info=True,
            x_disable_stats=True,
        )
        run = wandb.init(
            project=self._project,
            entity=self._entity,
            id=trial.run_id,
            name=trial.label,
            group=trial.sweep.name,
            tags=sorted({level[:64] for level in trial.info.levels.values()}),
            config={**trial.about(), **trial.config},
            dir=str(self._folder.parent),  # W&B adds a folder `wandb`, which is ours
            mode=mode,
            resume="allow",
            reinit="create_new",
            settings=settings,
        )
        return WandbRun(run, lambda: self._closed(trial, mode))


class WandbRun:
    """One trial's run."""

    def __init__(self, run: Any, closed: Callable[[], object]) -> None:
        self._run, self._closed = run, closed
        self.has = int(run.starting_step) - 1

    def log(self, trial: Tracked, step: int) -> None:
        """Add metrics, and the sample grid as an image."""
        row: dict[str, Any] = dict(trial.metrics(step))
        grid = trial.grid(step)
        if grid is not None:
            row["samples"] = wandb.Image(str(grid), caption=f"{trial.label}, step {step}")
        self._run.log(row, step=step)
        self.has = step

    def close(self, trial: Tracked) -> None:
        """Record how the trial stands, and wait until W&B's own process has everything."""
        self._run.summary.update(trial.outcome())
        self._run.finish(exit_code=1 if trial.state.state == "failed" else 0)
        self._closed()


def service_url() -> str:
    """Give the address of W&B's service, as the environment and W&B's own settings say."""
    return str(wandb.setup().settings.base_url)


def answers(url: str) -> bool:
    """Say whether anything answers at an address; an answer of refusal is one."""
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_S):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
