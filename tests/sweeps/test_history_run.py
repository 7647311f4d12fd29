"""Sweeps of fakes on a real Ray that share what they train: trunks, other sweeps, more steps, more cells."""

from __future__ import annotations

import io
import time
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from sweeps.history.leases import Leases
from sweeps.history.recall import Recall, Waypoint
from sweeps.history.remember import Segments, boundaries, waypoints
from sweeps.history.store import HistoryStore
from sweeps.results import SweepFolder, read_info, read_journal, read_results
from sweeps.run import run_sweep
from sweeps.status import render_status
from sweeps.steps import Steps, read_steps
from tests.sweeps import alone, fakes
from tests.sweeps.alone import play, points
from tests.sweeps.places import write

FORKS = ("fork-20-1", "fork-20-2", "fork-20-3")


def run(plan, store: Path, history: Path | None = None) -> str:
    output = io.StringIO()
    console = Console(file=output, width=200)
    outcome = run_sweep(plan, store=store, history=history, parts=fakes.PARTS, max_concurrent=2, console=console)
    assert outcome.exit_code == 0, output.getvalue()
    return output.getvalue()


def trained(plan, store: Path) -> dict[str, list[int]]:
    folder = SweepFolder(store, "fake")
    return {trial.cell.name: fakes.trained(folder.trial(trial.trial_id)) for trial in plan.trials}


def counted(store: Path) -> Steps:
    folder = SweepFolder(store, "fake")
    return read_steps(folder, read_info(folder))


def scores(store: Path, names) -> dict[tuple[str, int], float]:
    frame = read_results(SweepFolder(store, "fake").results)
    frame = frame[frame["name"].isin(names)]
    return {(row.name, row.step): row.cmmd for row in frame.itertuples(index=False)}


def test_runs_share_their_trunk_and_measure_what_they_would_alone(ray_here, tmp_path):
    plan = fakes.make_plan(*FORKS)
    run(plan, tmp_path / "shared")
    steps = trained(plan, tmp_path / "shared")
    every = sorted(step for found in steps.values() for step in found)
    assert every == sorted([*range(1, 21), *(3 * [*range(21, 41)])])
    assert counted(tmp_path / "shared") == Steps(asked=120, trained=80, taken_over=40)
    alone = {}
    for name in FORKS:
        run(fakes.make_plan(name), tmp_path / name)
        alone |= scores(tmp_path / name, [name])
    assert scores(tmp_path / "shared", FORKS) == alone


@pytest.mark.slow
def test_another_sweep_trains_only_what_is_new(ray_here, tmp_path):
    history = tmp_path / "history"
    run(fakes.make_plan("good-1", "good-2"), tmp_path / "first", history)
    wider = fakes.make_plan("good-1", "good-2", "good-3")
    text = run(wider, tmp_path / "second", history)
    assert "8 boundaries are known from earlier sweeps" in text
    assert trained(wider, tmp_path / "second") == {"good-1": [], "good-2": [], "good-3": [*range(1, 41)]}
    assert scores(tmp_path / "second", ["good-1"]) == scores(tmp_path / "first", ["good-1"])
    frame = read_results(SweepFolder(tmp_path / "second", "fake").results)
    assert frame.set_index("name").loc["good-1", "replayed"].all()
    again = run(wider, tmp_path / "third", history)
    assert "everything is trained already" in again
    assert counted(tmp_path / "second") == Steps(asked=120, trained=40, taken_over=80)
    assert counted(tmp_path / "third") == Steps(asked=120, trained=0, taken_over=120)
    pictures = sorted((tmp_path / "third").rglob("samples/step-00000040.png"))
    assert len(pictures) == 3


@pytest.fixture
def start(tmp_path):
    return partial(alone.start, tmp_path, tmp_path / "history")


def test_forks_and_ends_keep_their_files_and_the_rest_only_the_newest(start, tmp_path):
    found = waypoints({
        name: (trial.config, fakes.Lineage(trial.config, Path()))
        for name in FORKS for trial in fakes.make_plan(name).trials
    })  # fmt: skip
    assert [point.keep for point in found[FORKS[0]]] == [False, True, False, True]
    play(start("a", FORKS[0], waypoints=found[FORKS[0]]))
    store = HistoryStore(tmp_path / "history")
    states = [store.get(point.state) for point in found[FORKS[0]]]
    assert [bool(entry.files) for entry in states] == [False, True, False, True]


def test_a_trial_in_the_middle_takes_over_what_another_trains_meanwhile(start):
    first, second = start("a"), start("b")
    assert play(first, until=10) == [(10, False)]
    assert play(second, until=10) == [(10, True)]
    assert play(first, until=30)[-1] == (30, False)
    assert play(second) == [(20, True), (30, True), (40, False)]
    assert fakes.trained(second.folder) == [*range(31, 41)]
    assert play(first) == [(40, True)]


def test_a_segment_is_trained_by_one_at_a_time(start):
    first, second = start("a"), start("b")
    first.next()
    assert second.next() == {"step": 0, "done": False, "waits": 10}
    play(first, until=10)
    assert play(second, until=10) == [(10, True)]
    second.next()
    assert first.next()["waits"] == 20
    second.abandon()
    assert play(first, until=20) == [(20, False)]


