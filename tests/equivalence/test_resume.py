"""Resumed equals uninterrupted, bit for bit; an interrupted save costs nothing."""

from __future__ import annotations

import pytest
import torch

from prx import trainer as training
from prx.trainer import checkpoints
from tests.helpers import moments, running, same, weights


def equal_state(first, second) -> bool:
    tensors = zip(moments(first), moments(second), strict=True)
    return same(weights(first), weights(second)) and all(torch.equal(a, b) for a, b in tensors)


MODES = [(stage, precision) for stage in (0, 1, 2, 3) for precision in ("fp32", "bf16_master")]
MODES += [(2, "fp32_autocast_bf16"), (1, "bf16_pure"), (3, "bf16_pure")]


@pytest.mark.parametrize(("stage", "precision"), MODES)
def test_resumed_is_uninterrupted(world, tmp_path, stage, precision):
    losses = {"repa": world.repa(), "contrastive": {"use": "contrastive"}}
    changes = {"zero_stage": stage, "precision": precision, "losses": losses, "warmup_steps": 3, "steps": 5}
    with running(world, tmp_path / "whole", **changes) as whole:
        whole.advance(2)
        expected = [whole.advance(step).loss for step in (3, 4, 5)]
        with running(world, tmp_path / "parts", **changes) as trainer:
            trainer.advance(2)
            trainer.save()
        with running(world, tmp_path / "parts", **changes) as trainer:
            assert trainer.resume() == 2
            assert [trainer.advance(step).loss for step in (3, 4, 5)] == expected
            assert equal_state(trainer, whole)


def test_save_does_not_disturb_the_run(world, tmp_path):
    with running(world, tmp_path / "whole") as whole, running(world, tmp_path / "saved") as saved:
        whole.advance(3)
        for step in (1, 2, 3):
            saved.advance(step)
            saved.save()
        assert equal_state(whole, saved)


def test_resume_without_a_checkpoint_starts_anew(world, tmp_path):
    with running(world, tmp_path) as trainer:
        before = weights(trainer)
        assert trainer.resume() == 0
        assert same(weights(trainer), before)


def test_only_the_newest_checkpoint_is_kept(world, tmp_path):
    with running(world, tmp_path) as trainer:
        for step in (1, 2):
            trainer.advance(step)
            trainer.save()
        assert list(checkpoints(tmp_path)) == [2]
        trainer.save()
        assert list(checkpoints(tmp_path)) == [2]


@pytest.mark.parametrize("moment", ["writing", "renaming"])
def test_interrupted_save_leaves_the_older_checkpoint(world, tmp_path, monkeypatch, moment):
    with running(world, tmp_path) as trainer:
        trainer.advance(1)
        trainer.save()
        expected = weights(trainer)
        trainer.advance(2)
        write = trainer.engine.engine.save_checkpoint

        def cut(folder: str, **settings) -> None:
            write(folder, **settings)
            raise KeyboardInterrupt

        if moment == "writing":
            monkeypatch.setattr(trainer.engine.engine, "save_checkpoint", cut)
        else:
            monkeypatch.setattr(training.Path, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            trainer.save()
        monkeypatch.undo()
    assert list(checkpoints(tmp_path)) == [1]
    with running(world, tmp_path) as trainer:
        assert trainer.resume() == 1
        assert same(weights(trainer), expected)
        trainer.advance(2)
        trainer.save()
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


def test_train_continues_where_it_was_stopped(world, tmp_path):
    config = world.config(infrastructure={"threads": 1, "device": "cpu"})
    seen: list[int] = []

    def run(folder, stop_after: int) -> int:
        seen.clear()
        return training.train(
            config,
            folder=folder,
            cache=world.cache,
            report=lambda trainer, progress: seen.append(progress.step),
            should_stop=lambda: len(seen) >= stop_after,
            chunk_seconds=1e9,
        )

    assert run(tmp_path / "whole", 9) == 4
    assert seen == [2, 4]
    assert run(tmp_path / "parts", 1) == 2
    assert run(tmp_path / "parts", 9) == 4
    assert seen == [4]
    assert run(tmp_path / "parts", 9) == 4
    assert seen == []
    with running(world, tmp_path / "whole") as whole, running(world, tmp_path / "parts") as parts:
        assert whole.resume() == parts.resume() == 4
        assert equal_state(whole, parts)
