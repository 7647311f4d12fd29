"""Turn the shape of a trial into what Ray has to reserve, and count how many such trials a cluster holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# A Tune function that only drives workers needs some request; an empty one is refused by Ray.
DRIVER_CPUS = 0.01
# Ray counts in ten-thousandths: a difference below that is rounding.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class TrialShape:
    """Say what one trial occupies while it trains.

    Units: whole workers; CPU cores and GPUs a worker, where a fraction shares a device.
    Raises: ValueError where a number is out of range.
    """

    workers: int = 1
    cpus_per_worker: float = 1
    gpus_per_worker: float = 0

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"trial.workers must be at least 1, got {self.workers}")
        if self.cpus_per_worker <= 0:
            raise ValueError(f"trial.cpus_per_worker must be above 0, got {self.cpus_per_worker:g}")
        gpus = self.gpus_per_worker
        if gpus < 0 or (gpus > 1 and gpus != int(gpus)):
            raise ValueError(f"trial.gpus_per_worker must be a whole number or between 0 and 1, got {gpus:g}")

    @property
    def worker(self) -> dict[str, float]:
        """Return what one worker occupies, in Ray's names; what it does not need is left out."""
        wanted = {"CPU": float(self.cpus_per_worker), "GPU": float(self.gpus_per_worker)}
        return {name: amount for name, amount in wanted.items() if amount > 0}

    @property
    def total(self) -> dict[str, float]:
        """Return what the whole trial occupies: its workers, and the driver where it has one."""
        total = {name: self.workers * amount for name, amount in self.worker.items()}
        if self.workers > 1:
            total["CPU"] += DRIVER_CPUS
        return total


def resources(shape: TrialShape) -> dict[str, float]:
    """Return what Tune reserves for one trial: the trial itself, or the driver of its workers."""
    return shape.worker if shape.workers == 1 else {"CPU": DRIVER_CPUS}


def concurrency(
    shape: TrialShape,
    available: Mapping[str, float],
    ceiling: Mapping[str, float] | None = None,
    nodes: Sequence[Mapping[str, float]] = (),
) -> int:
    """Count the trials of one shape that a cluster holds at once.

    `available` is what the cluster has, `ceiling` what it has when it has grown as far as it may, and `nodes`
    what each of its machines has: a worker must fit into one of them. Tune's own choice lets the drivers of
    trials take the CPUs that their workers then wait for, so the result belongs in `max_concurrent_trials`.

    Raises: ValueError where not even one trial fits.
    """
    if ceiling:
        largest = {name: max(available.get(name, 0), ceiling.get(name, 0)) for name in {*available, *ceiling}}
        count = _times(shape.total, largest)
    else:
        largest = dict(available)
        count = _times(shape.total, available)
        if nodes:
            count = min(count, sum(_times(shape.worker, node) for node in nodes) // shape.workers)
    if count < 1:
        raise ValueError(_does_not_fit(shape, largest, nodes if not ceiling else ()))
    return count


def _times(need: Mapping[str, float], have: Mapping[str, float]) -> int:
    return min(math.floor(have.get(name, 0) / amount + _ROUNDING) for name, amount in need.items())


def _does_not_fit(shape: TrialShape, largest: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> str:
    need, workers = _listed(shape.total), f"{shape.workers} worker{'s' if shape.workers > 1 else ''}"
    driver = f", of which the trial's driver {DRIVER_CPUS:g} CPU" if shape.workers > 1 else ""
    have = _listed({name: largest.get(name, 0) for name in shape.total})
    text = (
        f"trial.workers must fit into the cluster: {workers} of {_listed(shape.worker)} need {need}{driver}; "
        f"there is {have}"
    )
    if nodes and _times(shape.total, largest) > 0:
        machines = "; ".join(_listed({name: node.get(name, 0) for name in shape.worker}) for node in nodes)
        text += f", but no set of machines holds every worker whole ({machines})"
    return text


def _listed(amounts: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in amounts.items())
