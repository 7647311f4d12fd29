"""Sweeps from Python: what the documentation shows runs, and tables, trials and models are what the store holds."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

import sweeps
from prx.errors import ConfigError, UserError
from sweeps import Results, Sweep
from sweeps.results import SweepFolder, TrialState, append_journal, collect, write_info, write_results, write_state
from tests.sweeps.fakes import make_info

ROOT = Path(__file__).parents[2]
SWEEP = {
    "name": "tiny", "base": "embedded", "axes": {"alignment": ["none", "repa_dinov2"]},
    "trial": {"steps": 40, "eval_every": 10}, "set": {"warmup_steps": 10},
}  # fmt: skip


@pytest.fixture
def results(tmp_path) -> Results:
    """A sweep of three cells: one complete on two seeds, one pruned, one that never began."""
    folder, info = SweepFolder(tmp_path, "fake"), make_info("base", "repa", "late", seeds=(0, 1))
    write_info(folder, info)
    ends = {"base-0": (40, 0.5), "base-1": (40, 0.4), "repa-0": (40, 0.3), "repa-1": (20, 0.1)}
    for trial_id, (last, score) in ends.items():
        for step in range(10, last + 1, 10):
            entry = {"kind": "boundary", "step": step, "metrics": {"cmmd": score + 10 / step, "cmmd_se": 0.1},
                     "wall_seconds": step / 10, "device_seconds": step / 10}  # fmt: skip
            append_journal(folder.trial(trial_id), entry)
        state = TrialState("complete") if last == 40 else TrialState("pruned", "rung 20: behind")
        write_state(folder.trial(trial_id), state)
    write_results(collect(folder, info)[0], info.axes, folder.results)
    return Results(folder)


def test_the_tables(results):
    assert len(results.frame) == 14
    assert results.final["step"].to_dict() == {"base-0": 40, "repa-0": 40, "base-1": 40, "repa-1": 20}
    assert results.final.loc["base-1", "cmmd"] == pytest.approx(0.65)


def test_trials_are_found_by_id_and_by_name(results):
    assert [trial.info.trial_id for trial in results.trials] == [
        "base-0", "repa-0", "late-0", "base-1", "repa-1", "late-1",
    ]  # fmt: skip
    trial = results.trial("repa", seed=1)
    assert trial.state == TrialState("pruned", "rung 20: behind")
    assert list(trial.curve["step"]) == [10, 20]
    assert trial.metrics["cmmd"] == pytest.approx(0.6)
    assert results.trial("repa-1").seed == 1
    assert results.trial("late").metrics == {}
    with pytest.raises(UserError, match=r"trial: must be one of base \(seed 0\), .*; got 'bass \(seed 1\)'"):
        results.trial("bass", seed=1)


def test_the_best_is_complete(results):
    assert results.best().info.trial_id == "repa-0"
    with pytest.raises(UserError, match=r"metric: must be one of cmmd.*got 'cmd' \(did you mean 'cmmd'\?\)"):
        results.best("cmd")
    with pytest.raises(UserError, match="no trial of fake has fid at step 40 yet"):
        results.best("fid")


def test_what_is_not_there_is_named(results):
    trial = results.trial("base")
    with pytest.raises(UserError, match=r"step-00000040.png: does not exist; trial base \(seed 0\) has boundaries"):
        trial.samples()
    with pytest.raises(UserError, match=r"step: trial base \(seed 0\) has no checkpoint of step 30; .* kept: none"):
        trial.checkpoint(30)
    with pytest.raises(UserError, match=r"trial late \(seed 0\) has reached no boundary yet \(pending\)"):
        results.trial("late").load_model()


def test_the_leaderboard_draws(results):
    output = io.StringIO()
    Console(file=output, width=120).print(results.leaderboard())
    assert "repa" in output.getvalue()


def test_a_sweep_is_planned_when_it_is_made():
    sweep = Sweep.from_dict(SWEEP)
    assert [cell.name for cell in sweep.plan.cells] == ["baseline", "repa_dinov2"]
    output = io.StringIO()
    sweep.show(Console(file=output, width=120))
    assert "2 cells × 1 seed = 2 trials" in output.getvalue()
    with pytest.raises(ConfigError, match=r"trial\.eval_every: must divide trial\.steps \(40\), got 30"):
        Sweep.from_dict(SWEEP | {"trial": {"steps": 40, "eval_every": 30}})


def test_results_of_a_sweep_that_never_ran(tmp_path):
    with pytest.raises(UserError, match="holds no sweep"):
        Sweep.from_dict(SWEEP).results(tmp_path)


def test_importing_sweeps_imports_no_library():
    code = "import sys, sweeps; print(sorted({'torch', 'ray', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="has no attribute 'Swep'"):
        getattr(sweeps, "Swep")  # noqa: B009


@pytest.mark.slow
def test_the_documented_example_runs(tmp_path):
    """The example as it stands; afterwards the model is loaded again, from the history alone."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.DOTALL)
    code = code.replace('"sweeps/configs/', f'"{ROOT}/sweeps/configs/')
    code += """
import shutil, torch
shutil.rmtree(best.folder / "checkpoints")
again = best.load_model()
print("equal:", all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values())))
"""
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=tmp_path,
                          env=os.environ | environment, timeout=600, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d+ parameters", done.stdout)
    assert "equal: True" in done.stdout
    sweep = Sweep.from_yaml(ROOT / "sweeps" / "configs" / "smoke.yaml")
    assert list(sweep.results(tmp_path / "runs").final["step"]) == [40, 40]
