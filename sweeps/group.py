"""Trials of several workers: Ray Train holds the processes, and they do what the trial's actor asks of them.

The actor decides, as it does for a trial of one process: what to replay, where to wait, when to measure. What has
models in it is an order that every worker carries out in step; the first one's answer counts. Orders and answers
pass through a desk, an actor of its own, because the trial's actor is busy while it waits for them. The workers
stay for the next trial: to start them costs many times what a small trial trains.
"""

from __future__ import annotations

import os
import statistics
import threading
import traceback
import uuid
from functools import partial
from pathlib import Path
from typing import Any

import ray

from cluster.resources import TrialShape
from prx.config import parse_run_config
from prx.errors import NonFiniteError
from sweeps.bench import Bench, Progress, Settings, measured
from sweeps.desk import IDLE, Answers, Desk, WorkersIdle, WorkersLost

IDLE_SECONDS = 20.0
"""So long the workers wait for the next trial before they go: others may wait for their place."""
LOOPBACK = "127.0.0.1"
COLLECTIVE_SECONDS = 900
"""So long a worker waits for the others; one that hangs is an error then."""


def work(job: dict[str, Any]) -> None:
    """Carry out orders until there are no more; what every worker runs."""
    from sweeps.trial import settle_process

    rank = ray.train.get_context().get_world_rank()
    settle_process(Path(job["root"]))
    os.chdir(job["working_dir"])
    crew, number, desk = _Crew(), 0, job["desk"]
    while (order := ray.get(desk.next.remote(number))) is not None:
        kind, value = crew.obey(*order)
        heard = rank == 0 or kind != "values"
        ray.get(desk.answer.remote(rank, kind, value if heard else None))
        if crew.failing is not None:
            raise crew.failing
        number += 1
    crew.leave()


class _Crew:
    """One worker's models, between orders."""

    def __init__(self) -> None:
        self._bench: Bench | None = None
        self.failing: Exception | None = None

    def obey(self, name: str, arguments: tuple[Any, ...]) -> tuple[str, Any]:
        """Carry out an order. Where numbers broke every worker is sound; after any other error none can be."""
        try:
            return "values", getattr(self, name)(*arguments)
        except NonFiniteError as error:
            return "broken", str(error)
        except Exception as error:
            self.failing = error
            return "errors", traceback.format_exc()

    def open(self, settings: Settings) -> int:
        """Take a trial up."""
        self.close()
        self._bench = Bench(settings)
        return self._bench.step

    def resume(self) -> int:
        """Go on from the newest checkpoint."""
        return self._held.resume()

    def advance(self, until: int) -> Progress:
        """Train to a step: one that all know, as clocks differ."""
        return self._held.advance(until)

    def measure_once(self) -> dict[str, float]:
        """Sample together, evaluate at the first."""
        return self._held.measure_once()

    def measure_also(self, number: int) -> dict[str, float]:
        """Do so under other sampling settings."""
        return self._held.measure_also(number)

    def save(self) -> None:
        """Keep a checkpoint."""
        self._held.save()

    def close(self) -> None:
        """Release the models."""
        bench, self._bench = self._bench, None
        if bench is not None:
            bench.close()

    def leave(self) -> None:
        """Keep what was trained, and release the models."""
        if self._bench is not None:
            self._bench.save()
        self.close()

    @property
    def _held(self) -> Bench:
        assert self._bench is not None
        return self._bench


