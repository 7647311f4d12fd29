"""A checkpoint continues at another ZeRO stage, and with another number of workers, as if nothing had changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from prx import reshard
from prx.engine import TAG
from prx.errors import UserError
from prx.reshard import Layout, Saved
from prx.trainer import Trainer, checkpoints
from tests.equivalence.test_workers import run_two
from tests.helpers import running, same, weights

MUON = {"optimizer": {"use": "muon", "lr": 1e-2}, "grad_clip": None}
ADAMW = {"optimizer": {"use": "adamw", "lr": 1e-3, "eps": 1e-8}, "grad_clip": 1.0}


def saved(trainer: Trainer, folder: Path) -> Saved:
    """Read what was written of a trainer's run."""
    return Saved(folder / TAG, trainer.engine._groups)


def assert_read(trainer: Trainer, folder: Path, scratch: Path) -> None:
    """Compare what a trainer read with what it would write."""
    trainer.engine.save(scratch)
    assert saved(trainer, scratch).layout != saved(trainer, folder).layout
    assert_equal(saved(trainer, folder), saved(trainer, scratch))


def newest(folder: Path) -> Path:
    (found,) = checkpoints(folder).values()
    return found


def assert_equal(first: Saved, second: Saved) -> None:
    """Compare every weight, every state and every buffer, bit for bit where the types agree."""
    for name in (name for names in first.groups for name in names):
        torch.testing.assert_close(first.weight(name), second.weight(name), rtol=0, atol=0)
        left, right = first.state(name), second.state(name)
        assert left.keys() == right.keys()
        assert left
        for key, value in left.items():
            torch.testing.assert_close(value, right[key], rtol=0, atol=0, check_dtype=False)
    assert same(first.buffers, second.buffers)


CASES = [
    *(("fp32", ADAMW, stages) for stages in [(0, 1), (0, 3), (2, 0), (3, 2)]),
    *(("fp32", MUON, stages) for stages in [(0, 2), (2, 3), (3, 0)]),
    *(("bf16_master", ADAMW, stages) for stages in [(0, 2), (3, 0)]),
    ("bf16_master", MUON, (2, 3)),
    ("bf16_pure", ADAMW, (1, 3)),
]


@pytest.mark.parametrize(("precision", "optimizer", "stages"), CASES)
def test_another_stage_continues(world, tmp_path, precision, optimizer, stages):
    losses = {"repa": world.repa(stop_step=3), "contrastive": {"use": "contrastive"}}
    changes = {"precision": precision, "losses": losses, "steps": 5, **optimizer}
    before, after = stages
    with running(world, tmp_path / "run", zero_stage=before, **changes) as trainer:
        trainer.advance(2)
        trainer.save()
        trained = weights(trainer)
    with running(world, tmp_path / "run", zero_stage=after, **changes) as trainer:
        assert trainer.resume() == 2
        assert same(weights(trainer), trained)
        assert_read(trainer, newest(tmp_path / "run"), tmp_path / "again")
        continued = [trainer.advance(step).loss for step in (3, 4, 5)]
    tolerance = 1e-5 if precision == "fp32" else 2e-3
    with running(world, tmp_path / "whole", zero_stage=before, **changes) as whole:
        whole.advance(2)
        assert continued == pytest.approx([whole.advance(step).loss for step in (3, 4, 5)], rel=tolerance)


REPA_E = {"use": "repa_e", "path": "kl", "gan_width": 8, "gan_depth": 2}
WORKERS = {
    # name: stages of one worker, two workers, one again; settings
    "0-2-0": ((0, 2, 0), {"ema": {"decay": 0.5, "every": 1}}),
    "3-3-2": ((3, 3, 2), {}),
    "2-0-3": ((2, 0, 3), {}),
    "muon": ((0, 2, 3), MUON),
    "muon-3": ((2, 3, 0), MUON),
    "master": ((3, 1, 0), {"precision": "bf16_master"}),
    "end-to-end": ((0, 2, 0), {"tokenizer": REPA_E}),
}


def cut(world, name: str, turn: int) -> dict[str, Any]:
    """Give the settings of a case: one worker, then two, then one."""
    stages, settings = WORKERS[name]
    evaluation = {"every": 2, "num_samples": 10, "batch_size": 4, "clip": None, "dino": None}  # three batches for two
    found = {"steps": 6, **ADAMW, "losses": {"repa": world.repa()}, "evaluation": evaluation, **settings}
    if "tokenizer" in settings:
        found["tokenizer"] = REPA_E | {"path": str(world.root / "kl")}
    infrastructure = {"threads": 1, "device": "cpu", "zero_stage": stages[turn], "workers": 2 if turn == 1 else 1}
    return world.settings(**found, infrastructure=infrastructure)


@pytest.mark.slow
def test_one_worker_two_workers_one_worker(world, tmp_path):
    shared, losses = tmp_path / "two", {}
    for name in WORKERS:
        config = world.config(**cut(world, name, 0))
        whole = Trainer(config, folder=tmp_path / "whole" / name, cache=world.cache)
        trainer = Trainer(config, folder=shared / name, cache=world.cache)
        trainer.advance(2)
        trainer.save()
        trainer.engine.save(tmp_path / "one" / name)
        whole.advance(4)
        losses[name] = [whole.advance(step).loss for step in (5, 6)], weights(trainer), trainer.sample()
        whole.close()
        trainer.close()
    (tmp_path / "cases.yaml").write_text(json.dumps({name: cut(world, name, 1) for name in WORKERS}))
    first, second = run_two(tmp_path / "cases.yaml", world.cache, shared, "tests.equivalence.two_shapes")
    for name, (expected, trained, images) in losses.items():
        assert first[name]["start"] == second[name]["start"] == 2
        assert same(first[name]["weights"], trained)
        assert same(second[name]["weights"], trained)
        assert torch.equal(first[name]["images"], images)
        assert len(second[name]["images"]) == 0
        trainer = Trainer(world.config(**cut(world, name, 2)), folder=shared / name, cache=world.cache)
        assert_equal(saved(trainer, tmp_path / "one" / name), saved(trainer, shared / name / "again"))
        assert saved(trainer, newest(shared / name)).layout == Layout.of(WORKERS[name][0][1], 2)
        assert trainer.resume() == 4
        assert_read(trainer, newest(shared / name), tmp_path / name)
        tolerance = 2e-2 if name == "master" else 1e-4
        assert [trainer.advance(step).loss for step in (5, 6)] == pytest.approx(expected, rel=tolerance)
        trainer.close()


def test_what_is_no_whole_checkpoint_is_refused(world, tmp_path):
    with running(world, tmp_path, zero_stage=2) as trainer:
        trainer.save()
        folder = newest(tmp_path) / TAG
        with pytest.raises(UserError, match="the models differ in denoiser"):
            Saved(folder, [["other"]])
    (shard,) = folder.glob("*_optim_states.pt")
    shutil.copy(shard, folder / "zero_pp_rank_1_mp_rank_00_optim_states.pt")
    with pytest.raises(UserError, match="1 workers wrote it, the files of 2 are there"):
        reshard.layout(folder)
    with pytest.raises(UserError, match="holds no checkpoint"):
        reshard.layout(tmp_path)
