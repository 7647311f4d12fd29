"""Streamed metrics agree with the pure functions, on one worker and on several."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from evaluation.features import load_extractor
from evaluation.metrics import cmmd, dino_mmd, fid
from evaluation.streaming import CMMD, FID, DinoMMD

PAIRS = [(CMMD, cmmd), (DinoMMD, dino_mmd)]


def rows(num: int, seed: int) -> Tensor:
    return torch.randn(num, 5, generator=torch.Generator().manual_seed(seed)) + seed


@pytest.mark.parametrize(("streamed", "pure"), PAIRS)
def test_batches_equal_one_pass(streamed: type[CMMD], pure: Callable[..., float]) -> None:
    real, generated = rows(21, 1), rows(17, 2)
    metric = streamed(width=5)
    for batch in real.split(8):
        metric.update(batch, real=True)
    for batch in generated.split(5):
        metric.update(batch, real=False)
    assert float(metric.compute()) == pytest.approx(pure(generated, real), abs=1e-12)


def synced(workers: list[CMMD]) -> float:
    """Compute on the first worker with a gather that hands it every worker's state."""

    def gather(state: Tensor, group: Any = None) -> list[Tensor]:
        name = next(n for n in ("real", "generated") if torch.equal(torch.cat(getattr(workers[0], n)), state))
        return [torch.cat(getattr(worker, name)) for worker in workers]

    workers[0].dist_sync_fn = gather
    workers[0].distributed_available_fn = lambda: True
    return float(workers[0].compute())


@pytest.mark.parametrize("shares", [[9, 8], [17, 0], [3, 5, 9]])
def test_every_sample_of_every_worker_counts_once(shares: list[int]) -> None:
    real, generated = rows(17, 1), rows(17, 2)
    workers = []
    for real_part, generated_part in zip(real.split(shares), generated.split(shares), strict=True):
        workers.append(CMMD(width=5))
        if len(real_part):
            workers[-1].update(real_part, real=True)
            workers[-1].update(generated_part, real=False)
    assert synced(workers) == pytest.approx(cmmd(generated, real), abs=1e-12)


def test_reset_forgets() -> None:
    metric = CMMD(width=5)
    metric.update(rows(4, 9), real=True)
    metric.reset()
    metric.update(rows(6, 1), real=True)
    metric.update(rows(6, 2), real=False)
    assert float(metric.compute()) == pytest.approx(cmmd(rows(6, 2), rows(6, 1)), abs=1e-12)


def test_reset_stays_on_the_device() -> None:
    metric = CMMD(width=5).to("meta")
    metric.reset()
    assert {part.device.type for part in (*metric.real, *metric.generated)} == {"meta"}


def test_too_few_samples_and_wrong_widths_are_refused() -> None:
    metric = CMMD(width=5)
    metric.update(rows(4, 1), real=True)
    with pytest.raises(ValueError, match="cmmd: x must have at least 2 samples, got 0"):
        metric.compute()
    with pytest.raises(ValueError, match=r"embeddings must have shape \[B, 5\], got \[4, 3\]"):
        metric.update(torch.ones(4, 3), real=False)


def test_fid_streams_uint8_images(weights: dict[str, Path], images: Tensor) -> None:
    extractor = load_extractor("inception", weights["inception"])
    generated = (images.float() * 0.7).to(torch.uint8)
    metric = FID(extractor)
    for batch in images.split(16):
        metric.update(batch, real=True)
    for batch in generated.split(9):
        metric.update(batch, real=False)
    expected = fid(extractor.embed(generated), extractor.embed(images))
    assert float(metric.compute()) == pytest.approx(expected, rel=1e-4)


def test_fid_refuses_float_images(weights: dict[str, Path], images: Tensor) -> None:
    metric = FID(load_extractor("inception", weights["inception"]))
    with pytest.raises(ValueError, match="images must be uint8"):
        metric.update(images.float() / 255, real=True)
