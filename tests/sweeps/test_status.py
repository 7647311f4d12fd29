"""What `prx-sweep status` says of a sweep's folder."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from prx.errors import UserError
from sweeps.results import SweepFolder, TrialState, read_results, write_info, write_state
from sweeps.status import MOST_REASONS, find, render_status
from tests.sweeps.fakes import make_info


def shown(folder: SweepFolder) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=200).print(render_status(folder))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_reasons_of_failed_waiting_and_pruned_trials_come_failures_first(tmp_path):
    folder = SweepFolder(tmp_path, "fake")
    write_info(folder, make_info("base", "a", "b", "c", seeds=(0, 1)))
    write_state(folder.trial("a-0"), TrialState("pruned", "rung 10: cmmd 2 behind 1"))
    write_state(folder.trial("b-1"), TrialState("failed", "RuntimeError: [broke]"))
    write_state(folder.trial("c-0"), TrialState("paused", "waits for step 20"))
    write_state(folder.trial("base-0"), TrialState("complete"))
    lines = shown(folder)
    assert lines[0] == "fake: not running; 4 pending, 1 paused, 1 complete, 1 pruned, 1 failed"
    assert lines[2:5] == [
        "failed b (seed 1): RuntimeError: [broke]",
        "paused c (seed 0): waits for step 20",
        "pruned a (seed 0): rung 10: cmmd 2 behind 1",
    ]


def test_a_sweep_that_is_not_there_and_files_that_are_damaged_are_named(tmp_path):
    folder = SweepFolder(tmp_path, "fake")
    write_info(folder, make_info("base"))
    with pytest.raises(UserError, match=r"sweeps/fak: holds no sweep; must be one of fake; got 'fak' \(did you mean"):
        find("fak", tmp_path)
    assert find("fake", tmp_path).root == folder.root
    for text in ("{", "[]", "{}", '{"trials": [{"id": 1}]}'):
        folder.info.write_text(text)
        with pytest.raises(UserError, match=r"sweep\.json: is no plan of a sweep .*; `prx-sweep run` writes it anew"):
            render_status(folder)
    folder.results.write_text("junk")
    with pytest.raises(UserError, match=r"results\.parquet: is no table of results"):
        read_results(folder.results)


def test_many_reasons_are_counted(tmp_path):
    folder, names = SweepFolder(tmp_path, "fake"), [f"cell{n}" for n in range(MOST_REASONS + 5)]
    write_info(folder, make_info(*names))
    for name in names:
        write_state(folder.trial(f"{name}-0"), TrialState("pruned", "rung 10"))
    lines = shown(folder)
    assert sum(line.startswith("pruned cell") for line in lines) == MOST_REASONS
    assert f"and 5 more, in {folder.results}" in lines
