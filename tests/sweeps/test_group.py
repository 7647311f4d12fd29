"""Workers of a trial: what they are told and say, without any; then a sweep of fakes with two that meet and die."""

from __future__ import annotations

import asyncio
import io
from typing import ClassVar

import pytest
from rich.console import Console

from cluster.connect import attach
from prx.errors import ConfigError, NonFiniteError
from prx.yamlsource import parse_yaml
from sweeps.bench import Settings
from sweeps.desk import Answers, Desk, WorkerError, WorkersIdle, WorkersLost
from sweeps.group import GroupBench
from sweeps.logs import ENVIRONMENT, environment
from sweeps.plan import make_plan
from sweeps.results import SweepFolder, read_results, read_state
from sweeps.run import run_sweep
from sweeps.spec import parse_spec
from sweeps.trial import ATTEMPTS, TrialActor
from tests.sweeps import crews, fakes


def at_desk(scene, idle_s: float = 5.0):
    """Play a scene at a desk of two workers, without Ray."""

    async def play():
        desk = Desk(2, idle_s)
        return await asyncio.wait_for(scene(desk), 10)

    return asyncio.run(play())


async def obey(desk: Desk, rank: int, *answers: tuple[str, object]) -> list[str]:
    """Pick up orders and give these answers; stay until there are no more orders."""
    found = []
    while (order := await desk.next(len(found))) is not None:
        kind, value = answers[len(found)]
        found.append(order[0])
        await desk.answer(rank, kind, value)
    return found


def test_every_worker_gets_every_order_and_the_first_ones_answer_counts():
    async def scene(desk: Desk):
        workers = [asyncio.create_task(obey(desk, rank, ("values", rank + 7), ("values", rank))) for rank in (0, 1)]
        answers = [await desk.order("open", "a trial"), await desk.order("save")]
        await desk.end("idle")
        return [found.values for found in answers], [await worker for worker in workers]

    assert at_desk(scene) == ([{0: 7, 1: 8}, {0: 0, 1: 1}], [["open", "save"]] * 2)


def test_broken_numbers_are_told_by_any_worker():
    async def scene(desk: Desk):
        for rank, kind in enumerate(("values", "broken")):
            desk.task = asyncio.create_task(obey(desk, rank, (kind, "step 3: loss became nan")))
        return (await desk.order("advance", 3)).problem()

    problem = at_desk(scene)
    assert isinstance(problem, NonFiniteError)
    assert str(problem) == "step 3: loss became nan"


@pytest.mark.parametrize(("told", "kind", "text"), [
    ((0, 1), WorkerError, "Traceback\nValueError: 0"), ((0,), WorkersLost, "lost worker 1 of the trial"),
    ((), WorkersLost, "lost worker 0, 1 of the trial"),
])  # fmt: skip
def test_an_error_is_the_codes_only_where_nobody_died(told, kind, text):
    async def scene(desk: Desk):
        waiting = asyncio.create_task(desk.order("advance", 3))
        await desk.next(0)
        for rank in told:
            await desk.answer(rank, "errors", f"Traceback\nValueError: {rank}")
        await desk.end("workers went", (0, 1))
        return (await waiting).problem()

    problem = at_desk(scene)
    assert (type(problem), str(problem)) == (kind, text)


def test_workers_without_orders_go_but_not_while_one_of_them_is_busy():
    async def scene(desk: Desk):
        first = asyncio.create_task(obey(desk, 0, ("values", 1)))
        waiting = asyncio.create_task(desk.order("close"))
        await desk.next(0)  # the second, who then takes its time
        await asyncio.sleep(0.2)
        assert not waiting.done()
        assert not first.done()
        await desk.answer(1, "values", 2)
        assert (await waiting).problem() is None
        assert await desk.next(1) is None
        return await first, (await desk.order("open")).problem()

    orders, problem = at_desk(scene, idle_s=0.05)
    assert orders == ["close"]
    assert isinstance(problem, WorkersIdle)


def test_within_a_trial_workers_wait_longer():
    async def scene(desk: Desk):
        worker = asyncio.create_task(obey(desk, 0, ("values", 1), ("values", 2)))
        other = asyncio.create_task(obey(desk, 1, ("values", 1), ("values", 2)))
        await desk.order("advance", 3)
        await asyncio.sleep(0.3)
        assert (await desk.order("save")).values == {0: 2, 1: 2}
        await desk.end("idle")
        return await worker == await other == ["advance", "save"]

    assert at_desk(scene, idle_s=0.05)


def test_no_answer_at_all_is_a_loss():
    problem = Answers(over="the controller is gone").problem()
    assert (type(problem), str(problem)) == (WorkersLost, "the controller is gone")


