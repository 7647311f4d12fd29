"""Journals that survive crashes, states, and the table made of them."""

from __future__ import annotations

import itertools
import json
import threading

import pytest

from prx.errors import UserError
from sweeps.results import (
    Journal,
    SweepFolder,
    TrialState,
    append_journal,
    collect,
    read_info,
    read_journal,
    read_results,
    read_state,
    trial_rows,
    write_info,
    write_results,
    write_state,
)
from tests.sweeps.fakes import make_info


def entry(step, **metrics):
    return {
        "kind": "boundary",
        "step": step,
        "metrics": metrics,
        "wall_seconds": step / 10,
        "device_seconds": 1.0,
    }


def test_journal_round_trip(tmp_path):
    append_journal(tmp_path, entry(10, cmmd=1.5))
    append_journal(tmp_path, {"kind": "interrupted", "step": 15, "wall_seconds": 1.7})
    journal = read_journal(tmp_path)
    assert journal.boundaries == {10: entry(10, cmmd=1.5)}
    assert journal.wall_seconds == 1.7
    assert journal.damage == []


def test_a_half_written_line_is_left_out_reported_and_overwritten(tmp_path):
    append_journal(tmp_path, entry(10, cmmd=1.5))
    path = tmp_path / "journal.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"kind": "boundary", "step": 20, "metr')
    journal = read_journal(tmp_path)
    assert list(journal.boundaries) == [10]
    assert journal.damage == [f"{path}:2: half-written line left out"]
    append_journal(tmp_path, entry(20, cmmd=1.0))
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [10, 20]
    assert read_journal(tmp_path).damage == []


@pytest.mark.parametrize("losses", ["1.5", ["1.5"], [1.5, 2.5, 3.5]])
def test_a_line_of_another_form_is_left_out_and_reported(tmp_path, losses):
    append_journal(tmp_path, entry(10, cmmd=1.5))
    append_journal(tmp_path, {"kind": "interrupted", "step": 15, "wall_seconds": 1.7, "losses": losses})
    journal = read_journal(tmp_path)
    assert (list(journal.boundaries), journal.losses) == ([10], {})
    assert len(journal.damage) == 1


def test_not_a_number_never_enters_the_journal(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_journal(tmp_path, entry(10, cmmd=float("nan")))
    assert read_journal(tmp_path).boundaries == {}


def test_states(tmp_path):
    assert read_state(tmp_path) == TrialState("pending")
    write_state(tmp_path, TrialState("pruned", "rung 10"))
    assert read_state(tmp_path) == TrialState("pruned", "rung 10")
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"state.json: is not the state of a trial .* delete it"):
        read_state(tmp_path)


def test_rows_of_a_trial():
    (trial,) = make_info("good-1").trials
    journal = Journal({10: entry(10, cmmd=2.0), 20: entry(20, cmmd=1.0)}, 2.0)
    rows = trial_rows(trial, journal, TrialState("pruned", "why"), replayed=[10])
    assert [(row["step"], row["cmmd"], row["replayed"]) for row in rows] == [
        (10, 2.0, True),
        (20, 1.0, False),
    ]
    assert {row["state"] for row in rows} == {"pruned"}
    assert trial_rows(trial, Journal(), TrialState("pending")) == []
    (failed,) = trial_rows(trial, Journal(), TrialState("failed", "ValueError: no"))
    assert (failed["step"], failed["state"], failed["reason"]) == (0, "failed", "ValueError: no")


def test_table_has_every_column_whatever_the_rows(tmp_path):
    info = make_info("good-1", "bad-2")
    path = tmp_path / "results.parquet"
    write_results([], info.axes, path)
    empty = read_results(path)
    rows = trial_rows(info.trials[0], Journal({10: entry(10, cmmd=2.0, own=3.0)}, 1.0), TrialState("running"))
    write_results(rows, info.axes, path)
    frame = read_results(path)
    assert set(frame.columns) - set(empty.columns) == {"own"}
    assert list(empty.columns) == [
        "trial_id", "cell_id", "name", "is_baseline", "seed", "alignment", "step",
        "cmmd", "cmmd_se", "dino_mmd", "dino_mmd_se", "fid", "fid_se", "adherence", "adherence_se",
        "clip_score", "clip_score_se", "knn_precision", "knn_precision_se", "knn_recall", "knn_recall_se",
        "density", "density_se", "coverage", "coverage_se",
        "cmmd_unbiased", "dino_mmd_unbiased", "num_samples", "loss", "samples_per_second", "batches_per_second",
        "state", "wall_seconds", "device_seconds", "replayed", "reason",
    ]  # fmt: skip
    assert frame.loc[0, "alignment"] == "good-1"
    assert frame["fid"].isna().all()
    assert [path.name for path in tmp_path.iterdir()] == ["results.parquet"]
    with pytest.raises(UserError, match="no boundary has been reached yet"):
        read_results(tmp_path / "none.parquet")


def test_a_table_that_is_replaced_all_the_time_is_read_whole(tmp_path):
    path, over = tmp_path / "results.parquet", threading.Event()
    trial = make_info("a").trials[0]

    def rows(count):
        return trial_rows(trial, Journal({step: entry(step, cmmd=1.0) for step in range(count)}), TrialState())

    tables = [rows(count) for count in (1, 5, 9)]

    def replace_it():
        for table in itertools.cycle(tables):
            write_results(table, list(trial.levels), path)
            if over.is_set():
                return

    write_results(tables[0], list(trial.levels), path)
    writer = threading.Thread(target=replace_it)
    writer.start()
    try:
        found = {len(read_results(path)) for _ in range(200)}
    finally:
        over.set()
        writer.join()
    assert found <= {1, 5, 9}


def test_collect_reads_a_sweep_back(tmp_path):
    folder, info = SweepFolder(tmp_path, "fake"), make_info("good-1", "good-2")
    with pytest.raises(UserError, match="holds no sweep"):
        read_info(folder)
    write_info(folder, info)
    assert read_info(folder) == info
    append_journal(folder.trial("good-1-0"), entry(10, cmmd=2.0))
    (folder.trial("good-1-0") / "journal.jsonl").open("ab").write(b"{")
    rows, damage = collect(folder, read_info(folder))
    assert [row["trial_id"] for row in rows] == ["good-1-0"]
    assert len(damage) == 1
