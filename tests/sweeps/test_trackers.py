"""What trackers are told, without a sweep: every boundary once, whatever happens in between."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch

from prx.errors import ConfigError, UserError
from prx.images import save_grid
from prx.yamlsource import parse_yaml
from sweeps.results import SweepFolder, TrialState, append_journal, write_info, write_state
from sweeps.spec import parse_spec
from sweeps.tracking.follower import MOST_ERRORS, Copy, Follower
from sweeps.tracking.spec import TrackerSpec, check_trackers, plain
from sweeps.tracking.trackers import make_tracker
from tests.sweeps import fakes, trackers


class Memory:
    """A tracker that keeps what it is told; `broken` makes it fail."""

    where = "nowhere"

    def __init__(self):
        self.log, self.closed, self.has, self.broken = [], [], Counter(), False

    def open(self, trial):
        if self.broken:
            raise ConnectionError("the service is away\nand says a lot")
        return MemoryRun(self, trial.info.trial_id)


class MemoryRun:
    def __init__(self, memory, trial_id):
        self._memory, self._trial_id = memory, trial_id

    @property
    def has(self):
        return self._memory.has[self._trial_id]

    def log(self, trial, step):
        self._memory.log.append((self._trial_id, step, trial.metrics(step)["cmmd"]))
        self._memory.has[self._trial_id] = step

    def close(self, trial):
        self._memory.closed.append((self._trial_id, trial.state.state))


@pytest.fixture
def folder(tmp_path):
    found = SweepFolder(tmp_path, "fake")
    write_info(found, fakes.make_info("good-1", "good-2"))
    return found


def reach(folder, trial_id, step, state="running", reason="", picture=False):
    """Let a trial reach a boundary, in a state."""
    home = folder.trial(trial_id)
    if step:
        metrics = {"cmmd": 1 / step, "loss": 0.5}
        seconds = {"wall_seconds": float(step), "device_seconds": float(step)}
        append_journal(home, {"kind": "boundary", "step": step, "metrics": metrics, **seconds})
    write_state(home, TrialState(state, reason))
    if picture:
        save_grid(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), home / "samples" / f"step-{step:08d}.png")


def follow(folder, tracker, name="memory"):
    return Follower(folder, {name: Copy(tracker, folder.root / "tracking" / name)})


def test_every_boundary_is_told_once(folder):
    memory = Memory()
    follower = follow(folder, memory)
    follower.look()
    for step in (10, 20):
        reach(folder, "good-1-0", step)
        follower.look()
        follower.look()
    reach(folder, "good-1-0", 30, "complete")
    reach(folder, "good-2-0", 10, "pruned", "rung 10")
    follower.look(last=True)
    told = [entry[:2] for entry in memory.log]
    assert told == [("good-1-0", 10), ("good-1-0", 20), ("good-1-0", 30), ("good-2-0", 10)]
    assert memory.closed == [("good-1-0", "complete"), ("good-2-0", "pruned")]
    assert follower.outcome()["memory"]["left"] == 0
    follow(folder, memory).look(last=True)
    assert len(memory.log) == 4
    assert len(memory.closed) == 2


def test_a_run_that_goes_on_is_opened_again(folder):
    memory = Memory()
    reach(folder, "good-1-0", 10, "paused", "at rung 10")
    follow(folder, memory).look(last=True)
    reach(folder, "good-1-0", 20)
    follower = follow(folder, memory)
    follower.look()
    assert [step for _, step, _ in memory.log] == [10, 20]
    reach(folder, "good-1-0", 0, "pruned", "rung 20")
    follower.look()
    assert memory.closed == [("good-1-0", "paused"), ("good-1-0", "pruned")]


def test_a_trial_that_failed_before_its_first_boundary_is_told(folder):
    memory = Memory()
    reach(folder, "good-1-0", 0, "failed", "RuntimeError: broke")
    follow(folder, memory).look(last=True)
    assert memory.closed == [("good-1-0", "failed")]


def test_a_broken_tracker_stops_no_other_and_is_completed_later(folder):
    broken, sound = Memory(), Memory()
    broken.broken = True
    home = folder.root / "tracking"
    follower = Follower(folder, {"a": Copy(broken, home / "a"), "b": Copy(sound, home / "b")})
    for step in (10, 20, 30):
        reach(folder, "good-1-0", step)
        follower.look()
    reach(folder, "good-1-0", 40, "complete")
    follower.look(last=True)
    assert [step for _, step, _ in sound.log] == [10, 20, 30, 40]
    told = follower.outcome()
    assert told["a"] == {"where": "nowhere", "left": 1, "error": "ConnectionError: the service is away"}
    assert told["b"]["left"] == 0
    broken.broken = False
    follow(folder, broken, "a").look(last=True)
    assert [step for _, step, _ in broken.log] == [10, 20, 30, 40]


def test_a_tracker_that_does_not_answer_is_left_alone_until_the_sweeps_end(folder):
    memory = Memory()
    memory.broken = True
    copy = Copy(memory, folder.root / "tracking" / "memory")
    follower = Follower(folder, {"memory": copy})
    reach(folder, "good-1-0", 10)
    for _ in range(MOST_ERRORS):
        follower.look()
    memory.broken = False
    follower.look()
    assert memory.log == []
    assert follower.outcome()["memory"] == {
        "where": "nowhere", "left": 1, "error": "ConnectionError: the service is away",
    }  # fmt: skip
    follower.look(last=True)
    assert memory.log
    assert follower.outcome()["memory"]["left"] == 0


def settings(use, **more):
    return plain([TrackerSpec(use=use, **more)])[0]


KILLED = """
import os, signal, sys
from pathlib import Path
from sweeps.results import SweepFolder
from sweeps.tracking.follower import Copy, Follower
from sweeps.tracking.wandb_tracker import Wandb
root, home = map(Path, sys.argv[1:])
tracker = Wandb(home, {"project": "p", "entity": None, "mode": "offline"})
Follower(SweepFolder(root.parents[1], root.name), {"wandb": Copy(tracker, home)}).look()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_wandb_offline_runs_are_whole_and_single(folder, tmp_path):
    home = tmp_path / "wandb"
    for step in (10, 20):
        reach(folder, "good-1-0", step, picture=True)
    reach(folder, "good-2-0", 10, "failed", "NonFiniteError: loss")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder.root), str(home)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [run.exit_code for run in trackers.wandb_runs(home)] != [0]
    reach(folder, "good-1-0", 30, "complete", picture=True)
    again = follow(folder, make_tracker(settings("wandb", mode="offline", project="p"), home), "wandb")
    again.look(last=True)
    first, second = sorted(trackers.wandb_runs(home), key=lambda run: run.id)
    assert (first.id, first.name, first.group, first.project) == ("fake-good-1-0", "good-1 (seed 0)", "fake", "p")
    assert first.steps == [10, 20, 30]
    assert [row["cmmd"] for row in first.history] == [1 / 10, 1 / 20, 1 / 30]
    assert [path.read_bytes()[:4] for path in first.images()] == [b"\x89PNG"] * 3
    assert (first.summary["state"], first.exit_code) == ("complete", 0)
    assert first.config["levels"] == {"alignment": "good-1"}
    assert (second.steps, second.summary["state"], second.exit_code) == ([10], "failed", 1)


