"""A Ray of our own for the modules that run sweeps of fakes."""

from __future__ import annotations

import pytest

from sweeps.logs import environment


@pytest.fixture(scope="module")
def ray_here():
    """A local Ray of two CPUs for this module; `run_sweep` joins it and leaves it alone."""
    import ray

    with environment():
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
                 _node_ip_address="127.0.0.1", object_store_memory=100 * 1024**2)  # fmt: skip
        yield
        ray.shutdown()
