"""Shared fixtures. Threads are set here once: two single-thread workers beat one with two threads."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """The tiny world of `tests/tiny.py`, built once a worker."""
    from tests.tiny import World

    return World(tmp_path_factory.mktemp("world"))
