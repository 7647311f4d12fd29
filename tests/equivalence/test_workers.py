"""Two workers train what one does."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.equivalence.two_workers import train

ROOT = Path(__file__).parents[2]
STEPS = 3


def free_port() -> int:
    """Find a port below those the system hands out: the workers bind it seconds later, and nobody is given it."""
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port among a hundred")


def written(world, path: Path, settings: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Write a configuration whose caches are encoded."""
    second = world.repa(teacher=str(world.root / "dinov3"), layer=1, weight=0.2)
    losses = {"repa": world.repa(), "repa_v3": second, "contrastive": {"use": "contrastive"}}
    infrastructure = {"threads": 1, "device": "cpu", "zero_stage": 2} | changes
    settings = {"losses": losses, "infrastructure": infrastructure} | (settings or {})
    world.config(**settings)
    path.write_text(yaml.safe_dump(world.settings(**settings)))
    return path


def run_two(
    config: Path, cache: Path, folder: Path, module: str = "tests.equivalence.two_workers"
) -> list[dict[str, Any]]:
    """Train in two processes over the loopback, each running a module; gives what each found."""
    arguments = [str(config), str(cache), str(folder), str(folder / "result"), str(STEPS)]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    common |= {"GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", module, *arguments]
    processes = [
        subprocess.Popen(
            command,
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    return [torch.load(folder / f"result.{rank}", weights_only=True) for rank in (0, 1)]


@pytest.mark.slow
def test_two_workers_are_one(world, tmp_path):
    folder = tmp_path / "two"
    folder.mkdir()
    alone = train(written(world, tmp_path / "one.yaml"), world.cache, tmp_path / "one", STEPS)
    first, second = run_two(written(world, tmp_path / "two.yaml", workers=2, micro_batch=2), world.cache, folder)
    assert first["losses"] == second["losses"]
    assert first["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert first["terms"] == pytest.approx(alone["terms"], rel=1e-4)
    for name, value in alone["weights"].items():
        assert torch.equal(first["weights"][name], second["weights"][name])
        torch.testing.assert_close(first["weights"][name], value, rtol=1e-3, atol=2e-5)
    assert first["failure"] == second["failure"] == alone["failure"]
    assert alone["failure"] == "step 5: losses.contrastive became nan; the weights are those of step 4"
    assert len(second["images"]) == 0
    assert (first["images"].int() - alone["images"].int()).abs().max() <= 1
