"""MLflow: a run a trial, found again by its tags `sweep` and `trial_id`."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag

from sweeps.tracking.view import Tracked

MOST_PARAMS = 100
"""MLflow takes no more parameters at once."""
LONGEST = 500
"""Some of its stores take no longer values."""
STATUS = {"complete": "FINISHED", "pruned": "FINISHED", "failed": "FAILED", "running": "RUNNING"}


class Mlflow:
    """Runs of one experiment, on a server or in a SQLite file."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._uri = settings["uri"] or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder}/mlflow.db"
        self._artifacts = None if settings["uri"] or os.environ.get("MLFLOW_TRACKING_URI") else folder / "artifacts"
        self._name = settings["project"]
        self._client = MlflowClient(self._uri)
        self._experiment = ""

    @property
    def where(self) -> str:
        """The command that shows a file, or the server."""
        return f"mlflow ui --backend-store-uri {self._uri}" if self._uri.startswith("sqlite:") else self._uri

    def open(self, trial: Tracked) -> MlflowRun:
        """Begin a run, or go on with it."""
        self._experiment = self._experiment or self._find_experiment()
        mine = f"tags.trial_id = '{trial.info.trial_id}' and tags.sweep = '{trial.sweep.name}'"
        found = self._client.search_runs([self._experiment], mine)
        run = found[0] if found else self._begin(trial)
        return MlflowRun(self._client, run, trial)

    def _find_experiment(self) -> str:
        found = self._client.get_experiment_by_name(self._name)
        if found is not None:
            return str(found.experiment_id)
        location = self._artifacts.as_uri() if self._artifacts else None
        return str(self._client.create_experiment(self._name, artifact_location=location))

    def _begin(self, trial: Tracked) -> Run:
        tags = {key: str(value) for key, value in flat(trial.about())}
        return self._client.create_run(self._experiment, tags=tags, run_name=trial.label)


class MlflowRun:
    """One trial's run. `has` is what the tracker itself says, so nothing is logged twice.

    A parameter stays as it was first logged, which is all that MLflow allows: a trial may go on with other workers.
    """

    def __init__(self, client: MlflowClient, run: Run, trial: Tracked) -> None:
        self._client, self._run_id = client, str(run.info.run_id)
        history = client.get_metric_history(self._run_id, trial.sweep.metric)
        self.has = max((int(metric.step) for metric in history), default=0)
        new = [(key, value) for key, value in flat(trial.config) if key not in run.data.params]
        params = [Param(key, str(value)[:LONGEST]) for key, value in new]
        for start in range(0, len(params), MOST_PARAMS):
            client.log_batch(self._run_id, params=params[start : start + MOST_PARAMS])
        client.update_run(self._run_id, status="RUNNING")

    def log(self, trial: Tracked, step: int) -> None:
        """Add the sample grid, then the metrics, all at once: they say that the boundary is whole."""
        grid, now = trial.grid(step), int(time.time() * 1000)
        if grid is not None:
            self._client.log_artifact(self._run_id, str(grid), "samples")
        metrics = [Metric(re.sub(r"[^\w.\-/ ]", "_", k), v, now, step) for k, v in trial.metrics(step).items()]
        self._client.log_batch(self._run_id, metrics=metrics)
        self.has = step

    def close(self, trial: Tracked) -> None:
        """Record how the trial stands."""
        tags = [RunTag(key, str(value)) for key, value in trial.outcome().items()]
        self._client.log_batch(self._run_id, tags=tags)
        self._client.set_terminated(self._run_id, STATUS.get(trial.state.state, "KILLED"))


def flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Give nested settings as dotted names and values."""
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
