"""A Ray of our own for the modules that run sweeps of fakes."""

from __future__ import annotations

import pytest

from sweeps.logs import environment
from tests.sweeps import places


@pytest.fixture(scope="module")
def ray_here():
    """A local Ray of two CPUs for this module; `run_sweep` joins it and leaves it alone."""
    import ray

    with environment():
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
                 _node_ip_address="127.0.0.1", object_store_memory=100 * 1024**2)  # fmt: skip
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def s3():
    """An S3 server on loopback: host:port."""
    with places.s3_server() as found:
        yield found


@pytest.fixture(params=places.KINDS)
def address(request, tmp_path) -> str:
    """The address of a new history, of every kind in turn."""
    server = request.getfixturevalue("s3") if request.param == "s3" else ""
    return places.address(request.param, tmp_path, server)
