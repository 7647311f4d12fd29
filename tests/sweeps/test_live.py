"""What a person sees: one line an event without a terminal, a table that fits with one."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from sweeps.ledger import Ledger, remaining_steps
from sweeps.live import LiveDisplay, PlainDisplay, open_display, seconds_text
from sweeps.results import SweepFolder, TrialState, append_journal, read_results, write_state
from tests.sweeps.fakes import make_info


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def boundary(step, **metrics):
    return {"step": step, "metrics": metrics, "wall_seconds": 1.0, "device_seconds": 1.0, "replayed": False}


def make_ledger(tmp_path, *names, **options):
    return Ledger(SweepFolder(tmp_path, "fake"), make_info(*names), clock=Clock(), **options)


def test_plain_lines(tmp_path):
    ledger = make_ledger(tmp_path, "base", "repa")
    output = io.StringIO()
    ledger.listeners.append(PlainDisplay(ledger, Console(file=output, width=40)))
    ledger.started_trial("repa-0")
    ledger.report("repa-0", {"step": 5})
    ledger._clock.now = 61.25
    ledger.paused("repa-0", "waits at rung 10")
    ledger.report("repa-0", boundary(10, cmmd=1.5, cmmd_se=0.25, adherence=0.5, samples_per_second=40.0))
    ledger.pruned("repa-0", "rung 10: cmmd 1.5 behind 1 (kept best 1 of 2)")
    ledger.started_trial("base-0")
    ledger.report("base-0", {"step": 10, "done": True, "failed": "NonFiniteError: step 10"})
    assert output.getvalue().splitlines() == [
        "[     0.0 s] started   repa  step 0/40",
        "[    61.2 s] boundary  repa  step 10/40  cmmd 1.5 ± 0.25  adherence 0.5  40.0 samples/s",
        "[    61.2 s] paused    repa  step 10/40  waits at rung 10",
        "[    61.2 s] pruned    repa  step 10/40  rung 10: cmmd 1.5 behind 1 (kept best 1 of 2)",
        "[    61.2 s] started   base  step 0/40",
        "[    61.2 s] failed    base  step 10/40  NonFiniteError: step 10",
    ]


@pytest.mark.parametrize("height", [8, 12, 40])
def test_the_table_never_outgrows_the_terminal(tmp_path, height):
    names = [f"cell{i}" for i in range(30)]
    ledger = make_ledger(tmp_path, *names)
    for name in names[:4]:
        ledger.started_trial(f"{name}-0")
        ledger.report(f"{name}-0", boundary(10, cmmd=1.0))
    ledger.paused("cell0-0", 10)
    ledger.report("cell0-0", {"step": 10})
    console = Console(file=io.StringIO(), width=100, height=height, force_terminal=True)
    with LiveDisplay(ledger, console, None, tmp_path) as display:
        drawn = console.render_lines(display, console.options, pad=False)
    assert len(drawn) < height
    text = "\n".join("".join(segment.text for segment in line) for line in drawn)
    assert "fake: 3 running, 1 paused, 26 pending" in text
    assert "cell1" in text.splitlines()[2]
    assert ("and " in text) == (height < 40)


def test_a_terminal_gets_the_table_and_a_pipe_gets_lines(tmp_path):
    ledger = make_ledger(tmp_path, "base")
    terminal = Console(file=io.StringIO(), force_terminal=True)
    with open_display(ledger, terminal, None, tmp_path) as display:
        assert isinstance(display, LiveDisplay)
    assert isinstance(open_display(ledger, Console(file=io.StringIO()), None, tmp_path), PlainDisplay)


def test_ledger_writes_states_and_results_as_things_happen(tmp_path):
    ledger = make_ledger(tmp_path, "base", "repa")
    ledger.begin()
    ledger.started_trial("base-0")
    ledger.report("base-0", boundary(10, cmmd=2.0))
    frame = read_results(ledger.folder.results)
    assert list(zip(frame["step"], frame["state"], frame["replayed"], strict=True)) == [
        (10, "running", False)
    ]
    ledger.report("base-0", boundary(40, cmmd=1.0))
    ledger.failed("repa-0", "RuntimeError: no")
    frame = read_results(ledger.folder.results)
    assert sorted(frame["state"]) == ["complete", "complete", "failed"]
    assert ledger.interrupted() == []
    assert ledger.trials["base-0"].best("cmmd", "min") == 1.0


def test_what_another_trial_trained_meanwhile_is_marked_as_replayed(tmp_path):
    ledger = make_ledger(tmp_path, "base")
    ledger.begin()
    ledger.started_trial("base-0")
    ledger.report("base-0", boundary(10, cmmd=2.0))
    ledger.report("base-0", boundary(20, cmmd=1.5) | {"replayed": True})
    ledger.report("base-0", boundary(10, cmmd=2.0) | {"replayed": True})  # tried again: it is its own
    assert [(row["step"], row["replayed"]) for row in ledger.rows()] == [(10, False), (20, True)]


def test_an_earlier_run_is_read_back(tmp_path):
    """Complete stays; failed and interrupted trials are tried again; pruned ones only stay under ASHA."""
    folder = SweepFolder(tmp_path, "fake")
    line = {"kind": "boundary", **boundary(40, cmmd=1.0)}
    append_journal(folder.trial("done-0"), line)
    for name, state in [("done", "running"), ("bad", "failed"), ("out", "pruned"), ("cut", "running")]:
        write_state(folder.trial(f"{name}-0"), TrialState(state, "why"))
    names = ("done", "bad", "out", "cut")
    halving = make_ledger(tmp_path, *names)
    assert [s.state.state for s in halving.trials.values()] == ["complete", "pending", "pending", "pending"]
    assert halving.rows()[0]["replayed"]
    asha = make_ledger(tmp_path, *names, keep_pruned=True)
    assert [s.state.state for s in asha.trials.values()] == ["complete", "pending", "pruned", "pending"]


@pytest.mark.parametrize(
    ("step", "rungs", "expected"),
    [
        (0, (), 40),
        (0, (10, 20), 10 + 10 / 2 + 20 / 4),
        (10, (10, 20), 10 / 2 + 20 / 4),
        (20, (), 20),
        (40, (), 0),
    ],
)
def test_remaining_steps(tmp_path, step, rungs, expected):
    status = make_ledger(tmp_path, "base").trials["base-0"]
    status.step = step
    assert remaining_steps(status, 40, rungs, 2.0) == pytest.approx(expected)


@pytest.mark.parametrize(("seconds", "text"), [(41.6, "42 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")])
def test_durations(seconds, text):
    assert seconds_text(seconds) == text
