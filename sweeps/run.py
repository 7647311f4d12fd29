"""Run a plan on Ray: prepare what trials share, schedule, keep the results. Running again resumes."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console

from cluster.connect import Attached, ConnectError, attach, check
from cluster.resources import concurrency
from prx.errors import UserError
from prx.yamlsource import locate
from sweeps.ledger import Ledger
from sweeps.live import Display, open_display
from sweeps.logs import ENVIRONMENT, environment, logging_to
from sweeps.metrics import METRICS
from sweeps.results import SweepFolder, SweepInfo, TrialInfo, write_info
from sweeps.status import exclusive

if TYPE_CHECKING:
    from sweeps.plan import Plan, Trial
    from sweeps.scheduler import RunAll
    from sweeps.submission import TrialQueue
    from sweeps.trial import Parts

PACKAGES = ("deepspeed", "diffusers", "torch", "transformers")
DONE, SOME_FAILED, INTERRUPTED = 0, 1, 130
OBJECT_STORE_BYTES = 200 * 1024**2
"""Nothing large travels between trials: latents and references are files."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `unfinished` trials go on when the same command is given again."""

    exit_code: int
    folder: SweepFolder
    info: SweepInfo
    failed: tuple[str, ...] = ()
    unfinished: int = 0

    @property
    def results_path(self) -> Path:
        """The table of results."""
        return self.folder.results


def run_sweep(
    plan: Plan,
    *,
    store: Path,
    address: str | None = None,
    max_concurrent: int | None = None,
    parts: Parts | None = None,
    console: Console | None = None,
) -> Outcome:
    """Train what a plan asks for and the store does not have yet.

    Args:
        store: Folder of all sweeps; on several nodes one that all of them see.
        address: Ray cluster to use; without one, a Ray instance of our own on this machine.
        max_concurrent: Trials at once at the most; as many as fit unless told.
        parts: What trials are made of; see `sweeps.trial.Parts`.

    Raises:
        UserError: Plan, store, data or cluster cannot be used; nothing was trained.
    """
    from sweeps.trial import Parts

    folder = SweepFolder(store.absolute(), plan.spec.name)
    preflight(plan, folder, address, max_concurrent)
    with (
        exclusive(folder),
        logging_to(folder.logs / "driver.log"),
        environment(),
        _terminated_as_interrupted(),
    ):
        run = _Run(plan, folder, parts or Parts(), console or Console(highlight=False))
        return run.go(address, max_concurrent)


def preflight(plan: Plan, folder: SweepFolder, address: str | None, max_concurrent: int | None) -> None:
    """Refuse what cannot run, before anything is written but the sweep's own folder.

    Raises:
        UserError: As it says.
    """
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"the Python package {name} is missing; install prx-sweeps with its dependencies")
    if any(trial.config.infrastructure.workers > 1 for trial in plan.trials):
        problem = plan.source.problem(("trial", "workers"), "more than one worker is not available in this version")
        raise UserError(str(problem))
    if max_concurrent is not None and max_concurrent < 1:
        raise UserError(f"--max-concurrent must be at least 1, got {max_concurrent}")
    try:
        check(address)
    except ConnectError as error:
        raise UserError(str(error)) from error
    probe = folder.root / f".probe-{os.getpid()}"
    try:
        folder.logs.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(f"--store: {folder.root} must be a folder that can be written ({error.strerror})") from error


