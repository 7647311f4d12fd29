"""The series behind CMMD of many embeddings against float64 sums over every pair."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from evaluation import unit_mmd
from evaluation.metrics import MmdResult, mmd_result, normalise

FORMATS = [torch.float32, torch.bfloat16]


def embeddings(num: int, seed: int, *, common: float, shift: float) -> Tensor:
    """Draw rows around a common direction, as networks give them."""
    noise = torch.randn(num, 40, generator=torch.Generator().manual_seed(seed)) * torch.linspace(1, 0.1, 40)
    rows = noise / noise.norm(dim=1, keepdim=True)
    rows[:, 0] += common
    rows[:, 1] += shift
    return 3.0 * rows


def series(x: Tensor, y: Tensor) -> MmdResult:
    return unit_mmd.unit_mmd_result(x, y, "cmmd", exact_pairs=0)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("common", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("shift", [0.0, 0.1, 2.0])
def test_agrees_with_all_pairs(monkeypatch: pytest.MonkeyPatch, dtype, common: float, shift: float) -> None:
    monkeypatch.setattr(unit_mmd, "short_format", lambda device: dtype)
    monkeypatch.setattr(unit_mmd, "BLOCK", 300)
    x, y = embeddings(700, 1, common=common, shift=0), embeddings(500, 2, common=common, shift=shift)
    exact, found = mmd_result(normalise(x), normalise(y)), series(x, y)
    assert found.biased == pytest.approx(exact.biased, rel=1e-6)
    assert found.unbiased - found.biased == pytest.approx(exact.unbiased - exact.biased, rel=1e-6)
    assert found.se == pytest.approx(exact.se, rel=0.01)


@pytest.mark.parametrize("dtype", FORMATS)
def test_extreme_directions(monkeypatch: pytest.MonkeyPatch, dtype) -> None:
    """Where the series is longest, at inner products of 1, 0 and -1, what it leaves out is below 4e-9."""
    monkeypatch.setattr(unit_mmd, "short_format", lambda device: dtype)
    one, other = torch.tensor([[1.0, 0.0]] * 30), torch.tensor([[0.0, 1.0]] * 20)
    for x, y in ((one, other), (one, -one), (one, torch.cat([one, other]))):
        assert series(x, y).biased == pytest.approx(mmd_result(x, y).biased, rel=1e-6)
    assert series(one, one).biased == pytest.approx(0, abs=1e-9)


def test_small_sets_are_summed_exactly() -> None:
    x, y = embeddings(60, 1, common=1, shift=0), embeddings(50, 2, common=1, shift=0.1)
    assert unit_mmd.unit_mmd_result(x, y, "cmmd") == mmd_result(normalise(x), normalise(y))


def test_no_block_outgrows_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    terms = unit_mmd._third_and_fourth

    def recording(products: Tensor) -> float:
        sizes.append(products.numel())
        return terms(products)

    monkeypatch.setattr(unit_mmd, "_third_and_fourth", recording)
    monkeypatch.setattr(unit_mmd, "BLOCK", 16)
    series(embeddings(60, 1, common=1, shift=0), embeddings(33, 2, common=1, shift=0))
    # 4 blocks of x and 3 of y: each pair once, by symmetry 10 + 6 within and 12 between.
    assert (max(sizes), len(sizes)) == (256, 28)


def test_memory_grows_with_the_rows_not_with_the_pairs() -> None:
    """Pairs of 12,000 rows are 576 MB a matrix in float32; the inputs are 3 MB each."""
    code = """
import resource, torch
from evaluation.metrics import cmmd_result
generator = torch.Generator().manual_seed(0)
x, y = (torch.randn(12000, 64, generator=generator) for _ in range(2))
cmmd_result(x[:6000], y[:6000])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
cmmd_result(x, y)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 60_000
