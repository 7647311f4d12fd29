"""What a clean-up frees and keeps: by policy, by what runs, wherever the history lies."""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from prx.errors import UserError
from sweeps import __main__ as cli
from sweeps.gc import OPEN, UNNAMED, collect
from sweeps.history import retention
from sweeps.history.address import without_credentials
from sweeps.history.forks import Forks
from sweeps.history.leases import Leases
from sweeps.history.recall import Waypoint
from sweeps.history.remember import record, recorded, waypoints
from sweeps.history.retention import SweepView, TrialView, needed
from sweeps.history.store import HistoryStore
from sweeps.results import SweepFolder, TrialState, write_info, write_state
from sweeps.status import exclusive
from sweeps.trial import Settings, TrialRun
from tests.sweeps import fakes, places
from tests.sweeps.places import paths, write

NAMES = ("good-1", "good-2", "fork-20-3", "fork-20-4")


class World:
    """A sweep in a store, trained without Ray: trials that are done, and one that stands at step 20."""

    def __init__(self, store: Path, history: str, stops: dict[str, int] | None = None) -> None:
        self.store, self.history, self.folder = store, history, SweepFolder(store, "fake")
        write_info(self.folder, fakes.make_info(*NAMES))
        trials = {trial.cell.name: trial for trial in fakes.make_plan(*NAMES).trials}
        self.points = waypoints({
            f"{name}-0": (trial.config, fakes.Lineage(trial.config, Path())) for name, trial in trials.items()
        })  # fmt: skip
        record(self.folder.waypoints, without_credentials(history), self.points)
        for name, trial in trials.items():
            self.train(f"{name}-0", trial, (stops or {}).get(name, 40))

    def train(self, trial_id: str, trial: fakes.Trial, until: int) -> None:
        home = self.folder.trial(trial_id)
        home.mkdir(parents=True, exist_ok=True)
        run = TrialRun(Settings(
            trial_id=trial_id, config=json.loads(json.dumps(trial.config.model_dump(mode="json"))),
            root=str(self.folder.root), folder=str(home), metric="cmmd", cache=str(self.folder.cache),
            trainer=fakes.PARTS.trainer, evaluate=fakes.PARTS.evaluate, history=self.history,
            waypoints=self.points[trial_id],
        ))  # fmt: skip
        while run.reached < until:
            run.next()
        run.close()
        for older in sorted((home / "checkpoints").iterdir())[:-1]:
            shutil.rmtree(older)  # the real trainer does so itself
        write_state(home, TrialState("complete" if until == 40 else "pending"))

    def kept(self) -> dict[str, list[int]]:
        """Give the steps of every trial whose state still has its files."""
        store = HistoryStore(self.history)
        return {
            trial: [p.step for p in points if (found := store.get(p.state)) is not None and found.files]
            for trial, points in self.points.items()
        }

    def copies(self) -> list[str]:
        root = self.folder.root / "trials"
        return sorted(str(path.relative_to(root)) for path in root.glob("*/checkpoints/*"))


@pytest.fixture(params=["folder", "s3"])
def world(request, tmp_path) -> World:
    server = request.getfixturevalue("s3") if request.param == "s3" else ""
    return World(tmp_path / "runs", places.address(request.param, tmp_path, server), stops={"good-2": 20})


def free(world: World, **options):
    return collect(world.store, world.history, delete=True, **options)


def test_nothing_goes_before_it_is_asked_for(world):
    before = (world.kept(), world.copies(), paths(HistoryStore(world.history)))
    found = collect(world.store, world.history, keep_best=0)
    assert found.freed > 0
    assert (world.kept(), world.copies(), paths(HistoryStore(world.history))) == before


def test_newest_of_the_unfinished_forks_and_best_finals_stay(world):
    assert world.kept() == {"good-1-0": [40], "good-2-0": [20], "fork-20-3-0": [20, 40], "fork-20-4-0": [20, 40]}
    found = free(world, keep_best=2)
    assert world.kept() == {"good-1-0": [40], "good-2-0": [20], "fork-20-3-0": [20, 40], "fork-20-4-0": [20]}
    assert {item.why for item in found.items} == {
        retention.BEATEN, "the history has it too", "goes with the history's",
    }  # fmt: skip
    assert {why: n for why, (n, _) in found.kept.items()} == {
        retention.NEWEST: 1, retention.FORK: 1, retention.BEST: 2, "pictures": 12,
    }  # fmt: skip
    assert world.copies() == []
    again = free(world, keep_best=2)
    assert again.items == []


