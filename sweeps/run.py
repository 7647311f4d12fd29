"""Run a plan on Ray: prepare what trials share, schedule, keep the results. Running again resumes."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from cluster.connect import ConnectError, check
from prx.errors import UserError
from sweeps.budget import Left, left
from sweeps.history.address import credentials, without_credentials
from sweeps.logs import environment, logging_to, terminated_as_interrupted
from sweeps.results import SweepFolder, SweepInfo
from sweeps.status import exclusive
from sweeps.steps import NO_STEPS, Steps
from sweeps.tracking.spec import check_trackers

if TYPE_CHECKING:
    from sweeps.plan import Plan
    from sweeps.session import Session
    from sweeps.trial import Parts

PACKAGES = ("deepspeed", "diffusers", "torch", "transformers")
DONE, SOME_FAILED, INTERRUPTED = 0, 1, 130


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `unfinished` trials go on when the same command is given again; `steps` counts all runs.

    `spent` says which limits of the budget were reached, and `left` what they leave undone.
    """

    exit_code: int
    folder: SweepFolder
    info: SweepInfo
    failed: tuple[str, ...] = ()
    unfinished: int = 0
    spent: str = ""
    left: Left | None = None
    steps: Steps = NO_STEPS

    @property
    def results_path(self) -> Path:
        """The table of results."""
        return self.folder.results


def run_sweep(
    plan: Plan,
    *,
    store: Path,
    history: str | Path | None = None,
    address: str | None = None,
    max_concurrent: int | None = None,
    parts: Parts | None = None,
    console: Console | None = None,
) -> Outcome:
    """Train what a plan asks for and the store does not have yet.

    Args:
        store: Folder of all sweeps; on several nodes one that all of them see.
        history: Folder or URI of everything ever trained, shared by sweeps; in the store unless told.
        address: Ray cluster to use; without one, a Ray instance of our own on this machine.
        max_concurrent: Trials at once at the most; as many as fit unless told.
        parts: What trials are made of; see `sweeps.trial.Parts`.

    Raises:
        UserError: Plan, store, data or cluster cannot be used; nothing was trained.
    """
    from sweeps.report import about
    from sweeps.report.writer import ReportWriter
    from sweeps.session import Session
    from sweeps.tracking.process import Tracking
    from sweeps.trial import Parts

    folder = SweepFolder(store.absolute(), plan.spec.name)
    where = history or folder.history
    preflight(plan, folder, address, max_concurrent, where)
    with (
        exclusive(folder),
        logging_to(folder.logs / "driver.log"),
        environment(**credentials(where)),
        terminated_as_interrupted(),
    ):
        told = without_credentials(where)
        session = Session(plan, folder, told, parts or Parts(), console or Console(highlight=False))
        about.record(plan, folder)
        with (
            Tracking(folder, plan.spec.tracking, lambda text: session.console.print(text, soft_wrap=True)),
            ReportWriter(folder, lambda text: session.display.say(text)) as writer,
        ):
            session.ledger.listeners.append(writer)
            interrupted = session.go(address, max_concurrent)
            outcome = _outcome(session, interrupted)
        if outcome.exit_code == DONE and not outcome.unfinished:
            session.end()
        return outcome


def preflight(
    plan: Plan,
    folder: SweepFolder,
    address: str | None,
    max_concurrent: int | None,
    history: str | Path | None = None,
) -> None:
    """Refuse what cannot run, before anything is written but the sweep's own folder.

    Raises:
        UserError: As it says.
    """
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"the Python package {name} is missing; install prx-sweeps with its dependencies")
    if max_concurrent is not None and max_concurrent < 1:
        raise UserError(f"--max-concurrent must be at least 1, got {max_concurrent}")
    try:
        check(address)
    except ConnectError as error:
        raise UserError(str(error)) from error
    _check_history(history, folder, address)
    check_trackers(plan.spec.tracking)
    if plan.search is not None:
        from sweeps.search.records import preflight_search  # imports optuna

        preflight_search(plan, plan.search, folder.root)
    probe = folder.root / f".probe-{os.getpid()}"
    try:
        folder.logs.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(f"--store: {folder.root} must be a folder that can be written ({error.strerror})") from error


def _check_history(history: str | Path | None, folder: SweepFolder, address: str | None) -> None:
    from sweeps.history import store

    store.check_folder(folder.root, "--store")
    history = history or folder.history
    elsewhere = address or os.environ.get("RAY_ADDRESS") or "local"
    if credentials(history) and elsewhere != "local":
        raise UserError(
            "--history: credentials in the URI do not reach the workers of a running cluster, and are written to no "
            "file for them; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY on its nodes and leave them out of the URI"
        )
    store.check(history)


def _outcome(session: Session, interrupted: bool) -> Outcome:
    ledger, spent = session.ledger, session.meter.words()
    unfinished = len(ledger.interrupted())
    undone = left(ledger.trials, ledger.info.steps) if unfinished else None
    failed = tuple(i for i, status in ledger.trials.items() if status.state.state == "failed")
    ended = SOME_FAILED if failed else DONE
    code = INTERRUPTED if interrupted or (unfinished and not spent) else ended
    return Outcome(code, session.folder, ledger.info, failed, unfinished, spent, undone, ledger.steps())
