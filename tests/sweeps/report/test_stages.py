"""The stage tree on the page: which stretches cells share, what was trained and what taken over."""

from __future__ import annotations

import pandas as pd
import pytest
import yaml

from prx.yamlsource import parse_yaml
from sweeps.plan import make_plan
from sweeps.report.gather import gather
from sweeps.report.page import render
from sweeps.report.stages import stages
from sweeps.results import SweepFolder, TrialState, append_journal, collect, write_info, write_results, write_state
from sweeps.session import sweep_info
from sweeps.spec import parse_spec

TERM = {"use": "repa", "teacher": "embedded:dinov2", "layer": 1, "weight": 0.5}


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A baseline and REPA with two stops: the second takes its first 100 steps over from the first."""
    levels = [{"name": f"stop_{stop}", "patch": {"losses.repa": TERM | {"stop_step": stop}}} for stop in (100, 200)]
    sweep = {"name": "forks", "base": "embedded", "axes": {"alignment": ["none", *levels]},
             "trial": {"steps": 300, "eval_every": 100}}  # fmt: skip
    source = parse_yaml(yaml.safe_dump(sweep, sort_keys=False), "forks.yaml")
    plan = make_plan(parse_spec(source), source)
    folder, info = SweepFolder(tmp_path_factory.mktemp("store"), "forks"), sweep_info(plan)
    write_info(folder, info)
    for trial in plan.trials:
        home = folder.trial(trial.trial_id)
        for step in (100, 200, 300):
            own = step - 100 if trial.cell.name == "stop_200" else step
            append_journal(home, {"kind": "boundary", "step": step, "metrics": {"cmmd": 100.0 / step, "cmmd_se": 0.01},
                                  "wall_seconds": step, "device_seconds": step, "steps_trained": own})  # fmt: skip
        (home / "config.yaml").write_text(yaml.safe_dump(trial.config.model_dump(mode="json"), sort_keys=False))
        write_state(home, TrialState("complete"))
    write_results(collect(folder, info)[0], info.axes, folder.results)
    assert len(pd.read_parquet(folder.results)) == 9
    return gather(folder)


def test_what_a_cell_trained_and_what_it_took_over(material):
    found = stages(material)
    rows = {row.name: row for row in found.rows}
    assert (rows["stop_200"].trained, rows["stop_200"].taken_over) == (200, 100)
    assert [piece.own for piece in rows["stop_200"].pieces] == [0.0, 100.0, 100.0]
    assert (rows["baseline"].trained, rows["baseline"].taken_over) == (300, 0)
    assert (found.steps.asked, found.steps.trained, found.steps.taken_over) == (900, 800, 100)


def test_the_shared_trunk_and_its_fork(material):
    trunks = [(t.depth, t.start, t.end, t.name, t.cells) for t in stages(material).trunks]
    assert [trunk[:3] + trunk[4:] for trunk in trunks] == [(0, 0, 200, 2), (1, 100, 300, 1), (1, 200, 300, 1)]
    page = render(material)
    assert "Which stretches cells share" in page
    assert "100 replayed or shared" in page


def test_configurations_of_another_version_share_nothing_and_break_nothing(material):
    path = material.folder.trial(material.first_trial(material.cells[1].cell_id)) / "config.yaml"
    before = path.read_text()
    path.write_text("unknown: setting\n")
    try:
        assert stages(material).trunks == ()
    finally:
        path.write_text(before)
