"""`python -m prx train`: what it refuses before anything is encoded, and what it does alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from prx import __main__ as command
from prx import recipe
from prx.config import parse_run_config
from prx.trainer import Trainer, checkpoints


@pytest.fixture
def train(world, tmp_path, monkeypatch, capsys):
    """Run the command over the tiny world with some settings; gives the exit code and what it said."""

    def run(out: str = "out", **changes: Any) -> tuple[int, str]:
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump(world.settings(**changes)))
        given = ["prx", "train", str(file), "--out", str(tmp_path / out), "--cache", str(world.cache)]
        monkeypatch.setattr(sys, "argv", given)
        with pytest.raises(SystemExit) as stopped:
            command.main()
        return int(stopped.value.code or 0), capsys.readouterr().err

    return run


def line_of(file: Path, text: str) -> int:
    return next(n for n, line in enumerate(file.read_text().splitlines(), 1) if text in line)


def test_another_configuration_does_not_go_on_from_what_a_folder_holds(train, tmp_path):
    assert train(steps=2)[0] == 0
    before = (tmp_path / "out" / "config.yaml").read_text()
    code, said = train(steps=2, seed=5, optimizer={"use": "adamw", "lr": 0.01, "eps": 1e-8})
    file, kept = tmp_path / "run.yaml", tmp_path / "out" / "config.yaml"
    rule = f"must be as in {kept}, whose checkpoints --out {tmp_path / 'out'} holds; name another folder, or remove"
    assert code == 2
    assert f"{file}:{line_of(file, 'seed')}: seed: {rule} this one: it is 0 there, got 5" in said
    assert f"{file}:{line_of(file, 'lr:')}: optimizer.lr: {rule} this one: it is 0.001 there, got 0.01" in said
    assert kept.read_text() == before
    assert train("other", steps=2, seed=5)[0] == 0


def test_a_run_may_be_lengthened_unless_a_weight_leans_towards_its_end(train, world, tmp_path):
    assert train(steps=2)[0] == 0
    assert train(steps=4, name="longer", sampling={"num_steps": 1})[0] == 0
    assert list(checkpoints(tmp_path / "out")) == [4]
    falling = {"repa": world.repa(schedule="linear")}
    world.config(losses=falling)
    assert train("falling", steps=2, losses=falling)[0] == 0
    code, said = train("falling", steps=4, losses=falling)
    assert code == 2
    assert "steps: must be as in " in said
    assert said.strip().endswith("it is 2 there, got 4")


def test_no_more_pictures_are_drawn_than_shown(train, world, monkeypatch):
    """The metrics' ten thousand would be hours of sampling for a grid of sixteen."""
    drawn, real = [], Trainer._draw
    monkeypatch.setattr(
        Trainer, "_draw", lambda self, start, stop, how: drawn.append(stop) or real(self, start, stop, how)
    )
    assert train(steps=2, evaluation=world.settings()["evaluation"] | {"num_samples": 16, "grid": 4})[0] == 0
    assert drawn == [4]


def test_workers_are_the_processes_that_were_started(train, tmp_path, monkeypatch):
    code, said = train(infrastructure={"workers": 2, "device": "cpu"})
    assert code == 2
    line = line_of(tmp_path / "run.yaml", "workers")
    rule = "must be the number of processes that were started"
    assert f"run.yaml:{line}: infrastructure.workers: {rule} (1; torchrun --nproc-per-node starts more), got 2" in said
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, said = train(infrastructure={"device": "cpu"})
    assert code == 2
    assert f"infrastructure.workers: {rule} (2; torchrun --nproc-per-node starts more), got 1" in said
    assert not (tmp_path / "out").exists()


def test_each_process_of_a_launcher_takes_its_own_gpu(world, monkeypatch):
    current = [0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: current.__setitem__(0, index))
    monkeypatch.setenv("LOCAL_RANK", "1")
    auto = parse_run_config(world.settings(infrastructure={}))
    command._take_device(auto)
    assert recipe.device_of(auto) == torch.device("cuda", 1)
    current[0] = 0
    command._take_device(parse_run_config(world.settings()))
    assert current == [0], "a run on the CPU leaves the GPUs alone"