def test_baselines_final_stays_whatever_its_rank(world):
    free(world, keep_best=0)
    assert world.kept() == {"good-1-0": [40], "good-2-0": [20], "fork-20-3-0": [20], "fork-20-4-0": [20]}


def test_a_trial_that_was_good_enough_before_its_last_step_has_its_final_there(world):
    write_state(world.folder.trial("good-2-0"), TrialState("complete", "target: cmmd 2.05 at step 20"))
    free(world, keep_best=2)
    assert world.kept()["good-2-0"] == [20]
    free(world, keep_best=1)
    assert world.kept()["good-2-0"] == []


def test_after_a_clean_up_the_sweep_goes_on_and_measurements_are_known(world):
    records = [path for path in paths(HistoryStore(world.history)) if path.endswith("entry.json")]
    free(world, keep_best=0)
    assert [path for path in paths(HistoryStore(world.history)) if path.endswith("entry.json")] == records
    trained = fakes.trained(world.folder.trial("good-2-0"))
    world.train("good-2-0", fakes.make_plan("good-2").trials[0], 40)
    assert fakes.trained(world.folder.trial("good-2-0")) == [*trained, *range(21, 41)]


def test_what_is_freed_is_counted_once_however_many_names_a_file_has(tmp_path):
    world = World(tmp_path / "runs", str(tmp_path / "history"))
    copies = collect(world.store, world.history, keep_best=9)
    assert [item.what for item in copies.items] == 4 * ["copy"]
    assert copies.freed == 0  # the history keeps the same files
    assert collect(world.store, world.history, keep_best=3).freed == len("fork-20-4 40")


def test_where_an_unfinished_search_may_start_a_trial_stays_until_it_is_over(tmp_path):
    world = World(tmp_path / "runs", str(tmp_path / "history"), stops={"good-2": 20})
    write_state(world.folder.trial("good-2-0"), TrialState("pruned"))
    forks = Forks(HistoryStore(world.history))
    forks.publish("search", [[replace(point, keep=point.step == 20) for point in world.points["good-2-0"]]])
    found = free(world, keep_best=9)
    assert world.kept()["good-2-0"] == [20]
    assert found.kept[OPEN][0] == 1
    forks.withdraw("search")
    free(world, keep_best=9)
    assert world.kept()["good-2-0"] == []


def test_a_running_sweep_is_left_alone(world):
    before = (world.kept(), world.copies())
    with exclusive(world.folder):
        found = free(world, keep_best=0)
    assert (world.kept(), world.copies()) == before
    assert found.notes == ["fake is running: nothing of it is touched"]
    assert found.items == []


def test_a_trial_that_outlived_its_driver_counts_as_running(world):
    leases = Leases(HistoryStore(world.history), "host/1")
    assert leases.take(world.points["good-2-0"][2].state)
    assert leases.held() == {world.points["good-2-0"][2].state: "host/1"}
    assert free(world, keep_best=0).items == []
    leases.release(world.points["good-2-0"][2].state)
    assert leases.held() == {}
    assert free(world, keep_best=0).items


def foreign(world: World) -> str:
    """Put a state into the history that no sweep of the store names."""
    key = "ef" + 30 * "1"
    source = world.store / "elsewhere"
    source.mkdir()
    (source / "weights").write_text("theirs")
    HistoryStore(world.history).put(key, "state", {"step": 10}, source)
    return key


def test_what_no_sweep_here_names_goes_only_when_told(world):
    key = foreign(world)
    found = free(world)
    assert found.kept[UNNAMED] == (1, 6)
    assert HistoryStore(world.history).get(key).files
    assert [item.why for item in free(world, unnamed=True).items] == [UNNAMED]
    assert HistoryStore(world.history).get(key).files == {}


