"""Stage trees of real runs in the tiny world: fewer steps, the same pictures to the last bit."""

from __future__ import annotations

import zlib
from itertools import product
from pathlib import Path

import pytest

from sweeps.history.remember import waypoints
from sweeps.measure import lineage
from sweeps.order import in_order
from sweeps.results import read_steps_trained
from sweeps.tree import grow
from sweeps.trial import Settings, TrialRun

STEPS, EVERY = 12, 2
STOPS = (2, 4, 6, 8, 10, "never")


def evaluate(config, cache):
    """Measure pictures so that no bit of them can differ unnoticed."""
    return lambda images: {
        "cmmd": float(images.double().mean()),
        "adherence": float(zlib.crc32(images.numpy().tobytes())),
    }


class Lab:
    """Trains runs of the tiny world one after the other, over one history."""

    def __init__(self, world, root: Path) -> None:
        self.world, self.root, self.trained = world, root, 0

    def config(self, weight=0.5, stop="never", steps=STEPS, **term):
        losses = {"repa": self.world.repa(weight=weight, stop_step=stop, **term)}
        evaluation = {**self.world.settings()["evaluation"], "every": EVERY}
        return self.world.config(losses=losses, steps=steps, evaluation=evaluation)

    def train(self, configs) -> dict[str, dict[int, dict[str, float]]]:
        """Train named configurations; gives what was measured of each, by step."""
        points = waypoints({name: (config, lineage(config, self.world.cache)) for name, config in configs.items()})
        order = in_order({name: [point.state for point in found] for name, found in points.items()})
        return {name: self._trial(name, configs[name], points[name]) for name in order}

    def _trial(self, name, config, points):
        home = self.root / name
        home.mkdir(parents=True)
        run = TrialRun(Settings(
            trial_id=name, config=config.model_dump(mode="json"), root=str(self.root), folder=str(home),
            cache=str(self.world.cache), metric="cmmd", trainer="prx.trainer:Trainer",
            evaluate=f"{__name__}:evaluate", chunk_seconds=600.0, history=str(self.root / "history"),
            waypoints=points,
        ))  # fmt: skip
        while not run.next()["done"]:
            pass
        run.close()
        self.trained += read_steps_trained(home)
        return {step: measured(entry["metrics"]) for step, entry in run.journal.boundaries.items()}


def measured(metrics):
    return {key: value for key, value in metrics.items() if not key.endswith("per_second")}


@pytest.fixture
def lab(world, tmp_path):
    return lambda name: Lab(world, tmp_path / name)


@pytest.mark.slow
def test_weights_and_stops_share_their_trunks_and_measure_what_they_would_alone(lab):
    together = lab("together")
    configs = {f"{w}-{stop}": together.config(w, stop) for w, stop in product((0.25, 0.5), STOPS)}
    found = together.train(configs)
    assert together.trained == sum(root.steps for root in grow(configs.items()))
    assert together.trained <= 0.6 * len(configs) * STEPS
    for name, config in configs.items():
        alone = lab(f"alone-{name}")
        assert alone.train({name: config})[name] == found[name]
        assert alone.trained == STEPS


@pytest.mark.slow
def test_twice_the_steps_train_only_the_second_half(lab):
    here = lab("here")
    first = here.train({"short": here.config(stop=4, steps=6)})["short"]
    assert here.trained == 6
    longer = here.train({"long": here.config(stop=4, steps=12)})["long"]
    assert here.trained == 12
    assert {step: longer[step] for step in first} == first
    assert longer == lab("whole").train({"long": here.config(stop=4, steps=12)})["long"]


@pytest.mark.slow
def test_a_weight_that_leans_towards_the_end_is_trained_again_when_the_end_moves(lab):
    here = lab("here")
    here.train({"short": here.config(schedule="cosine", steps=4)})
    here.train({"long": here.config(schedule="cosine", steps=8)})
    assert here.trained == 4 + 8
    here.train({"same": here.config(schedule="cosine", steps=8)})
    assert here.trained == 4 + 8


@pytest.mark.slow
def test_one_more_level_trains_only_its_own(lab):
    here = lab("here")
    here.train({"never": here.config(), "four": here.config(stop=4)})
    assert here.trained == 12 + 8
    here.train({"never-again": here.config(), "four-again": here.config(stop=4), "other": here.config(weight=1.0)})
    assert here.trained == 12 + 8 + 12