def sweep_info(plan: Plan) -> SweepInfo:
    """Reduce a plan to what tables need."""
    spec = plan.spec
    metric = spec.scheduler.metric if spec.scheduler.use != "none" else next(iter(spec.objectives))
    trials = tuple(
        TrialInfo(t.trial_id, t.cell.cell_id, t.cell.name, t.cell.is_baseline, t.seed, t.cell.levels)
        for t in plan.trials
    )
    axes = tuple(spec.axes)
    return SweepInfo(spec.name, metric, METRICS[metric].better, spec.trial.steps, spec.trial.eval_every, axes, trials)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Treat a polite kill (a preempted machine, a batch system) as Ctrl+C: save and end.

    To be entered after Ray started, because Ray sets a handler of its own that ends the process at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Run:
    """One run of one sweep, from folder to outcome."""

    def __init__(self, plan: Plan, folder: SweepFolder, parts: Parts, console: Console) -> None:
        self.plan, self.folder, self.parts, self.console = plan, folder, parts, console
        self.info = sweep_info(plan)
        write_info(folder, self.info)
        self.ledger = Ledger(folder, self.info, keep_pruned=plan.spec.scheduler.use == "asha")

    def go(self, address: str | None, max_concurrent: int | None) -> Outcome:
        """Replay what is known, train the rest."""
        queue, scheduler = self._schedule()
        self.ledger.begin()
        log = self.folder.logs
        self.console.print(f"logs: {log}", soft_wrap=True)
        interrupted = False
        with open_display(self.ledger, self.console, scheduler, log) as display:
            for line in self.ledger.damage:
                display.say(line)
            if not queue.waiting:
                display.say("everything is trained already")
            else:
                self.ledger.listeners.append(display)
                try:
                    self._train(queue, scheduler, display, address, max_concurrent)
                except KeyboardInterrupt:
                    interrupted = True
        return self._outcome(interrupted)

    def _schedule(self) -> tuple[TrialQueue, RunAll]:
        from sweeps.scheduler import make_scheduler
        from sweeps.submission import TrialQueue

        live = [t for t in self.plan.trials if self.ledger.trials[t.trial_id].state.state == "pending"]
        queue = TrialQueue([self._submission(trial) for trial in live])
        scheduler = make_scheduler(self.plan, self.info, queue, self.ledger)
        given = {trial.trial_id for trial in live}
        for trial_id, status in self.ledger.trials.items():
            for step, entry in sorted(status.journal.boundaries.items()):
                if scheduler.replays_all or trial_id not in given:
                    scheduler.replay(trial_id, step, entry["metrics"])
            if trial_id not in given:
                scheduler.settled(trial_id)
        return queue, scheduler

    def _submission(self, trial: Trial) -> Any:
        from sweeps.submission import Submission
        from sweeps.trial import Settings

        home = self.folder.trial(trial.trial_id)
        config = trial.config.model_dump(mode="json")
        home.mkdir(parents=True, exist_ok=True)
        (home / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        settings = Settings(
            trial_id=trial.trial_id,
            config=config,
            root=str(self.folder.root),
            folder=str(home),
            cache=str(self.folder.cache),
            metric=self.info.metric,
            trainer=self.parts.trainer,
            evaluate=self.parts.evaluate,
        )
        infrastructure = trial.config.infrastructure
        return Submission(trial.trial_id, asdict(settings), infrastructure.threads or 1, infrastructure.device)

    def _train(
        self,
        queue: TrialQueue,
        scheduler: RunAll,
        display: Display,
        address: str | None,
        max_concurrent: int | None,
    ) -> None:
        from sweeps.trial import load

        waiting = {item.trial_id for item in queue.waiting}
        configs = [trial.config for trial in self.plan.trials if trial.trial_id in waiting]
        try:
            load(self.parts.prepare)(configs, self.folder.cache, display.preparing)
        except UserError as error:
            raise locate(self.plan.settings, error) from error
        with self._attached(address, max(item.cpus for item in queue.waiting), max_concurrent) as attached:
            self._open(queue, attached, max_concurrent)
            display.say(f"{len(waiting)} trials, {queue.max_concurrent} at a time")
            self._tune(queue, scheduler)

    def _attached(self, address: str | None, cpus: int, max_concurrent: int | None) -> Attached:
        cores = max(len(os.sched_getaffinity(0)), cpus * (max_concurrent or 1))
        try:
            return attach(
                address,
                num_cpus=cores,
                log_dir=self.folder.logs / "ray",
                environment=ENVIRONMENT,
                object_store_bytes=OBJECT_STORE_BYTES,
            )
        except ConnectError as error:
            raise UserError(str(error)) from error

    def _open(self, queue: TrialQueue, attached: Attached, max_concurrent: int | None) -> None:
        available, ceiling = attached.resources(), attached.ceiling()
        gpus = max(available.get("GPU", 0), (ceiling or {}).get("GPU", 0)) > 0
        shapes = {item.shape(gpus) for item in queue.waiting}
        try:
            room = max(concurrency(shape, available, ceiling, attached.nodes()) for shape in shapes)
        except ValueError as error:
            raise UserError(str(error)) from error
        queue.open(min(room, max_concurrent or room), gpus)

    def _tune(self, queue: TrialQueue, scheduler: RunAll) -> None:
        from ray import tune

        from sweeps.callbacks import Events
        from sweeps.trial import TrialActor

        scratch = self.folder.root / "tune"
        shutil.rmtree(scratch, ignore_errors=True)
        budget = self.plan.spec.budget
        with environment(TUNE_MAX_PENDING_TRIALS_PG=str(queue.max_concurrent)), _terminated_as_interrupted():
            tune.run(
                TrialActor,
                name=self.info.name,
                storage_path=str(scratch),
                search_alg=queue,
                scheduler=scheduler,
                callbacks=[Events(self.ledger)],
                reuse_actors=True,
                time_budget_s=budget.hours * 3600 if budget else None,
                raise_on_failed_trial=False,
                verbose=0,
            )

    def _outcome(self, interrupted: bool) -> Outcome:
        unfinished = len(self.ledger.interrupted())
        budget = self.plan.spec.budget
        spent = budget is not None and self.ledger.seconds() >= budget.hours * 3600
        failed = tuple(i for i, status in self.ledger.trials.items() if status.state.state == "failed")
        ended = SOME_FAILED if failed else DONE
        code = INTERRUPTED if interrupted or (unfinished and not spent) else ended
        return Outcome(code, self.folder, self.info, failed, unfinished)
