"""One run of one sweep on Ray, from its folder to its end: wave by wave, prepared, recalled, scheduled, kept."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from cluster.connect import Attached, ConnectError, attach
from cluster.resources import concurrency
from prx.errors import UserError
from prx.yamlsource import locate
from sweeps.budget import Meter
from sweeps.ledger import Ledger
from sweeps.live import Display, open_display
from sweeps.logs import ENVIRONMENT, environment, terminated_as_interrupted
from sweeps.measured_with import settings_of
from sweeps.metrics import METRICS
from sweeps.order import in_order
from sweeps.results import FINISHED, SweepFolder, SweepInfo, TrialInfo, write_config
from sweeps.stopping.pace import scheduled_until
from sweeps.stopping.spec import RAY_RULES
from sweeps.waves import Wave, make_waves

if TYPE_CHECKING:
    from prx.config import RunConfig
    from sweeps.plan import Plan, Trial
    from sweeps.trial import Parts

OBJECT_STORE_BYTES = 200 * 1024**2
"""Nothing large travels between trials: latents and references are files."""


def trial_info(trial: Trial, searched: Mapping[str, bool]) -> TrialInfo:
    """Reduce a trial to what tables need; `searched` maps paths to whether they hold numbers only."""
    cell, config = trial.cell, trial.config
    values = searched_values(config, searched) if searched else {}
    return TrialInfo(trial.trial_id, cell.cell_id, cell.name, cell.is_baseline, trial.seed, cell.levels, values,
                     config.batch_size, scheduled_until(config), settings_of(config))  # fmt: skip


def searched_values(config: RunConfig, searched: Mapping[str, bool]) -> dict[str, Any]:
    """Read what a search varies off any configuration; a path that it does not have is left out."""
    from sweeps.search.space import has, lookup

    content = config.model_dump(mode="json")
    found = {path: lookup(content, path) for path in searched if has(content, path)}
    return {path: value if value is None or searched[path] else str(value) for path, value in found.items()}


def sweep_info(plan: Plan) -> SweepInfo:
    """Reduce a plan to what tables need."""
    spec = plan.spec
    metric = spec.scheduler.metric if spec.scheduler.decides else next(iter(spec.objectives))
    searched = plan.search.paths() if plan.search else {}
    trials = tuple(trial_info(trial, searched) for trial in plan.trials)
    axes = tuple(spec.axes)
    better, trial = METRICS[metric].better, spec.trial
    length, both = (trial.steps, trial.eval_every), dict(spec.objectives)
    price = spec.budget.price_per_device_hour if spec.budget else None
    return SweepInfo(spec.name, metric, better, *length, axes, trials, spec.article, searched, both, price)


class Session:
    """A sweep's state while it runs."""

    def __init__(
        self, plan: Plan, folder: SweepFolder, history: str | Path, parts: Parts, console: Console
    ) -> None:
        from sweeps.early_stopping import make_scheduler
        from sweeps.history.forks import Forks
        from sweeps.history.remember import Segments
        from sweeps.history.store import HistoryStore
        from sweeps.submission import TrialQueue

        self.plan, self.folder, self.parts, self.console = plan, folder, parts, console
        self.history = str(history)
        self.ledger = Ledger(folder, sweep_info(plan), keep_pruned=plan.spec.scheduler.use in RAY_RULES)
        self.waves = make_waves(plan, self.ledger)
        self.meter, self.devices, self._cut = Meter(plan.spec.budget, folder.spent), dict[str, int](), False
        self.queue = TrialQueue(more=self._advance)
        self.segments = Segments(self.history)
        self.forks = Forks(HistoryStore(self.history))
        self._told: set[tuple[str, int]] = set()
        self.scheduler = make_scheduler(plan, self.ledger.info, self.queue, self.ledger, self.segments)
        self.display = Display()

    def go(self, address: str | None, max_concurrent: int | None) -> bool:
        """Replay what is known, train the rest; True when a person or the system interrupted it."""
        log = self.folder.logs
        self.console.print(f"logs: {log}", soft_wrap=True)
        with open_display(self.ledger, self.console, self.scheduler, log) as self.display:
            try:
                self._work(address, max_concurrent)
            except KeyboardInterrupt:
                return True
        return False

    def _work(self, address: str | None, max_concurrent: int | None) -> None:
        more = self._advance()
        self.ledger.begin()
        for line in self.ledger.damage:
            self.display.warn(line)
        if not more:
            cut = f"the budget is spent: {self.meter.words()}"
            self.display.say(cut if self._cut and self._unended() else "everything is trained already")
            return
        self.ledger.listeners.append(self.display)
        self.ledger.alarms.append(self.display.warn)
        with self._attached(address, max_concurrent) as attached:
            self._open(attached, max_concurrent)
            self.display.say(f"{len(self.queue.waiting)} trials, {self.queue.max_concurrent} at a time")
            self._tune()

    def _advance(self) -> bool:
        """Enter waves until one has something to train; False when the sweep is over, or a wave is cut short."""
        while not self._cut and (wave := self.waves.next(self.ledger.trials)) is not None:
            self._enter(wave)
            if self.queue.waiting:
                return True
        return False

    def _enter(self, wave: Wave) -> None:
        """Take a wave up: replay what is known of it, and queue the rest, as far as the budget goes."""
        infos = [trial_info(trial, self.ledger.info.searched) for trial in wave.trials]
        self.ledger.add(infos)
        self.devices |= {trial.trial_id: trial.config.infrastructure.workers for trial in wave.trials}
        self._cut = bool(self.meter.spent())
        self.scheduler.join(infos, judged=wave.judged)
        self._replay(infos)
        pending = self._pending(wave)
        if pending and not self._cut:  # nothing is loaded or encoded for trials that the journals alone decide
            self._set_out(pending)
            self._prepare(pending)
            self._remember(pending)
            going = {trial.trial_id for trial in pending}
            self._replay([info for info in infos if info.trial_id in going])
        if not self._cut:
            self.queue.add([self._submission(trial) for trial in self._in_order(self._admitted(wave))])

    def _in_order(self, trials: Sequence[Trial]) -> list[Trial]:
        by_id, ways = {trial.trial_id: trial for trial in trials}, dict[str, list[str]]()
        for trial_id in by_id:
            reached = max(self.ledger.trials[trial_id].journal.boundaries, default=0)
            ways[trial_id] = [p.state for p in self.segments.waypoints(trial_id) if p.step > reached]
        return [by_id[trial_id] for trial_id in in_order(ways)]

    def _admitted(self, wave: Wave) -> list[Trial]:
        """Choose the trials that the budget lets train; no rung waits for the others."""
        admitted = set(self.meter.admit(trial.trial_id for trial in self._pending(wave)))
        for trial in self._pending(wave):
            if trial.trial_id not in admitted:
                self._cut = True
                self.scheduler.settled(trial.trial_id)
        return [trial for trial in self._pending(wave) if trial.trial_id in admitted]

    def _replay(self, infos: Sequence[TrialInfo]) -> None:
        """Tell the scheduler what is known, each boundary once; of trials that go on only where it asks for that."""
        for info in infos:
            status = self.ledger.trials[info.trial_id]
            ended = status.state.state != "pending"
            for step, entry in sorted(status.journal.boundaries.items()):
                if (ended or self.scheduler.replays_all) and (info.trial_id, step) not in self._told:
                    self._told.add((info.trial_id, step))
                    known = entry["metrics"] | {"device_seconds": entry["device_seconds"]}
                    self.scheduler.replay(info.trial_id, step, known)
            if ended:
                self.scheduler.settled(info.trial_id)

    def end(self) -> None:
        """Let go of the states that only this sweep might have started from."""
        from sweeps.history.forks import own_name

        self.forks.withdraw(own_name(self.folder.root))

    def _unended(self) -> bool:
        return self.ledger.count(*FINISHED) < len(self.ledger.trials)

    def _pending(self, wave: Wave) -> list[Trial]:
        return [t for t in wave.trials if self.ledger.trials[t.trial_id].state.state == "pending"]

    def _set_out(self, pending: Sequence[Trial]) -> None:
        """Keep the settings of every trial that may train, or turns out to be known from another sweep.

        What it failed of in an earlier run goes: a worker that dies before it has begun leaves no word of its own.
        """
        for trial in pending:
            home = self.folder.trial(trial.trial_id)
            write_config(home, trial.config.model_dump(mode="json"))
            (home / "error.txt").unlink(missing_ok=True)

    def _prepare(self, pending: Sequence[Trial]) -> None:
        from sweeps.trial import load

        configs = [trial.config for trial in pending]
        try:
            load(self.parts.prepare)(configs, self.folder.cache, self.display.preparing)
        except UserError as error:
            raise locate(self.plan.settings, error) from error

    def _remember(self, pending: Sequence[Trial]) -> None:
        """Name the states of every trial that may train, and take over what the history knows of them."""
        from sweeps.history.forks import own_name
        from sweeps.history.remember import recall, record, waypoints
        from sweeps.trial import load

        lineage = load(self.parts.lineage)
        runs = {trial.trial_id: (trial.config, lineage(trial.config, self.folder.cache)) for trial in pending}
        search = self.plan.search
        forks = {trial.trial_id: search.forks(trial.config) for trial in pending} if search else {}
        points = waypoints(runs, forks)
        self.segments.add(points)
        record(self.folder.waypoints, self.history, points)
        self.forks.publish(own_name(self.folder.root), self.segments.paths())
        found = 0
        for trial_id, ahead in points.items():
            known = self.ledger.trials[trial_id].journal.boundaries
            count = recall(self.history, ahead, self.folder.trial(trial_id), known, self.ledger.warn)
            if count:
                self.ledger.reread(trial_id)
            found += count
        if found:
            self.display.say(f"{found} boundaries are known from earlier sweeps")

    def _submission(self, trial: Trial) -> Any:
        from sweeps.submission import Submission
        from sweeps.trial import Settings

        home = self.folder.trial(trial.trial_id)
        config = trial.config.model_dump(mode="json")
        settings = Settings(
            trial_id=trial.trial_id,
            config=config,
            root=str(self.folder.root),
            folder=str(home),
            cache=str(self.folder.cache),
            metric=self.ledger.info.metric,
            trainer=self.parts.trainer,
            evaluate=self.parts.evaluate,
            history=self.history,
            waypoints=self.segments.waypoints(trial.trial_id),
        )
        infra = trial.config.infrastructure
        return Submission(trial.trial_id, asdict(settings), infra.threads or 1, infra.device, infra.workers)

    def _attached(self, address: str | None, max_concurrent: int | None) -> Attached:
        shapes = [item.shape(gpus=False) for item in self.queue.waiting]
        wanted = max(shape.total["CPU"] for shape in shapes) * (max_concurrent or 1)
        cores = max(len(os.sched_getaffinity(0)), math.ceil(wanted))
        try:
            return attach(
                address,
                num_cpus=cores,
                log_dir=self.folder.logs / "ray",
                environment=ENVIRONMENT,
                object_store_bytes=OBJECT_STORE_BYTES,
                dashboard=any(shape.workers > 1 for shape in shapes),
            )
        except ConnectError as error:
            raise UserError(str(error)) from error

    def _open(self, attached: Attached, max_concurrent: int | None) -> None:
        available, ceiling = attached.resources(), attached.ceiling()
        gpus = max(available.get("GPU", 0), (ceiling or {}).get("GPU", 0)) > 0
        shapes = {item.shape(gpus) for item in self.queue.waiting}
        try:
            room = max(concurrency(shape, available, ceiling, attached.nodes()) for shape in shapes)
        except ValueError as error:
            raise UserError(str(error)) from error
        self.queue.open(min(room, max_concurrent or room), gpus)

    def _tune(self) -> None:
        from ray import tune

        from sweeps.callbacks import Events, OnBudget
        from sweeps.trial import TrialActor

        scratch = self.folder.root / "tune"
        shutil.rmtree(scratch, ignore_errors=True)
        _keep_credentials_out_of_logs()
        pending = str(self.queue.max_concurrent)
        with environment(TUNE_MAX_PENDING_TRIALS_PG=pending), terminated_as_interrupted(), self.meter.running():
            tune.run(
                TrialActor,
                name=self.ledger.info.name,
                storage_path=str(scratch),
                search_alg=self.queue,
                scheduler=self.scheduler,
                callbacks=[Events(self.ledger, self.meter, self.devices)],
                stop=OnBudget(self.meter),
                reuse_actors=True,
                raise_on_failed_trial=False,
                verbose=0,
            )


def _keep_credentials_out_of_logs() -> None:
    """Keep Tune from handing AWS credentials on in a runtime environment, which Ray writes to its logs in clear.

    Workers of our own Ray inherit them, and a cluster's nodes have their own.
    """
    from ray.tune.execution import class_cache

    handed_on = class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.ENV_VARS_TO_PROPAGATE = {name for name in handed_on if not name.startswith("AWS_")}
