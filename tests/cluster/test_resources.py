"""What a trial reserves, and how many of its shape fit."""

from __future__ import annotations

import pytest

from cluster.resources import DRIVER_CPUS, TrialShape, concurrency, resources


def test_one_worker_is_the_trial_itself():
    assert resources(TrialShape()) == {"CPU": 1}
    assert resources(TrialShape(1, 4, 0.5)) == {"CPU": 4, "GPU": 0.5}


def test_several_workers_leave_a_driver_with_a_request_that_is_not_empty():
    assert resources(TrialShape(2, 4, 1)) == {"CPU": DRIVER_CPUS}


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((0, 1, 0), "trial.workers must be at least 1, got 0"),
        ((1, 0, 0), "trial.cpus_per_worker must be above 0, got 0"),
        ((1, 1, 1.5), "trial.gpus_per_worker must be a whole number or between 0 and 1, got 1.5"),
        ((1, 1, -1), "trial.gpus_per_worker must be a whole number or between 0 and 1, got -1"),
    ],
)
def test_a_shape_out_of_range_is_refused(shape, text):
    with pytest.raises(ValueError, match=text):
        TrialShape(*shape)


@pytest.mark.parametrize(
    ("shape", "available", "count"),
    [
        (TrialShape(), {"CPU": 2}, 2),
        (TrialShape(), {"CPU": 2.9}, 2),
        (TrialShape(1, 0.1), {"CPU": 1}, 10),
        (TrialShape(1, 4, 1), {"CPU": 64, "GPU": 8}, 8),
        (TrialShape(1, 16, 1), {"CPU": 64, "GPU": 8}, 4),
        (TrialShape(1, 1, 0.25), {"CPU": 64, "GPU": 1}, 4),
        (TrialShape(4, 4, 1), {"CPU": 64, "GPU": 8}, 2),
        # The drivers count too: two trials would need 4.02 CPUs, and each would wait for the other's.
        (TrialShape(2, 1), {"CPU": 4}, 1),
        (TrialShape(2, 1), {"CPU": 5}, 2),
    ],
)
def test_the_scarcest_resource_decides(shape, available, count):
    assert concurrency(shape, available) == count


def test_a_growing_cluster_counts_at_its_ceiling():
    shape = TrialShape(1, 4, 1)
    assert concurrency(shape, {"CPU": 0}, ceiling={"CPU": 32, "GPU": 8}) == 8
    assert concurrency(shape, {"CPU": 64, "GPU": 16}, ceiling={"CPU": 32, "GPU": 8}) == 16


def test_a_worker_must_fit_into_one_machine():
    nodes = [{"CPU": 6, "GPU": 6}, {"CPU": 6, "GPU": 6}]
    assert concurrency(TrialShape(1, 4, 4), {"CPU": 12, "GPU": 12}) == 3
    assert concurrency(TrialShape(1, 4, 4), {"CPU": 12, "GPU": 12}, nodes=nodes) == 2


def test_a_shape_that_never_fits_says_what_is_needed_and_what_there_is():
    with pytest.raises(ValueError, match=r"trial.workers must fit .* 1 worker of 4 CPU, 1 GPU") as error:
        concurrency(TrialShape(1, 4, 1), {"CPU": 2})
    assert str(error.value).endswith("need 4 CPU, 1 GPU; there is 2 CPU, 0 GPU")


def test_the_driver_is_named_where_it_is_what_does_not_fit():
    with pytest.raises(ValueError, match=r"need 2.01 CPU, of which the trial.s driver 0.01 CPU;"):
        concurrency(TrialShape(2, 1), {"CPU": 2})


def test_machines_are_named_where_only_their_sum_would_do():
    nodes = [{"CPU": 2}, {"CPU": 2}]
    with pytest.raises(ValueError, match=r"no set of machines holds every worker whole \(2 CPU; 2 CPU\)"):
        concurrency(TrialShape(1, 3), {"CPU": 4}, nodes=nodes)
