"""What a search chooses is a function of results alone: not of the order of arrival, a kill or a clock."""

from __future__ import annotations

import optuna
import pytest
from optuna.trial import TrialState

from sweeps.results import read_results
from sweeps.search.mirror import open_storage
from tests.sweeps.searches import STOP, WEIGHT, Driver, Killed, plan

SPACE = f"  space:\n    {WEIGHT}: {{log_uniform: [0.05, 2.0]}}\n    {STOP}: {{choice: [25%, 50%, 75%, never]}}\n"
NUMBERS = (
    f"  space:\n    {WEIGHT}: {{log_uniform: [0.05, 2.0]}}\n    optimizer.lr: {{log_uniform: [1.0e-4, 1.0e-2]}}\n"
)
ONLY_REPA = "baseline: {alignment: repa_dinov2}\n"


def search(sampler, trials=12, batch=3, startup=4, space=SPACE):
    return f"  sampler: {sampler}\n  trials: {trials}\n  batch: {batch}\n  startup: {startup}\n{space}"


SEARCHES = {
    "tpe": search("tpe"),
    "multivariate_tpe": search("multivariate_tpe"),
    "nsga2": search("nsga2", batch=4),
    "random": f"  sampler: random\n  trials: 12\n{SPACE}",
    "cma_es": search("cma_es", batch=4, space=NUMBERS),
    "everything": search("tpe", space=SPACE) + "  within: all\n",
}


def planned(sampler):
    if sampler == "cma_es":
        return plan(SEARCHES[sampler], alignment="[repa_dinov2]")
    return plan(SEARCHES[sampler])


@pytest.fixture(scope="module", params=SEARCHES)
def finished(request, tmp_path_factory):
    """A search that ran to its end in one go."""
    here = planned(request.param)
    return request.param, here, Driver(here, tmp_path_factory.mktemp("store")).run()


def studies(driver, where="journal"):
    storage = open_storage(where, driver.folder.root)
    names = optuna.get_all_study_names(storage)
    return {name: optuna.load_study(study_name=name, storage=storage) for name in names}


def test_a_search_trains_as_many_points_as_it_was_told(finished):
    sampler, here, driver = finished
    names = [name for wave in driver.waves for name in wave]
    design = {cell.name for cell in here.cells} - {cell.name for cell in here.search.cells}
    points = {name.rpartition(" ")[0] for name in names} - design
    assert len(names) == len(set(names))
    assert len(points) == 12
    assert len(driver.waves) == 1 + here.search.num_waves
    assert (sampler == "random") == (len(driver.waves) == 1)
    assert all(status.state.state == "complete" for status in driver.ledger.trials.values())


def test_the_order_of_arrival_changes_nothing(finished, tmp_path):
    _, here, driver = finished
    assert Driver(here, tmp_path, order=1).run().waves == driver.waves


def test_a_search_killed_anywhere_goes_on_to_the_same_points_and_results(finished, tmp_path):
    sampler, here, driver = finished
    for kill in (0, 7, 11):
        store = tmp_path / str(kill)
        with pytest.raises(Killed):
            Driver(here, store, order=kill, kill_after=kill).run()
        again = Driver(planned(sampler), store, order=99).run()
        assert again.waves == driver.waves
        columns = [c for c in read_results(driver.folder.results).columns if c not in ("replayed", "wall_seconds")]
        whole, resumed = (
            read_results(d.folder.results)[columns].sort_values(["trial_id", "step"], ignore_index=True)
            for d in (driver, again)
        )
        assert whole.equals(resumed)
        assert _told(studies(again)) == _told(studies(driver))


def _told(found):
    return {
        name: [(t.params, t.state, t.values, t.intermediate_values, t.user_attrs["cell"]) for t in study.trials]
        for name, study in found.items()
    }


def test_a_search_that_ended_trains_nothing_more(finished):
    _, here, driver = finished
    again = Driver(here, driver.folder.root.parents[1]).run()
    assert again.waves == driver.waves
    assert all(status.replayed == {10, 20, 30, 40} for status in again.ledger.trials.values())


