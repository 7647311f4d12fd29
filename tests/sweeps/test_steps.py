"""What was asked for, trained, taken over and spared, counted from journals."""

from __future__ import annotations

import pytest

from sweeps.results import (
    Journal,
    TrialState,
    append_journal,
    read_journal,
    read_steps_trained,
    write_steps_trained,
)
from sweeps.steps import Segment, Steps, count, segments, total


def journal(*counts: int | None, steps_trained: int) -> Journal:
    """Give a trial measured every 10 steps that had made so many updates at each boundary."""
    lines = {
        10 * number: {"step": 10 * number} | ({} if made is None else {"steps_trained": made})
        for number, made in enumerate(counts, start=1)
    }
    return Journal(lines, steps_trained=steps_trained)


def test_a_segment_that_added_no_update_was_taken_over():
    found = segments(journal(0, 10, 10, steps_trained=10))
    assert found == [Segment(10, 10, 0), Segment(20, 10, 10), Segment(30, 10, 0)]


@pytest.mark.parametrize(
    ("counts", "made", "state", "expected"),
    [
        ((10, 20, 30, 40), 40, "complete", Steps(40, 40, 0, 0, 0)),
        ((0, 0, 10, 20), 20, "complete", Steps(40, 20, 20, 0, 0)),
        ((10, 27, 37, 47), 47, "complete", Steps(40, 40, 0, 0, 7)),  # killed at step 17: 7 steps went twice
        ((10,), 15, "running", Steps(40, 10, 0, 0, 5)),
        ((0, 30), 30, "running", Steps(40, 10, 10, 0, 20)),  # state 10 was lost, and trained again
        ((10, 20), 20, "pruned", Steps(40, 20, 0, 20, 0)),
        ((10, 20), 20, "complete", Steps(40, 20, 0, 20, 0)),  # its target was reached
        ((10, 20), 20, "failed", Steps(40, 20, 0, 0, 0)),
        ((None, None), 0, "running", Steps(40, 20, 0, 0, 0)),
        ((), 0, "pending", Steps(40, 0, 0, 0, 0)),
    ],
)  # fmt: skip
def test_steps_of_a_trial(counts, made, state, expected):
    found = count(journal(*counts, steps_trained=made), TrialState(state), 40)
    assert found == expected
    assert found.asked == found.trained + found.taken_over + found.spared + found.left


def test_totals_are_written_in_words():
    trials = [
        (journal(10, 27, 37, 47, steps_trained=47), TrialState("complete")),
        (journal(0, 10, steps_trained=10), TrialState("pruned")),
        (Journal(), TrialState()),
    ]
    assert str(total(trials, 40)) == (
        "steps: 120 asked for, 50 trained, 10 replayed or shared, 20 spared by early stopping, 40 left; "
        "7 more in progress, or again after an interruption"
    )
    assert str(total([], 40)) == "steps: 0 asked for, 0 trained, 0 replayed or shared, 0 left"


def test_the_count_is_a_file_of_its_own(tmp_path):
    assert read_steps_trained(tmp_path) == 0
    write_steps_trained(tmp_path, 5)
    write_steps_trained(tmp_path, 12)
    assert read_steps_trained(tmp_path) == 12
    assert [path.name for path in tmp_path.iterdir()] == ["steps_trained"]


def test_a_count_that_a_crash_of_the_machine_left_empty_is_taken_from_the_journal(tmp_path):
    line = {"kind": "boundary", "step": 10, "metrics": {}, "wall_seconds": 1.0}
    append_journal(tmp_path, line | {"steps_trained": 10}, line | {"step": 20, "steps_trained": 25})
    (tmp_path / "steps_trained").write_text("")
    assert read_steps_trained(tmp_path) == read_journal(tmp_path).steps_trained == 25


def test_benchmark_of_replay_checks_what_it_measures(tmp_path):
    from sweeps.benchmarks import replay
    from sweeps.history.store import HistoryStore
    from sweeps.results import SweepFolder, read_info, read_results

    plan = replay.plan_of(20, "replay")
    replay.finish(plan, SweepFolder(tmp_path / "first", "replay"), HistoryStore(tmp_path / "history"))
    for store in ("first", "second"):
        assert replay.seconds(plan, tmp_path / store, tmp_path / "history") > 0
        frame = read_results(SweepFolder(tmp_path / store, "replay").results)
        assert len(frame) == 20 * 4
        assert frame["replayed"].all()
    assert read_info(SweepFolder(tmp_path / "second", "replay")).steps == 400
