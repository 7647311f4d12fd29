"""What early stopping reads from a configuration, and what a plan says and refuses of it."""

from __future__ import annotations

import pytest

from prx.config import parse_run_config
from prx.errors import ConfigError
from prx.yamlsource import parse_yaml
from sweeps.plan import make_plan
from sweeps.session import sweep_info
from sweeps.show_plan import _early
from sweeps.spec import parse_spec
from sweeps.stopping.pace import scheduled_until

REPA = {"use": "repa", "teacher": "embedded:dinov2", "layer": 1}


@pytest.mark.parametrize(
    ("settings", "step"),
    [
        ({}, 0),
        ({"losses": {"repa": REPA}}, 0),
        ({"losses": {"repa": REPA | {"schedule": "cosine"}}}, 0),
        ({"losses": {"repa": REPA | {"stop_step": 200}}}, 200),
        ({"losses": {"repa": REPA | {"stop_step": 200}, "late": REPA | {"stop_step": 240}}}, 240),
        ({"losses": {"repa": REPA | {"stop_step": 300}}}, 0),  # never within this run
        ({"routing": {"use": "sprint", "dense_from": 160}}, 160),
        ({"routing": {"use": "tread"}, "losses": {"repa": REPA | {"stop_step": 100}}}, 100),
    ],
)
def test_the_last_scheduled_change_within_a_run(settings, step):
    assert scheduled_until(parse_run_config({"steps": 300, **settings})) == step


def plan_of(scheduler, axes="{alignment: [none, repa_dinov2_stopped]}"):
    source = parse_yaml(
        f"name: s\nbase: embedded\naxes: {axes}\ntrial: {{steps: 300, eval_every: 100}}\nscheduler: {scheduler}\n",
        "s.yaml",
    )
    return make_plan(parse_spec(source), source)


def test_trials_carry_what_rungs_need():
    info = sweep_info(plan_of("{use: halving}"))
    assert [(trial.name, trial.scheduled_until) for trial in info.trials] == [
        ("baseline", 0), ("repa_dinov2_stopped", 120),
    ]  # fmt: skip
    assert info.trials[0].batch_size == plan_of("{use: halving}").trials[0].config.batch_size


def test_a_first_rung_beyond_the_shortest_run_is_refused():
    with pytest.raises(ConfigError) as caught:
        plan_of("{use: halving, unit: images, grace: 1000000}")
    assert "s.yaml:5: scheduler.grace: must be less than the images of the cell with the fewest (" in str(caught.value)


def test_the_plan_says_when_trials_may_end():
    assert _early(plan_of("{use: none}")).endswith("; no early stopping")
    shown = _early(plan_of("{use: halving, unit: device_seconds, grace: 60, stop: {target: {value: 0.1}}}"))
    assert "halving on cmmd at 60 device-seconds and every " in shown
    assert shown.endswith("; trials also end by: target")