def test_tensorboard_run_opened_again_is_written_anew(folder, tmp_path):
    home = tmp_path / "events"
    reach(folder, "good-1-0", 10, picture=True)
    follow(folder, make_tracker(settings("tensorboard"), home), "tensorboard").look()
    reach(folder, "good-1-0", 20, "complete", picture=True)
    follow(folder, make_tracker(settings("tensorboard"), home), "tensorboard").look(last=True)
    (run,) = [path for path in home.iterdir() if path.name.startswith("good-1-seed-0")]
    values = trackers.tensorboard_values(run)
    assert [step for step, _ in values["cmmd"]] == [10, 20]
    assert [value for _, value in values["cmmd"]] == pytest.approx([0.1, 0.05])
    assert [content[:4] for _, content in values["samples"]] == [b"\x89PNG"] * 2


def test_tensorboard_takes_a_cell_whose_name_is_longer_than_a_files(folder, tmp_path):
    named = fakes.make_info("good-1")
    name = " · ".join(f"losses.repa{number}.weight=0.1234" for number in range(12))
    write_info(folder, replace(named, trials=(replace(named.trials[0], name=name),)))
    reach(folder, "good-1-0", 10, "complete")
    follower = follow(folder, make_tracker(settings("tensorboard"), tmp_path / "events"), "tensorboard")
    follower.look(last=True)
    assert follower.outcome()["tensorboard"]["left"] == 0
    (run,) = (tmp_path / "events").iterdir()
    assert run.name.endswith("-seed-0-good-1")


@pytest.mark.slow
def test_mlflow_has_every_boundary_once(folder, tmp_path):
    from mlflow import MlflowClient

    home = tmp_path / "mlflow"
    reach(folder, "good-1-0", 10, picture=True)
    follow(folder, make_tracker(settings("mlflow", project="p"), home), "mlflow").look()
    reach(folder, "good-1-0", 20, "complete", picture=True)
    reach(folder, "good-2-0", 10, "failed", "broke")
    follow(folder, make_tracker(settings("mlflow", project="p"), home), "mlflow").look(last=True)
    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    experiment = client.get_experiment_by_name("p")
    runs = {run.data.tags["trial_id"]: run for run in client.search_runs([experiment.experiment_id])}
    assert {key: run.info.status for key, run in runs.items()} == {"good-1-0": "FINISHED", "good-2-0": "FAILED"}
    good = runs["good-1-0"]
    history = client.get_metric_history(good.info.run_id, "cmmd")
    assert [(metric.step, metric.value) for metric in history] == [(10, 0.1), (20, 0.05)]
    assert {item.path for item in client.list_artifacts(good.info.run_id, "samples")} == {
        "samples/step-00000010.png", "samples/step-00000020.png",
    }  # fmt: skip
    assert (good.data.tags["sweep"], good.data.tags["levels.alignment"]) == ("fake", "good-1")


