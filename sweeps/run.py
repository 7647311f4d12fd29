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
    from sweeps.history.recall import Waypoint
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
    from sweeps.trial import Parts

    folder = SweepFolder(store.absolute(), plan.spec.name)
    preflight(plan, folder, address, max_concurrent)
    with (
        exclusive(folder),
        logging_to(folder.logs / "driver.log"),
        environment(),
        _terminated_as_interrupted(),
    ):
        where = history or store.absolute() / "history"
        run = _Run(plan, folder, where, parts or Parts(), console or Console(highlight=False))
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
    better, trial = METRICS[metric].better, spec.trial
    return SweepInfo(spec.name, metric, better, trial.steps, trial.eval_every, axes, trials, spec.article)


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


class _Outlook:
    """What early stopping has in store: before there is a scheduler, all that the sweep asks for."""

    def __init__(self, plan: Plan) -> None:
        self._rungs, self._factor = plan.spec.rungs(), plan.spec.scheduler.reduction_factor
        self.scheduler: RunAll | None = None

    def open_rungs(self) -> tuple[int, ...]:
        """Give the rungs that are not decided."""
        return self.scheduler.open_rungs() if self.scheduler else tuple(self._rungs)

    @property
    def factor(self) -> float:
        """About one trial in so many passes a rung."""
        return self.scheduler.factor if self.scheduler else self._factor


class _Run:
    """One run of one sweep, from folder to outcome."""

    def __init__(
        self, plan: Plan, folder: SweepFolder, history: str | Path, parts: Parts, console: Console
    ) -> None:
        self.plan, self.folder, self.parts, self.console = plan, folder, parts, console
        self.info = sweep_info(plan)
        self.history = history
        self.waypoints: dict[str, tuple[Waypoint, ...]] = {}
        self.outlook = _Outlook(plan)
        write_info(folder, self.info)
        self.ledger = Ledger(folder, self.info, keep_pruned=plan.spec.scheduler.use == "asha")

    def go(self, address: str | None, max_concurrent: int | None) -> Outcome:
        """Replay what is known, train the rest."""
        log = self.folder.logs
        self.console.print(f"logs: {log}", soft_wrap=True)
        interrupted = False
        with open_display(self.ledger, self.console, self.outlook, log) as display:
            try:
                self._work(display, address, max_concurrent)
            except KeyboardInterrupt:
                interrupted = True
        return self._outcome(interrupted)

    def _work(self, display: Display, address: str | None, max_concurrent: int | None) -> None:
        if self._pending():
            self._prepare(display)
            self._remember(display)
        queue, scheduler = self._schedule()
        self.outlook.scheduler = scheduler
        self.ledger.begin()
        for line in self.ledger.damage:
            display.say(line)
        if not queue.waiting:
            display.say("everything is trained already")
            return
        self.ledger.listeners.append(display)
        with self._attached(address, max(item.cpus for item in queue.waiting), max_concurrent) as attached:
            self._open(queue, attached, max_concurrent)
            display.say(f"{len(queue.waiting)} trials, {queue.max_concurrent} at a time")
            self._tune(queue, scheduler)

    def _pending(self) -> list[Trial]:
        return [t for t in self.plan.trials if self.ledger.trials[t.trial_id].state.state == "pending"]

    def _prepare(self, display: Display) -> None:
        from sweeps.trial import load

        configs = [trial.config for trial in self._pending()]
        try:
            load(self.parts.prepare)(configs, self.folder.cache, display.preparing)
        except UserError as error:
            raise locate(self.plan.settings, error) from error

    def _remember(self, display: Display) -> None:
        """Name the states of every trial that may train, and take over what the history knows of them."""
        from sweeps.history.remember import recall, waypoints
        from sweeps.trial import load

        lineage = load(self.parts.lineage)
        pending = self._pending()
        runs = {trial.trial_id: (trial.config, lineage(trial.config, self.folder.cache)) for trial in pending}
        self.waypoints = waypoints(runs)
        found = 0
        for trial_id, points in self.waypoints.items():
            known = self.ledger.trials[trial_id].journal.boundaries
            count = recall(str(self.history), points, self.folder.trial(trial_id), known)
            if count:
                self.ledger.reread(trial_id)
            found += count
        if found:
            display.say(f"{found} boundaries are known from earlier sweeps")

    def _schedule(self) -> tuple[TrialQueue, RunAll]:
        from sweeps.history.remember import Segments
        from sweeps.scheduler import make_scheduler
        from sweeps.submission import TrialQueue

        live = self._pending()
        queue = TrialQueue([self._submission(trial) for trial in live])
        segments = Segments(str(self.history), self.waypoints)
        scheduler = make_scheduler(self.plan, self.info, queue, self.ledger, segments)
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
            history=str(self.history),
            waypoints=self.waypoints.get(trial.trial_id, ()),
        )
        infrastructure = trial.config.infrastructure
        return Submission(trial.trial_id, asdict(settings), infrastructure.threads or 1, infrastructure.device)

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
