"""Which trial trains a trunk, who comes after it, and which states stay for those who come later."""

from __future__ import annotations

from sweeps.history.forks import Forks, own_name
from sweeps.history.store import HistoryStore
from sweeps.order import in_order
from tests.sweeps.alone import points


def way(*stages: tuple[str, int]) -> list[str]:
    """Spell a trial's segments: ("a", 3) are a1 a2 a3, and so on from there."""
    found: list[str] = []
    for name, until in stages:
        found += [f"{name}{number}" for number in range(len(found) + 1, until + 1)]
    return found


def test_trials_that_share_nothing_stay_as_planned():
    assert in_order({name: way((name, 3)) for name in "cab"}) == ["c", "a", "b"]
    assert in_order({}) == []


def test_who_shares_most_trains_the_trunk_and_forks_follow_as_they_are_reached():
    ways = {f"stop{k}": way(("t", k), (f"f{k}", 6)) for k in (1, 2, 5)} | {"never": way(("t", 6))}
    assert in_order(ways) == ["stop5", "stop1", "stop2", "never"]


def test_distinct_trunks_come_before_anybody_who_would_wait():
    ways = {
        f"{trunk}-stop{k}": way((trunk, k), (f"{trunk}{k}", 6)) for trunk in ("a", "b") for k in (1, 3)
    } | {"alone": way(("c", 6))}  # fmt: skip
    assert in_order(ways) == ["a-stop1", "b-stop1", "alone", "a-stop3", "b-stop3"]


def test_a_fork_that_others_share_comes_before_theirs():
    ways = {
        "late": way(("t", 2), ("u", 4), ("v", 6)), "other": way(("t", 2), ("u", 4), ("w", 6)),
        "main": way(("t", 5), ("x", 6)), "early": way(("t", 5), ("y", 6)),
    }  # fmt: skip
    assert in_order(ways) == ["main", "late", "other", "early"]


def test_a_sweep_is_known_by_its_folder_and_not_by_the_path_of_it(tmp_path):
    """On two machines that share a history, two sweeps may lie at one path."""
    folder = tmp_path / "sweep"
    here = own_name(folder)
    assert own_name(folder) == here
    folder.rename(tmp_path / "other")
    assert own_name(folder) != here
    assert own_name(tmp_path / "other") == here


def test_states_stay_while_any_sweep_may_start_from_them(tmp_path):
    forks = Forks(HistoryStore(tmp_path))
    one, two = points("fork-20-1"), points("fork-20-2")
    forks.publish("one", [one])
    reader = Forks(HistoryStore(tmp_path))
    assert [reader.needed(point.state) for point in one] == [False, False, False, True]
    forks.publish("two", [two])
    assert [reader.needed(point.state) for point in one] == [False, True, False, True]
    assert reader.needed(two[3].state)
    forks.withdraw("two")
    forks.withdraw("two")
    assert [reader.needed(point.state) for point in one] == [False, False, False, True]
    assert not reader.needed("of nobody")