def test_every_sampling_setting_is_an_order_of_its_own():
    """Who waits for the first worker to evaluate waits for an order: a collective operation would run out of time."""

    class Orders:
        asked: ClassVar[list[tuple]] = []

        def start(self):
            """There are workers."""

        def call(self, name, *arguments):
            self.asked.append((name, *arguments))
            return {"-".join(map(str, (name, *arguments))): 1.0}

    config = fakes.make_plan("good-3").trials[0].config.model_dump(mode="json")
    config["evaluation"]["also"] = [{"guidance_scale": 2.0}, {"num_steps": 9}]
    bench = GroupBench(Settings("good-3", config, "", "", "", "cmmd", "", ""), Orders())
    bench.step = 20
    assert list(bench.measure()) == ["measure_once"]
    bench.step = config["steps"]
    Orders.asked.clear()
    assert list(bench.measure()) == ["measure_once", "measure_also-0", "measure_also-1"]
    assert Orders.asked == [("measure_once",), ("measure_also", 0), ("measure_also", 1)]


def test_workers_that_cannot_share_a_batch_are_refused():
    rule = r"batch_size: must be a multiple of infrastructure\.workers \(3\), got 32"
    source = parse_yaml(
        "name: x\nbase: embedded\naxes: {alignment: [none]}\ntrial: {steps: 10, eval_every: 5, workers: 3}\n", "x.yaml"
    )
    with pytest.raises(ConfigError, match=rule):
        make_plan(parse_spec(source), source)


def test_a_segment_that_kills_its_workers_every_time_is_given_up(tmp_path):
    class Run:
        folder, reached, abandoned = tmp_path, 10, 0

        def next(self):
            raise WorkersLost("rank 1 is gone")

        def abandon(self):
            self.abandoned += 1

    actor = TrialActor.__new__(TrialActor)
    actor._run = Run()
    for _ in range(ATTEMPTS - 1):
        result = actor.step()
        assert result.pop("spent_seconds") > 0
        assert result == {"step": 10, "done": False, "restarts": "rank 1 is gone"}
    with pytest.raises(WorkersLost):
        actor.step()
    assert actor._run.abandoned == ATTEMPTS
    assert (tmp_path / "error.txt").read_text().endswith("WorkersLost: rank 1 is gone\n")


NAMES = ("good-3", "lose-1", "good-5", "good-4", "odd-2", "broken-2")


@pytest.fixture(scope="module")
def ray_for_crews(tmp_path_factory):
    """A local Ray that holds one trial of two workers at a time."""
    with environment(), attach(
        "local", num_cpus=3, log_dir=tmp_path_factory.mktemp("ray"), environment=ENVIRONMENT,
        object_store_bytes=100 * 1024**2, dashboard=True,
    ) as attached:  # fmt: skip
        yield attached


@pytest.mark.slow
def test_a_sweep_of_two_workers_pauses_promotes_and_outlives_a_dead_worker(ray_for_crews, tmp_path):
    plan = fakes.make_plan(*NAMES, scheduler="{use: halving, grace_steps: 10, reduction_factor: 2}", workers=2)
    output = io.StringIO()
    outcome = run_sweep(plan, store=tmp_path, parts=crews.PARTS, console=Console(file=output, width=300))
    text, folder = output.getvalue(), SweepFolder(tmp_path, "fake")
    assert "6 trials, 1 at a time" in text
    homes = {trial.cell.name: folder.trial(trial.trial_id) for trial in plan.trials}
    states = {name: read_state(home) for name, home in homes.items()}
    assert {name: state.state for name, state in states.items()} == {
        "good-3": "complete", "lose-1": "complete", "good-5": "pruned", "good-4": "pruned",
        "odd-2": "failed", "broken-2": "failed",
    }  # fmt: skip
    assert states["odd-2"].reason == "ValueError: the second worker broke at step 15"
    assert states["broken-2"].reason == "NonFiniteError: step 15: the fake broke"
    assert outcome.exit_code == 1
    assert text.count(" restarted ") == 1
    assert "new workers from here on: lost worker 1 of the trial" in text
    steps = {name: fakes.trained(home) for name, home in homes.items()}
    assert steps["good-3"] == [*range(1, 41)]
    assert steps["lose-1"] == [*range(1, 15), *range(11, 41)]  # from the last boundary, once
    assert steps["good-5"] == steps["good-4"] == [*range(1, 21)]  # in reserve, for the two that failed
    frame = read_results(outcome.results_path)
    done = frame[frame["name"] == "lose-1"]
    assert list(done["step"]) == [10, 20, 30, 40]
    assert not done["replayed"].any()