class Group:
    """Workers for one trial after the other; they are there from the first order on.

    Args:
        shape: How many there are, and what each occupies.
        root: The sweep's folder.
    """

    def __init__(self, shape: TrialShape, root: Path, idle_s: float = IDLE_SECONDS) -> None:
        self.shape, self.root, self._idle_s = shape, root, idle_s
        self._desk: Any = None
        self._thread: threading.Thread | None = None

    def call(self, name: str, *arguments: Any) -> Any:
        """Have every worker do something; gives the first one's answer.

        Raises:
            NonFiniteError: A number broke; the workers are sound.
            WorkersIdle: There are none to ask.
            WorkersLost: A process died.
            WorkerError: A worker raised something else.
        """
        if self._desk is None:
            raise WorkersIdle
        answers: Answers = ray.get(self._desk.order.remote(name, *arguments))
        if answers.over is not None:
            print(f"{name}: {answers.over}", flush=True)  # to this process's log
            self._forget()
        if (problem := answers.problem()) is not None:
            raise problem
        return answers.values[0]

    def start(self) -> None:
        """Start the workers unless they are there."""
        if self._desk is None:
            self._desk = ray.remote(Desk).options(num_cpus=0).remote(self.shape.workers, self._idle_s)
            self._thread = threading.Thread(target=self._fit, args=(self._desk,), daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Send the workers away."""
        if self._desk is not None:
            ray.get(self._desk.end.remote(IDLE))
            self._forget()

    def _forget(self) -> None:
        """Wait until the place of the workers is free."""
        assert self._thread is not None
        self._thread.join()
        self._desk = self._thread = None

    def _fit(self, desk: Any) -> None:
        """Hold the workers until they go, and tell the desk why they did."""
        from ray.train import TrainingFailedError

        try:
            self._trainer(desk).fit()
        except (TrainingFailedError, ray.exceptions.RayError) as error:
            failed = tuple(sorted(getattr(error, "worker_failures", {})))
            ray.get(desk.end.remote(" ".join(str(error).split()), failed))
        else:
            ray.get(desk.end.remote(IDLE))

    def _trainer(self, desk: Any) -> Any:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        alone = ray.util.get_node_ip_address() == LOOPBACK  # then nothing else may listen for the workers either
        return TorchTrainer(
            work,
            train_loop_config={"desk": desk, "root": str(self.root), "working_dir": os.getcwd()},
            torch_config=TorchConfig(timeout_s=COLLECTIVE_SECONDS),
            scaling_config=ScalingConfig(
                num_workers=self.shape.workers,
                use_gpu=self.shape.gpus_per_worker > 0,
                resources_per_worker=self.shape.worker,
            ),
            run_config=RunConfig(
                name=uuid.uuid4().hex,
                storage_path=str(self.root / "tune" / "groups"),
                failure_config=FailureConfig(max_failures=0),
                worker_runtime_env={"env_vars": {"GLOO_SOCKET_IFNAME": "lo"}} if alone else None,
            ),
        )


class GroupBench:
    """A trial's models with a group of workers; the interface of `Bench`."""

    def __init__(self, settings: Settings, group: Group) -> None:
        self._settings, self._group = settings, group
        self._pace: float | None = None
        self.step = 0
        self._open()

    def _open(self) -> None:
        for _ in range(2):  # they may go for want of orders at this very moment
            self._group.start()
            try:
                self.step = self._group.call("open", self._settings)
                return
            except WorkersIdle:
                continue
        raise WorkersLost("workers went before they had begun")

    def _call(self, name: str, *arguments: Any) -> Any:
        try:
            return self._group.call(name, *arguments)
        except WorkersIdle:
            self._open()
            return self._group.call(name, *arguments)

    def resume(self) -> int:
        """Go on from the newest checkpoint in the trial's folder; gives its step."""
        self.step = self._call("resume")
        return self.step

    def advance(self, until: int, *, seconds: float = float("inf")) -> Progress:
        """Train to a step, or as many steps as will take about so long: workers' clocks differ, steps do not."""
        steps = max(1, int(seconds / self._pace)) if self._pace else 1
        progress: Progress = self._call("advance", min(until, self.step + steps))
        self.step = progress.step
        if progress.step_seconds:
            self._pace = max(statistics.median(progress.step_seconds), 1e-6)
        return progress

    def measure(self) -> dict[str, float]:
        """Sample together, evaluate at the first worker.

        Every sampling setting is an order of its own: while the first evaluates, the others wait for an order, which
        may take as long as it takes, and not in a collective operation.
        """
        config = parse_run_config(self._settings.config)
        return measured(config, self.step, partial(self._call, "measure_once"), partial(self._call, "measure_also"))

    def save(self) -> None:
        """Keep a checkpoint."""
        self._call("save")

    def close(self) -> None:
        """Release the models; the workers stay for the next trial."""
        try:
            self._group.call("close")
        except (WorkersIdle, WorkersLost):
            return  # with them went what they held