def test_unnamed_stays_while_a_sweep_elsewhere_trains_or_an_old_one_is_silent(world):
    key = foreign(world)
    leases = Leases(HistoryStore(world.history), "other/7")
    assert leases.take("cd" + 30 * "2")
    assert "a sweep of another store is running (other/7): what is unnamed stays" in free(world, unnamed=True).notes
    leases.release("cd" + 30 * "2")
    old = SweepFolder(world.store, "old")
    write_info(old, fakes.make_info("good-9"))
    assert any("was run before sweeps wrote down" in note for note in free(world, unnamed=True).notes)
    assert HistoryStore(world.history).get(key).files


def test_leftovers_and_damage_go(world):
    store = HistoryStore(world.history)
    old = int(time.time()) - 100_000
    write(store, f"{store.root}/ab/{32 * 'a'}/{old}-{12 * 'c'}/weights", b"cut off")
    write(store, f"{store.root}/ab/{32 * 'a'}/{int(time.time())}-{12 * 'd'}/weights", b"on its way")
    write(store, f"{store.root}/ab/{32 * 'b'}/entry.json.damaged-1-abc", b"{")
    half = world.folder.trial("good-1-0") / "checkpoints" / "step-00000030.partial"
    half.mkdir(parents=True)
    (half / "weights").write_text("half")
    found = free(world, keep_best=9)
    assert {(item.what, item.why) for item in found.items} >= {
        ("upload", "cut off more than a day ago"), ("record", "damaged, set aside"), ("copy", "half-written"),
    }  # fmt: skip
    assert not half.exists()
    assert sum(32 * "a" in path for path in paths(store)) == 1  # an upload that may be on its way
    assert not any("damaged" in path or str(old) in path for path in paths(store))


def test_command_shows_then_frees(tmp_path, monkeypatch, capsys):
    world = World(tmp_path / "runs", str(tmp_path / "runs" / "history"))

    def command(*arguments) -> str:
        monkeypatch.setattr(sys, "argv", ["prx-sweep", "gc", "--store", str(world.store), *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        return capsys.readouterr().out

    text = command("--keep-best", "1")
    assert "checkpoint  fake   final, not among the best" in text
    assert "would free" in text
    assert "nothing was deleted: --yes frees it" in text
    assert "freed " in command("--keep-best", "1", "--yes")
    assert "nothing to free" in command("--keep-best", "1", "--yes")


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(UserError, match="--keep-best must be at least 0, got -1"):
        collect(tmp_path, None, keep_best=-1)
    with pytest.raises(UserError, match=r"--store: .*/nowhere does not exist"):
        collect(tmp_path / "nowhere", None)
    (tmp_path / "history" / "photos").mkdir(parents=True)
    with pytest.raises(UserError, match="holds photos and no"):
        collect(tmp_path, None)


def test_trials_of_several_runs_are_noted_together(tmp_path):
    path = tmp_path / "waypoints.json"
    assert recorded(path) is None
    record(path, "h", {"a": [Waypoint(10, "s", "m", True)]})
    record(path, "h", {"b": [Waypoint(20, "t", "n", True)]})
    assert recorded(path).trials == {"a": [(10, "s", "m")], "b": [(20, "t", "n")]}


def view(mode="min", **trials) -> SweepView:
    return SweepView("s", mode, tuple(TrialView(name, *given) for name, given in trials.items()))


def test_policy_ranks_by_the_sweeps_own_direction():
    done = {"a": ("complete", ("x", "a2"), 1.0), "b": ("complete", ("y", "b2"), 2.0)}
    assert needed([view(**done)], {"a2", "b2"}, 1) == {"a2": retention.BEST}
    assert needed([view("max", **done)], {"a2", "b2"}, 1) == {"b2": retention.BEST}


def test_policy_keeps_the_newest_that_is_there_and_nothing_of_the_pruned():
    found = needed([view(a=("failed", ("a1", "a2", "a3")), b=("pruned", ("b1", "b2")))], {"a1", "a2", "b1", "b2"}, 5)
    assert found == {"a2": retention.NEWEST}


def test_policy_sees_forks_across_sweeps():
    one, two = view(a=("pruned", ("t", "a2"))), view(b=("pruned", ("t", "b2")))
    assert needed([one], {"t"}, 5) == {}
    assert needed([one, two], {"t"}, 5) == {"t": retention.FORK}