@pytest.mark.slow
def test_mlflow_shows_a_trial_under_every_sweep_that_has_it_whatever_its_workers(folder, tmp_path):
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    mlflow = settings("mlflow", project="p", uri=uri)
    other = SweepFolder(tmp_path, "other")
    write_info(other, replace(fakes.make_info("good-1"), name="other"))
    for sweep, step, workers in ((folder, 10, 1), (folder, 20, 2), (other, 10, 1)):
        reach(sweep, "good-1-0", step, "paused")
        (sweep.trial("good-1-0") / "config.yaml").write_text(f"infrastructure: {{workers: {workers}}}\n")
        follower = follow(sweep, make_tracker(mlflow, tmp_path / "home"), "mlflow")
        follower.look(last=True)
        assert follower.outcome()["mlflow"]["left"] == 0
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("p").experiment_id])
    steps = {
        run.data.tags["sweep"]: [metric.step for metric in client.get_metric_history(run.info.run_id, "cmmd")]
        for run in runs
    }
    assert steps == {"fake": [10, 20], "other": [10]}


SWEEP = "name: s\nbase: embedded\naxes: {alignment: [none]}\ntrial: {steps: 2, eval_every: 2}\ntracking:\n"


@pytest.mark.parametrize(
    ("tracking", "message"),
    [
        ("  - {use: wand}\n", "tracking[0].use: must be one of wandb, tensorboard, mlflow; got 'wand'"),
        ("  - {use: wandb}\n  - {use: wandb}\n", "s.yaml:7: tracking[1].use: must be distinct, got 'wandb' twice"),
        ("  - {use: tensorboard, project: p}\n", "tracking[0].project: tensorboard does not read it"),
        ("  - {use: wandb, uri: x}\n", "it reads project, entity, mode; got 'x'"),
        ("  - {use: wandb, mode: on}\n", "tracking[0].mode"),
        ("  - {use: wandb, key: abc}\n", "tracking[0].key: unknown key"),
    ],
)
def test_bad_trackers_are_named(tracking, message):
    with pytest.raises(ConfigError) as caught:
        parse_spec(parse_yaml(SWEEP + tracking, "s.yaml"))
    assert message in str(caught.value)


def test_wandb_is_offline_without_a_key(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8080/api")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert settings("wandb")["mode"] == "offline"
    with pytest.raises(UserError, match=r"online needs a key for wandb\.example\.org:8080"):
        check_trackers([TrackerSpec(use="wandb", mode="online")])
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(UserError, match="online needs a key"):
        check_trackers([TrackerSpec(use="wandb")])
    monkeypatch.delenv("WANDB_MODE")
    (tmp_path / "netrc").write_text("machine wandb.example.org:8080 login user password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    assert settings("wandb")["mode"] == "online"
    check_trackers([TrackerSpec(use="wandb", mode="online")])
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert plain([TrackerSpec(use="wandb"), TrackerSpec(use="tensorboard")]) == [settings("tensorboard")]


def test_mlflow_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="mlflow is not installed"):
        check_trackers([TrackerSpec(use="mlflow")])


class Online:
    """W&B's run with a service that has nothing yet."""

    starting_step, summary = 0, {}

    def __init__(self):
        self.steps = []

    def log(self, row, step):
        self.steps.append(step)

    def finish(self, exit_code):
        self.exit_code = exit_code


def test_a_run_that_went_online_leaves_no_folder_to_be_sent_over_it(folder, tmp_path, monkeypatch):
    tracker = make_tracker(settings("wandb", mode="online"), tmp_path / "wandb")
    monkeypatch.setattr("sweeps.tracking.wandb_tracker.service_url", lambda: "http://127.0.0.1:9")
    for trial_id in ("good-1-0", "good-2-0"):
        reach(folder, trial_id, 10, "paused")
    follow(folder, tracker, "wandb").look(last=True)
    assert len(trackers.wandb_runs(tmp_path / "wandb")) == 2
    online = Online()
    monkeypatch.setattr("sweeps.tracking.wandb_tracker.answers", lambda url: True)
    monkeypatch.setattr("wandb.init", lambda **settings: online)
    reach(folder, "good-1-0", 20, "complete")
    follow(folder, tracker, "wandb").look(last=True)
    assert online.steps == [10, 20]
    assert [run.id for run in trackers.wandb_runs(tmp_path / "wandb")] == ["fake-good-2-0"]


def test_wandb_that_cannot_be_reached_keeps_the_run_offline(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("sweeps.tracking.wandb_tracker.service_url", lambda: "http://127.0.0.1:9")
    reach(folder, "good-1-0", 10, "complete")
    tracker = make_tracker(settings("wandb", mode="online"), tmp_path / "wandb")
    follow(folder, tracker, "wandb").look(last=True)
    (run,) = trackers.wandb_runs(tmp_path / "wandb")
    assert (run.id, run.steps) == ("fake-good-1-0", [10])
    assert tracker.where == f"wandb sync {tmp_path}/wandb/offline-run-*"