def test_the_study_says_what_was_trained(finished):
    _, here, driver = finished
    (study,) = studies(driver).values()
    assert study.study_name == f"found/{here.search.studies[0].name}"
    assert len({trial.user_attrs["cell_id"] for trial in study.trials}) >= 12
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}
    assert study.metric_names == ["cmmd"]
    statuses = {status.info.cell_id: status for status in driver.ledger.trials.values()}
    for trial in study.trials:
        status = statuses[trial.user_attrs["cell_id"]]
        curve = {step: entry["metrics"]["cmmd"] for step, entry in status.journal.boundaries.items()}
        assert (trial.intermediate_values, trial.value) == (curve, curve[40])
        assert {path: trial.params[path] for path in trial.params if path in status.info.values and path != STOP} == {
            path: value for path, value in status.info.values.items() if path in trial.params and path != STOP
        }


def test_the_study_shows_a_first_wave_while_it_trains(tmp_path):
    driver = Driver(planned("random"), tmp_path, kill_after=7)
    with pytest.raises(Killed):
        driver.run()
    (study,) = studies(driver).values()
    ended = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert (len(ended), len(study.trials)) == (7, 13)
    assert all(trial.state == TrialState.RUNNING for trial in study.trials if trial not in ended)


def test_more_trials_go_on_where_the_search_ended(tmp_path):
    short = Driver(planned("tpe"), tmp_path).run()
    longer = Driver(plan(search("tpe", trials=15)), tmp_path).run()
    assert longer.waves[: len(short.waves)] == short.waves
    assert [len(wave) for wave in longer.waves[len(short.waves) :]] == [3]


def test_points_that_fail_are_told_so_and_tried_again(tmp_path):
    here = planned("tpe")
    broken = here.search.cells[1].name
    (study,) = studies(Driver(here, tmp_path, fails=broken).run()).values()
    (told,) = [trial for trial in study.trials if trial.user_attrs["cell"] == broken]
    assert (told.state, told.user_attrs["reason"]) == (TrialState.FAIL, "RuntimeError: the fake broke")
    (again,) = studies(Driver(here, tmp_path).run()).values()
    states = [trial.state for trial in again.trials if trial.user_attrs["cell"] == broken]
    assert states == [TrialState.FAIL, TrialState.COMPLETE]


def test_points_whose_target_was_reached_count_with_their_last_value(tmp_path):
    driver = Driver(planned("tpe"), tmp_path, enough=1.4).run()
    (study,) = studies(driver).values()
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}
    lasts = {max(trial.intermediate_values): trial for trial in study.trials}
    assert len(lasts) > 1
    assert all(trial.value == trial.intermediate_values[step] for step, trial in lasts.items())


def test_another_point_to_try_first_is_told_no_other_points_results(tmp_path):
    def driver(first, **changes):
        return Driver(plan(search("tpe") + f"  first: [{first}]\n"), tmp_path, **changes)

    with pytest.raises(Killed):
        driver(f"{{{WEIGHT}: 0.3, {STOP}: 10}}", kill_after=1).run()
    found = driver(f"{{{WEIGHT}: 0.1, {STOP}: 10}}, {{{WEIGHT}: 0.3, {STOP}: 10}}").run()
    (study,) = studies(found).values()
    statuses = [status for status in found.ledger.trials.values() if WEIGHT in status.info.values]
    truth = {(s.info.values[WEIGHT], s.info.values[STOP]): s.last("cmmd") for s in statuses}
    told = {(t.params[WEIGHT], str(t.params[STOP])): t.value for t in study.trials if t.state == TrialState.COMPLETE}
    assert len(truth) == 13
    assert told | truth == told


def test_a_discrete_space_ends_when_it_is_exhausted(tmp_path):
    space = f"  space:\n    {WEIGHT}: {{choice: [0.25, 0.5]}}\n    {STOP}: {{choice: [10, 20, never]}}\n"
    driver = Driver(plan(search("tpe", trials=40, space=space)), tmp_path).run()
    names = {name for wave in driver.waves for name in wave if "weight" in name or name.startswith("repa")}
    # The design's own cell is weight 0.5, never: it is no point beside it.
    assert len(names) == 6
    (study,) = studies(driver).values()
    assert {tuple(trial.params.values()) for trial in study.trials} == {
        (weight, stop) for weight in (0.25, 0.5) for stop in (10, 20, "never")
    }


def test_a_torn_line_and_a_missing_study_are_made_good(tmp_path):
    driver = Driver(planned("tpe"), tmp_path).run()
    before = _told(studies(driver))
    journal = driver.folder.root / "study.journal"
    with journal.open("ab") as handle:
        handle.write(b'{"op_code": 4, "half')
    assert _told(studies(Driver(planned("tpe"), tmp_path).run())) == before
    journal.unlink()
    assert _told(studies(Driver(planned("tpe"), tmp_path).run())) == before
