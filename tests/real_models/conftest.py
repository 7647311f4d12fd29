"""The models of `folders.py`, written once a worker."""

from __future__ import annotations

import pytest

from tests.real_models.folders import write_all


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Give the folder that holds one folder for every model."""
    return write_all(tmp_path_factory.mktemp("models"))
