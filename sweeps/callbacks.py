"""From Ray Tune's events to the ledger."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ray.tune import Callback, Stopper
from ray.tune.experiment import Trial as TuneTrial

from sweeps.budget import Meter
from sweeps.ledger import Ledger
from sweeps.submission import Attempt, ours

_log = logging.getLogger(__name__)


class Events(Callback):
    """Tell the ledger what Tune sees. Verdicts come from the scheduler, which knows the reason."""

    def __init__(self, ledger: Ledger, meter: Meter, devices: Mapping[str, int]) -> None:
        self.ledger, self.meter, self.devices = ledger, meter, devices

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        """Tune looked for news; it does several times a second."""
        self.ledger.tick()

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """A trial got a worker."""
        if isinstance(trial, Attempt):
            trial.began = True
        self.ledger.started_trial(ours(trial))

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial reported."""
        self.meter.add(ours(trial), float(result.get("spent_seconds", 0.0)), self.devices[ours(trial)])
        self.ledger.report(ours(trial), result)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """A trial failed, or its worker died; then nobody but us can say so."""
        if isinstance(trial, Attempt) and trial.repeated:
            _log.warning("%s: %s", ours(trial), _death(trial))
            self.ledger.restarts(ours(trial), "its worker process died")
            return
        home = self.ledger.folder.trial(ours(trial))
        path = home / "error.txt"
        if not path.is_file():
            home.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{_death(trial)}\n", encoding="utf-8")
        lines = path.read_text(encoding="utf-8").strip().splitlines()
        self.ledger.failed(ours(trial), lines[-1])


class OnBudget(Stopper):
    """End the whole run when the budget is spent: workers keep what they trained, nothing else starts.

    No scheduler is told: trials that end for lack of money have lost to nobody.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Stop no single trial."""
        return False

    def stop_all(self) -> bool:
        """Say whether the budget is spent."""
        return bool(self._meter.spent())


def _death(trial: TuneTrial) -> str:
    text = trial.last_words if isinstance(trial, Attempt) else ""
    return f"the worker process died: {text or 'no word from it'}"
