"""One trial: train to the next boundary, measure, keep; first plain, then as the actor that Tune drives.

At a boundary the order is: sample, measure, sample grid, checkpoint, history, journal. The journal's line comes
last, so what it lists is whole, and a crash costs at most the segment in progress.
"""

from __future__ import annotations

import math
import os
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from ray.tune import Trainable

from cluster.resources import TrialShape
from evaluation.throughput import Throughput
from prx.config import parse_run_config
from prx.errors import NonFiniteError, UserError
from sweeps.bench import Bench, Models, Parts, Settings, load
from sweeps.desk import WorkersLost
from sweeps.group import Group, GroupBench
from sweeps.history.recall import Recall, Waypoint
from sweeps.metrics import METRICS
from sweeps.results import ENTRY, append_journal, read_journal, write_steps_trained

__all__ = ["Parts", "Settings", "TrialActor", "TrialRun", "load", "settle_process"]
ATTEMPTS = 3
"""How often a segment is begun when workers die in it, before the trial is given up."""


class TrialRun:
    """A trial, decided in this process. Models are loaded only when there is something to train.

    Args:
        settings: The trial.
        models: Loads them, in this process unless told.
    """

    def __init__(self, settings: Settings, models: Callable[[Settings], Models] = Bench) -> None:
        self.settings, self.folder, self._models = settings, Path(settings.folder), models
        self.config = parse_run_config(settings.config)
        self.journal = read_journal(self.folder)
        self._replay = deque(sorted(self.journal.boundaries))
        self.recall = Recall(settings.history, settings.waypoints, self.folder, settings.lease_seconds)
        self._throughput = Throughput(self.config.batch_size)
        self._wall, self._saved = self.journal.wall_seconds, 0
        self._bench: Models | None = None
        self._losses = (Fraction(0), 0)

    @property
    def reached(self) -> int:
        """The last boundary that is whole."""
        return max(self.journal.boundaries, default=0)

    @property
    def reported(self) -> int:
        """The last boundary that was reported, replayed or not."""
        return max((step for step in self.journal.boundaries if step not in self._replay), default=0)

    def skip(self, step: int) -> None:
        """Leave out the replay of what was already reported, up to a step."""
        while self._replay and self._replay[0] <= step:
            self._replay.popleft()

    def next(self) -> dict[str, Any]:
        """Replay a known boundary, or train for about `chunk_seconds`; gives what to report.

        Raises:
            NonFiniteError: Loss, gradient or the metric that decides is not finite.
        """
        if self._replay:
            return self._report(self.journal.boundaries[self._replay.popleft()], replayed=True)
        known = self._recalled()
        if known is not None:
            return self._report(known, replayed=True)
        if not self._again and not self.recall.claim(following := self._boundary(self.reached)):
            return self._waits(following)
        started = time.perf_counter()
        return self._train() | {"spent_seconds": time.perf_counter() - started}

    @property
    def _again(self) -> bool:
        """Say whether a segment that was reached before is being trained again, for all who start from its end."""
        return self._bench is not None and self.recall.holds(self._boundary(self._bench.step))

    def _waits(self, step: int) -> dict[str, Any]:
        return {"step": self.reached, "done": False, "waits": step}

    def _recalled(self) -> dict[str, Any] | None:
        """Take over the next boundary where anybody has trained and measured the same."""
        if self.reached == self.config.steps or (self._bench and self._bench.step > self.reached):
            return None
        entry = self.recall.measured(self._boundary(self.reached))
        if entry is not None:
            self.recall.release()
            entry["steps_trained"] = self.journal.steps_trained
            append_journal(self.folder, entry)
            self.journal.boundaries[int(entry["step"])] = entry
            self._wall = float(entry["wall_seconds"])
        return entry

    def _train(self) -> dict[str, Any]:
        started = time.perf_counter()
        bench = self._bench or self._start()
        if bench.step <= self.reached:
            self._losses = (Fraction(0), 0)  # a segment begins, or its end is fetched
            self._catch_up(bench)
        boundary = self._boundary(bench.step)
        if not self.recall.claim(boundary):  # an earlier one than was asked for, whose state was dropped, or lost
            return self._waits(boundary)
        if bench.step < boundary:
            progress = bench.advance(boundary, seconds=self.settings.chunk_seconds)
            self._count(len(progress.step_seconds))
            total, count = self._losses
            self._losses = (total + sum(map(Fraction, progress.losses)), count + len(progress.losses))
            for seconds in progress.step_seconds:
                self._throughput.add(seconds)
        if bench.step < boundary:
            self._wall += time.perf_counter() - started
            return {"step": bench.step, "done": False, "steps_trained": self.journal.steps_trained, **self._rates()}
        if boundary in self.journal.boundaries:  # trained again, for all who start from it
            self._save(bench)
            self.recall.keep(boundary)
            self.recall.release()
            done = boundary == self.config.steps
            return self._report(self.journal.boundaries[boundary], replayed=True) if done else {"step": boundary}
        return self._report(self._measure(bench, boundary, started), replayed=False)

    def close(self) -> None:
        """Keep what was trained since the last boundary, and release the models."""
        self.recall.release()
        bench, self._bench = self._bench, None
        if bench is None:
            return
        if bench.step > self._saved:
            self._note_losses(bench.step)
            bench.save()
        bench.close()

    def abandon(self) -> None:
        """Release the models after an error, keeping nothing of the segment."""
        self.recall.release()
        bench, self._bench = self._bench, None
        if bench is not None:
            bench.close()

    def _start(self) -> Models:
        self._bench = self._models(self.settings)
        self._saved = self._bench.step
        self._losses = self.journal.losses.get(self._bench.step, (Fraction(0), 0))
        return self._bench

    def _catch_up(self, bench: Models) -> None:
        """Go on from the deepest state that anybody has trained on this trial's way."""
        if self.recall.fetch(self._boundary(self.reached), bench.step) > bench.step:
            self._saved = bench.resume()

    def _boundary(self, step: int) -> int:
        """Give the boundary to reach: this very step if it was reached but never measured."""
        every, steps = self.config.evaluation.every, self.config.steps
        on_boundary = step > 0 and (step % every == 0 or step == steps)
        if on_boundary and (step not in self.journal.boundaries or step == steps):
            return step
        return min(steps, (step // every + 1) * every)

    def _measure(self, bench: Models, step: int, started: float) -> dict[str, Any]:
        metrics = bench.measure()
        self._check(metrics, step)
        self._note_losses(step)  # who is killed after the checkpoint measures again, and trains nothing to average
        self._save(bench)
        self._wall += time.perf_counter() - started
        total, count = self._losses
        loss = float(total / count) if count else math.nan
        measured = metrics | {"loss": loss} | self._rates()
        entry = {
            "kind": "boundary",
            "step": step,
            "metrics": {key: value for key, value in measured.items() if math.isfinite(value)},
            "wall_seconds": self._wall,
            "device_seconds": self._wall * self.config.infrastructure.workers,
            "infrastructure": self.config.infrastructure.model_dump(mode="json"),
        }
        self.recall.add(step, entry)
        self.recall.release()
        entry["steps_trained"] = self.journal.steps_trained
        append_journal(self.folder, entry)
        self.journal.losses.clear()
        self.journal.boundaries[step] = entry
        return entry

    def _note_losses(self, step: int) -> None:
        """Keep the sum over the segment so far, exactly: its mean must not depend on where a clock or a kill cut it."""
        total, count = self.journal.losses[step] = self._losses
        line = {"kind": "interrupted", "step": step, "wall_seconds": self._wall, "losses": [str(total), count]}
        append_journal(self.folder, line)

    def _check(self, metrics: Mapping[str, float], step: int) -> None:
        if METRICS[self.settings.metric].role is None:
            return  # a rate of training, which no picture tells and no number can break
        value = metrics.get(self.settings.metric)
        if value is None or not math.isfinite(value):
            raise NonFiniteError(f"step {step}: {self.settings.metric} must be a finite number, got {value}")

    def _count(self, steps: int) -> None:
        """Count what is trained as soon as it is: a crash may lose the steps, not that they were paid for."""
        self.journal.steps_trained += steps
        write_steps_trained(self.folder, self.journal.steps_trained)

    def _save(self, bench: Models) -> None:
        bench.save()
        self._saved = bench.step

    def _rates(self) -> dict[str, float]:
        if not self._throughput.num_steps:
            return {}
        found = self._throughput
        return {
            "batches_per_second": found.batches_per_second,
            "samples_per_second": found.samples_per_second,
        }

    def _report(self, entry: Mapping[str, Any], *, replayed: bool) -> dict[str, Any]:
        decisive = {
            key: entry["metrics"].get(key) for key in (self.settings.metric, f"{self.settings.metric}_se")
        }
        return {
            **{key: value for key, value in decisive.items() if value is not None},
            **{key: entry[key] for key in ENTRY if key in entry},
            "replayed": replayed,
            "done": entry["step"] == self.config.steps,
        }


class TrialActor(Trainable):
    """A worker process that runs one trial after the other: imports and evaluation networks are paid once.

    A trial of several workers has its models in theirs, which stay from one trial to the next too.
    """

    _group: Group | None = None
    _losses = 0

    def setup(self, config: dict[str, Any]) -> None:
        """Take the first trial."""
        settle_process(Path(config["root"]))
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial."""
        self._run.close()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Go on; an error ends this trial only, and its traceback stays beside its journal."""
        started = time.perf_counter()
        try:
            result, damage = self._run.next(), self._run.recall.damage()
        except NonFiniteError as error:
            # The trial is lost, the process is sound: keep it, a new one would cost seconds of imports.
            self._fail()
            return {"step": self._run.reached, "done": True, "failed": f"NonFiniteError: {error}"}
        except WorkersLost as error:
            return self._lost(error) | {"spent_seconds": time.perf_counter() - started}
        except Exception:
            self._fail()
            raise
        if "metrics" in result:
            self._losses = 0
        if result.get("done"):
            self._run.close()
        return result | {"damage": damage} if damage else result

    def _lost(self, error: WorkersLost) -> dict[str, Any]:
        """Go on with new workers, from the last checkpoint; whose segment kills them every time has failed."""
        self._losses += 1
        if self._losses == ATTEMPTS:
            self._fail()
            raise error
        self._run.abandon()
        return {"step": self._run.reached, "done": False, "restarts": str(error)}

    def _fail(self) -> None:
        (self._run.folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        self._run.abandon()

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Say what the trial has reported: the checkpoint itself is in the trial's own folder.

        Tune asks before a pause. Workers of their own may then be wanted elsewhere, so they must have nothing left.
        """
        if self._group is not None:
            self._run.close()
        return {"step": self._run.reported}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Go on after a pause: what was reported before it is not reported again."""
        self._run.skip(int(checkpoint["step"]) if checkpoint else 0)

    def cleanup(self) -> None:
        """Keep what was trained, and release everything."""
        self._run.close()
        self._dismiss()

    def _dismiss(self) -> None:
        if self._group is not None:
            self._group.end()

    def _begin(self, config: dict[str, Any]) -> None:
        points = tuple(Waypoint(**point) for point in config["waypoints"])
        settings = Settings(**{**config, "waypoints": points})
        # Tune moves a worker into a folder of its own; relative paths of data mean the start folder.
        os.chdir(os.environ.get("TUNE_ORIG_WORKING_DIR", "."))
        self._losses = 0
        self._run = TrialRun(settings, self._models(settings))
        self._run.folder.mkdir(parents=True, exist_ok=True)

    def _models(self, settings: Settings) -> Callable[[Settings], Models]:
        """Say where a trial's models are: here, or with workers of its own."""
        infrastructure = parse_run_config(settings.config).infrastructure
        if infrastructure.workers == 1:
            return Bench
        shape = TrialShape(infrastructure.workers, infrastructure.threads or 1, settings.gpus)
        if self._group is None or self._group.shape != shape:
            self._dismiss()
            self._group = Group(shape, Path(settings.root))
        group = self._group
        return lambda settings: GroupBench(settings, group)


def settle_process(root: Path) -> None:
    """Send everything this worker prints to a file of its own.

    Raises:
        UserError: The sweep's folder is not visible from here.
    """
    if not (root / "sweep.json").is_file():
        raise UserError(
            f"{root}: is not visible from this worker; --store must be a folder that all nodes share"
        )
    target = os.open(root / "logs" / f"worker-{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(target, stream)
    os.close(target)
