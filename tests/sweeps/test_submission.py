"""How often a trial is tried again whose worker process died, and what is said of its end."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ray.tune import register_trainable

from sweeps.callbacks import Events
from sweeps.ledger import Ledger
from sweeps.results import SweepFolder
from sweeps.session import Session, sweep_info
from sweeps.submission import ATTEMPTS, HANDED_OUT, Submission, TrialQueue
from sweeps.trial import TrialActor
from tests.sweeps.fakes import make_plan


def test_what_a_trial_failed_of_is_not_what_it_failed_of_in_an_earlier_run(tmp_path):
    plan, folder = make_plan("good-1"), SweepFolder(tmp_path, "fake")
    (trial,) = plan.trials
    home = folder.trial(trial.trial_id)
    home.mkdir(parents=True)
    (home / "error.txt").write_text("NonFiniteError: of yesterday\n")
    Session._set_out(SimpleNamespace(folder=folder), plan.trials)
    ledger = Ledger(folder, sweep_info(plan))
    dead = SimpleNamespace(trial_id=trial.trial_id)
    Events(ledger, SimpleNamespace(), {}).on_trial_error(0, [], dead)
    assert ledger.trials[trial.trial_id].state.reason == "the worker process died: no word from it"


@pytest.fixture
def queue():
    register_trainable("stand-in", TrialActor)
    found = TrialQueue([Submission("a", {}), Submission("b", {})])
    found.add_configurations([SimpleNamespace(spec={"run": "stand-in"})])
    found.open(1, gpus=False)
    return found


def die(queue, began: bool) -> bool:
    """Hand the next trial out, and let its process die; says whether it is tried again."""
    trial = queue.next_trial()
    assert trial.trial_id.startswith("a")
    trial.began = began
    trial.status = trial.ERROR
    trial.died = True
    return queue.again(trial)


def test_a_trial_may_use_up_so_many_processes(queue):
    assert [die(queue, began=True) for _ in range(ATTEMPTS)] == [True] * (ATTEMPTS - 1) + [False]
    assert queue.next_trial().trial_id == "b"


def test_a_process_that_was_dead_before_is_not_used_up(queue):
    assert [die(queue, began) for began in (True, False, False, True, False)] == [True] * 5
    assert not die(queue, began=True)


def test_dead_processes_only_end_it_too(queue):
    assert [die(queue, began=False) for _ in range(HANDED_OUT)] == [True] * (HANDED_OUT - 1) + [False]
