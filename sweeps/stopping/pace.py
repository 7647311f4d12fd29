"""What early stopping reads from the configuration of a trial."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prx.config import RouterConfig, RunConfig, TermConfig
from prx.errors import Problem
from prx.yamlsource import Source
from sweeps.stopping.spec import SchedulerSpec


def scheduled_until(config: RunConfig) -> int:
    """Give the step of the last scheduled change of a technique within a run; 0 where nothing is scheduled.

    Every technique starts with the run, so a rung before that step would compare a cell in the middle of what it
    is. What is scheduled for the run's end or later changes nothing within it.
    """
    found = [part.stop_step for part in config.losses.values() if isinstance(part, TermConfig)]
    if isinstance(config.routing, RouterConfig):
        found.append(config.routing.dense_from)
    return max((step for step in found if isinstance(step, int) and step < config.steps), default=0)


def images_of(config: RunConfig) -> int:
    """Give how many images a run trains on."""
    return config.steps * config.batch_size


def unreachable(spec: SchedulerSpec, source: Source, configs: Iterable[RunConfig]) -> Iterator[Problem]:
    """Refuse a first rung that the shortest run does not pass before its end."""
    if spec.use == "none" or spec.unit != "images" or spec.grace is None:
        return
    fewest = min((images_of(config) for config in configs), default=None)
    if fewest is not None and spec.grace >= fewest:
        message = f"must be less than the images of the cell with the fewest ({fewest:,}), got {spec.grace:g}"
        yield source.problem(("scheduler", "grace"), message)
