"""MMD, CMMD and DINO-MMD against brute force and the identities that define them."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluation import mmd as kernels
from evaluation.metrics import cmmd, dino_mmd, mmd, mmd_result, normalise


def gaussian(num: int, width: int = 6, *, seed: int = 0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, width, generator=generator, dtype=torch.float64) + shift


def brute_force(x: Tensor, y: Tensor, sigma: float, biased: bool) -> float:
    def kernel(a: Tensor, b: Tensor) -> float:
        return math.exp(-sum((float(p) - float(q)) ** 2 for p, q in zip(a, b, strict=True)) / (2 * sigma**2))

    def within(rows: Tensor) -> float:
        pairs = [(i, j) for i in range(len(rows)) for j in range(len(rows)) if biased or i != j]
        return math.fsum(kernel(rows[i], rows[j]) for i, j in pairs) / len(pairs)

    between = math.fsum(kernel(a, b) for a in x for b in y) / (len(x) * len(y))
    return 1000 * (within(x) + within(y) - 2 * between)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("sigma", [1.0, 10.0])
def test_agrees_with_a_double_loop(sigma: float, biased: bool) -> None:
    x, y = gaussian(9), gaussian(7, seed=1, shift=0.4)
    expected = brute_force(x, y, sigma, biased)
    assert mmd(x, y, sigma=sigma, biased=biased) == pytest.approx(expected, abs=1e-9)


def test_known_values_of_unit_points() -> None:
    first, second = torch.tensor([[1.0, 0.0]] * 3), torch.tensor([[0.0, 1.0]] * 4)
    assert mmd(first, second) == pytest.approx(2000 * (1 - math.exp(-0.01)), abs=1e-9)
    assert mmd(first, second) == pytest.approx(19.900, abs=5e-4)
    assert mmd(first, -first) == pytest.approx(39.603, abs=5e-4)


@pytest.mark.parametrize("metric", [cmmd, dino_mmd])
def test_scaling_of_rows_does_not_matter(metric) -> None:
    x, y = gaussian(12), gaussian(10, seed=1, shift=0.5)
    scaled = x * torch.linspace(0.1, 9.0, 12)[:, None]
    assert metric(scaled, y) == pytest.approx(metric(x, y), abs=1e-10)
    assert metric(x, y) == pytest.approx(mmd(normalise(x), normalise(y)), abs=1e-12)


def test_equal_sets_are_at_zero() -> None:
    x = gaussian(50)
    assert cmmd(x, x.clone()) == pytest.approx(0, abs=1e-9)
    assert cmmd(x, x[torch.randperm(50)]) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("biased", [True, False])
def test_symmetric(biased: bool) -> None:
    x, y = gaussian(20), gaussian(13, seed=1, shift=0.2)
    assert cmmd(x, y, biased=biased) == pytest.approx(cmmd(y, x, biased=biased), abs=1e-10)


@pytest.mark.parametrize("chunk", [1, 7, 20, 4096])
@pytest.mark.parametrize("biased", [True, False])
def test_chunk_does_not_matter(chunk: int, biased: bool) -> None:
    x, y = gaussian(20), gaussian(13, seed=1, shift=0.2)
    assert mmd(x, y, biased=biased, chunk=chunk) == pytest.approx(mmd(x, y, biased=biased), abs=1e-10)


def test_no_block_outgrows_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    kernel = kernels.kernel_minus_one

    def recording(a: Tensor, b: Tensor, gamma: float) -> Tensor:
        sizes.append((len(a), len(b)))
        return kernel(a, b, gamma)

    monkeypatch.setattr(kernels, "kernel_minus_one", recording)
    mmd_result(gaussian(20), gaussian(13, seed=1), chunk=6)
    assert max(max(size) for size in sizes) == 6
    # 4 blocks of x and 3 of y: each pair once, by symmetry 10 + 6 within and 12 between.
    assert len(sizes) == 28


def test_inputs_are_left_alone() -> None:
    x, y = gaussian(8), gaussian(8, seed=1)
    kept = x.clone()
    cmmd(x, y)
    assert torch.equal(x, kept)


def test_rotation_and_permutation_do_not_matter() -> None:
    x, y = gaussian(30), gaussian(25, seed=1, shift=0.3)
    rotation = torch.linalg.qr(gaussian(6, seed=2)).Q
    assert cmmd(x @ rotation, y @ rotation) == pytest.approx(cmmd(x, y), abs=1e-10)
    assert cmmd(x.flip(0), y[torch.randperm(25)]) == pytest.approx(cmmd(x, y), abs=1e-10)


def test_duplicates_leave_the_biased_estimate_and_move_the_unbiased_one() -> None:
    x, y = gaussian(15), gaussian(12, seed=1)
    twice = (torch.cat([x, x]), torch.cat([y, y]))
    assert cmmd(*twice) == pytest.approx(cmmd(x, y), abs=1e-10)
    assert cmmd(*twice, biased=False) > cmmd(x, y, biased=False) + 0.1


def test_unbiased_mean_is_zero_and_biased_mean_is_the_known_bias() -> None:
    rows = normalise(gaussian(600, 16, shift=0.25))
    values: dict[bool, list[float]] = {True: [], False: []}
    for seed in range(40):
        order = torch.randperm(600, generator=torch.Generator().manual_seed(seed))
        for biased, found in values.items():
            found.append(cmmd(rows[order[:40]], rows[order[40:80]], biased=biased))
    noise = np.std(values[False], ddof=1) / np.sqrt(40)
    expected_bias = 10 * (1 - float(rows.mean(dim=0).square().sum())) * (1 / 40 + 1 / 40)
    assert abs(np.mean(values[False])) < 4 * noise
    assert np.mean(values[True]) == pytest.approx(expected_bias, rel=0.15)


def test_float32_inputs_keep_their_digits() -> None:
    x = gaussian(64, 512, shift=3.0).float()
    y = x + 1e-4 * gaussian(64, 512, seed=1).float()
    exact = mmd(normalise(x), normalise(y))
    assert cmmd(x, y) == pytest.approx(exact, rel=1e-9)
    assert 0 < exact < 1e-4


def test_numpy_and_torch_agree() -> None:
    x, y = gaussian(8), gaussian(8, seed=1)
    frozen = x.numpy().copy()
    frozen.flags.writeable = False
    assert mmd(frozen, y.numpy()) == mmd(x, y)
    assert mmd(x.numpy()[::-1, ::-1], y.numpy().astype(">f8")[:, ::-1]) == pytest.approx(mmd(x, y), abs=1e-12)


def test_one_pass_gives_what_the_single_functions_give() -> None:
    x, y = gaussian(20), gaussian(13, seed=1, shift=0.2)
    found = mmd_result(x, y)
    assert found.biased == mmd(x, y)
    assert found.unbiased == mmd(x, y, biased=False)
    assert found.se > 0


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.ones(1, 3), torch.ones(4, 3), "mmd: x must have at least 2 samples, got 1"),
        (torch.ones(4, 3), torch.ones(4, 2), "mmd: x and y must have equal widths, got 3 and 2"),
        (torch.ones(4), torch.ones(4, 2), r"mmd: x must have shape \[samples, width\], got \[4\]"),
        (torch.ones(4, 3), torch.full((4, 3), math.nan), "mmd: y must be finite, got 4 rows"),
    ],
)
def test_refuses_bad_input(x: Tensor, y: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mmd(x, y)


def test_refuses_bad_settings() -> None:
    x = gaussian(4)
    with pytest.raises(ValueError, match="sigma must be positive"):
        mmd(x, x, sigma=0.0)
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        mmd(x, x, chunk=0)
    with pytest.raises(ValueError, match="cmmd: y must not contain a row of zeros, got one at row 2"):
        cmmd(x, x * torch.tensor([1.0, 1.0, 0.0, 1.0])[:, None])
    with pytest.raises(ValueError, match="a standard error needs at least 4 samples of each, got 3 and 4"):
        mmd_result(x[:3], x)
    with pytest.raises(ValueError, match="dino_mmd: x must have at least 2 samples, got 1"):
        dino_mmd(x[:1], x)


@pytest.mark.parametrize("module", ["evaluation.metrics", "evaluation.features", "evaluation.evaluate"])
def test_import_stays_light(module: str) -> None:
    heavy = "'transformers', 'torchmetrics', 'ray', 'prx', 'sweeps', 'cluster', 'torchvision'"
    code = f"import sys, {module}; print([name for name in ({heavy},) if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