def test_the_segment_of_a_dead_trial_is_taken_over_when_its_lease_ends(start):
    dead = start("a", lease_seconds=0.4)
    dead.next()
    dead.recall._beat.set()  # the process is gone: nobody renews
    second = start("b")
    assert second.next()["waits"] == 10
    time.sleep(0.5)
    assert play(second, until=10) == [(10, False)]


def test_a_long_segment_keeps_its_lease(start):
    first, second = start("a", lease_seconds=0.4), start("b")
    first.next()
    time.sleep(1.0)
    assert second.next()["waits"] == 10
    first.abandon()


def test_damaged_state_is_set_aside_and_trained_again(start, tmp_path):
    play(start("a"), until=20)
    store = HistoryStore(tmp_path / "history")
    entry = store.get(points()[1].state)
    write(store, f"{store.folder(entry.key)}/{entry.attempt}/weights", b"other")
    again = start("b")
    assert play(again, until=30) == [(10, True), (20, True), (30, False)]
    assert fakes.trained(again.folder) == [*range(1, 31)]
    assert "weights: has 5 bytes instead of" in again.recall.store.damage[0]


def test_a_trunk_whose_states_were_dropped_is_trained_again_by_one_for_all(start):
    names, ways = ("fork-30-2", "fork-30-3"), {}
    for name in ("fork-30-1", *names):
        trial = fakes.make_plan(name).trials[0]
        ways[name] = (trial.config, fakes.Lineage(trial.config, Path()))
    play(start("first", "fork-30-1", waypoints=waypoints({"fork-30-1": ways.pop("fork-30-1")})["fork-30-1"]))
    passed = waypoints(ways)
    both = [start(name, name, waypoints=passed[name]) for name in names]
    living, waited = list(both), 0
    while living:
        for trial in list(living):
            result = trial.next()
            waited += "waits" in result
            if result.get("done"):
                living.remove(trial)
    assert waited
    steps = sorted(step for trial in both for step in fakes.trained(trial.folder))
    assert steps == sorted([*range(1, 31), *range(31, 41), *range(31, 41)])


def test_state_that_is_known_but_measured_otherwise_is_only_measured(start):
    play(start("a"))
    other = tuple(Waypoint(p.step, p.state, "f" * 31 + str(p.step // 10), p.keep) for p in points())
    again = start("b", waypoints=other)
    assert play(again)[-1] == (40, False)
    assert fakes.trained(again.folder) == [*range(1, 31)]
    found = read_journal(again.folder).boundaries
    assert [step for step, entry in found.items() if "loss" in entry["metrics"]] == [10, 20, 30]
    assert found.keys() == {10, 20, 30, 40}


def test_recall_without_waypoints_knows_nothing(tmp_path):
    view = Recall("", (), tmp_path)
    assert view.measured(10) is None
    assert view.fetch(10, 0) == 0
    assert view.claim(10)
    view.add(10, {})
    view.release()
    assert list(tmp_path.iterdir()) == []


def test_segments_are_free_unless_leased(tmp_path):
    found = {"t": points()}
    segments = Segments(str(tmp_path), found, every_s=0.0)
    assert segments.free("t", 10)
    holder = Leases(HistoryStore(tmp_path), "other")
    assert holder.take(found["t"][0].state)
    assert not segments.free("t", 10)
    assert segments.free("t", 20)
    holder.release(found["t"][0].state)
    assert segments.free("t", 10)


def test_a_store_that_is_away_keeps_a_trial_waiting_and_ends_no_sweep(tmp_path, monkeypatch, caplog):
    segments = Segments(str(tmp_path), {"t": points()}, every_s=0.0)

    def away(*_):
        raise OSError("When listing objects: AWS Error NETWORK_CONNECTION")

    with monkeypatch.context() as patch:
        patch.setattr(HistoryStore, "listing", away)
        assert not segments.free("t", 10)
    assert "is not known: When listing objects: AWS Error NETWORK_CONNECTION" in caplog.text
    assert segments.free("t", 10)


def test_boundaries_end_with_the_run():
    config = fakes.make_plan("good-1").trials[0].config
    assert boundaries(config) == [10, 20, 30, 40]
    assert boundaries(config.model_copy(update={"steps": 25})) == [10, 20, 25]


@pytest.mark.slow
def test_damage_reaches_screen_log_and_status(ray_here, tmp_path):
    history = tmp_path / "history"
    run_sweep(fakes.make_plan("good-1"), store=tmp_path / "first", history=history, parts=fakes.PARTS,
              console=Console(file=io.StringIO()))  # fmt: skip
    store = HistoryStore(history)
    last = points()[-1]
    write(store, f"{store.folder(last.measurement)}/entry.json", b"{")  # met by the driver
    entry = store.get(last.state)
    write(store, f"{store.folder(last.state)}/{entry.attempt}/weights", b"other")  # met by the trial
    output, folder = io.StringIO(), SweepFolder(tmp_path / "second", "fake")
    run_sweep(fakes.make_plan("good-1"), store=tmp_path / "second", history=history, parts=fakes.PARTS,
              console=Console(file=output, width=500))  # fmt: skip
    shown = io.StringIO()
    Console(file=shown, width=500).print(render_status(folder))
    for text in (output.getvalue(), (folder.logs / "driver.log").read_text(), shown.getvalue()):
        assert "entry.json: not a record" in text
        assert "weights: has 5 bytes instead of" in text
        assert "set aside as" in text
