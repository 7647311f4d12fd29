"""MMD of many embeddings of unit length at bandwidth 10: as little arithmetic as the kernel leaves to do.

On unit rows k(a, b) = exp(-0.01) exp(g / 100) with g = <a, b> in [-1, 1], a series that falls by a factor of at least
100 a term. Sums of g and of g² over all pairs are moments, exact in float64 and without a pass over the pairs. The
rest, g³ / 6e6 + g⁴ / 2.4e9, is all that has to be summed over pairs, and 1e-3 of it is enough: float32 is plenty,
bfloat16 too where the processor multiplies it faster, on rows less their mean. What is left out is below 4e-9 in a
CMMD of scale 1000.

Shape letters: n samples of x, m samples of y, d embedding width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluation.arrays import CHUNK, lengths
from evaluation.mmd import SCALE, KernelRows, MmdResult, blocks, mmd_result, zeros

EXACT_PAIRS = 2**24
"""Up to (n + m)² of so many the plain float64 sums are fast enough, and as exact as can be."""
BLOCK = 1024
"""Rows of a block of pairs: 4 MB in float32, which stay in a processor's cache from one operation to the next."""
STEP = 0.01
"""1 / sigma²: the step of the series, exp(-STEP) exp(STEP g)."""


@dataclass(frozen=True)
class _Unit:
    """A set scaled to unit length a block at a time, with its first two moments in float64.

    Shapes: rows [n, d] as given, length [n], mean [d], second [d, d].
    """

    rows: Tensor
    length: Tensor
    mean: Tensor
    second: Tensor

    def block(self, part: slice) -> Tensor:
        """Give some rows at unit length in float64."""
        return self.rows[part].double() / self.length[part, None]


def unit_mmd_result(x: Tensor, y: Tensor, name: str, *, exact_pairs: int = EXACT_PAIRS) -> MmdResult:
    """Return 1000 times both estimators at sigma 10 of rows scaled to unit length, and their standard error.

    Beside the inputs it holds one bfloat16 or float32 copy of them, two d x d matrices and a few blocks.

    Shapes: x [n, d], y [m, d].
    Raises: ValueError for a row of zeros, or fewer than four samples.
    """
    first = _Unit(x, lengths(x, f"{name}: x"), *_nothing(x))
    second = _Unit(y, lengths(y, f"{name}: y"), *_nothing(y))
    if (len(x) + len(y)) ** 2 <= exact_pairs:
        return mmd_result(*(part.block(slice(None)) for part in (first, second)))
    first, second = (_Unit(part.rows, part.length, *_moments(part)) for part in (first, second))
    within_x, within_y, biased = _series(first, second)
    n, m = len(x), len(y)
    unbiased = biased + within_x / (n - 1) + within_y / (m - 1)
    return MmdResult(max(0.0, SCALE * biased), SCALE * unbiased, SCALE * _standard_error(first, second))


def _nothing(rows: Tensor) -> tuple[Tensor, Tensor]:
    empty = torch.empty(0, dtype=torch.float64, device=rows.device)
    return empty, empty


def _moments(unit: _Unit) -> tuple[Tensor, Tensor]:
    width = unit.rows.shape[1]
    mean = torch.zeros(width, dtype=torch.float64, device=unit.rows.device)
    second = torch.zeros(width, width, dtype=torch.float64, device=unit.rows.device)
    for part in blocks(unit.rows, CHUNK):
        rows = unit.block(part)
        mean += rows.sum(dim=0)
        second.addmm_(rows.T, rows)
    return mean / len(unit.rows), second / len(unit.rows)


def _series(x: _Unit, y: _Unit) -> tuple[float, float, float]:
    """Give the means of k - 1 within x and within y, and the V-statistic."""
    rest_x, rest_y, rest_between = _rests(x, y)
    first, second = (x.mean - y.mean).square().sum(), (x.second - y.second).square().sum()
    distance = STEP * first + STEP**2 / 2 * second + rest_x + rest_y - 2 * rest_between

    def within(unit: _Unit, rest: float) -> float:
        terms = STEP * float(unit.mean.square().sum()) + STEP**2 / 2 * float(unit.second.square().sum()) + rest
        return math.expm1(-STEP) + math.exp(-STEP) * terms

    return within(x, rest_x), within(y, rest_y), math.exp(-STEP) * float(distance)


def _rests(x: _Unit, y: _Unit) -> tuple[float, float, float]:
    """Average the series from its third term on over the pairs within x, within y and between."""
    n, m = len(x.rows), len(y.rows)
    centre = (n * x.mean + m * y.mean) / (n + m)
    low_x, low_y = _centred(x, centre), _centred(y, centre)
    return _rest(low_x, low_x) / n**2, _rest(low_y, low_y) / m**2, _rest(low_x, low_y) / (n * m)


Low = tuple[Tensor, Tensor]
"""Rows u less their centre, [n, d] in a short format, and shares [n]: <a, b> = <u, v> + share_a + share_b."""


def _centred(unit: _Unit, centre: Tensor) -> Low:
    dtype = short_format(unit.rows.device)
    rows = torch.empty(unit.rows.shape, dtype=dtype, device=unit.rows.device)
    share = torch.empty(len(rows), dtype=torch.float32, device=rows.device)
    for part in blocks(rows, CHUNK):
        centred = unit.block(part) - centre
        rows[part] = centred.to(dtype)
        share[part] = (centred @ centre + centre.square().sum() / 2).float()
    return rows, share


def short_format(device: torch.device) -> torch.dtype:
    """Choose bfloat16 on a processor that multiplies it faster than float32, else float32."""
    capable = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    fast = any(capable.get(name) for name in ("avx512_bf16", "amx_bf16"))
    return torch.bfloat16 if fast else torch.float32


def _rest(x: Low, y: Low) -> float:
    """Sum g³ step³ / 6 + g⁴ step⁴ / 24 over all pairs, of one set by halves."""
    (rows_x, share_x), (rows_y, share_y) = x, y
    total = 0.0
    for a in blocks(rows_x, BLOCK):
        for b in blocks(rows_y, BLOCK, start=a.start if rows_x is rows_y else 0):
            products = (rows_x[a] @ rows_y[b].T).float().add_(share_x[a, None]).add_(share_y[b])
            same = rows_x is rows_y and a == b
            if same:
                products.fill_diagonal_(1.0)
            part = _third_and_fourth(products)
            total += part if same or rows_x is not rows_y else 2 * part
    return total


def _third_and_fourth(products: Tensor) -> float:
    flat = products.reshape(-1)
    squares = flat.square()
    return STEP**3 / 6 * float(squares @ flat) + STEP**4 / 24 * float(squares @ squares)


def _standard_error(x: _Unit, y: _Unit) -> float:
    """Take the kernel as linear: on unit rows its slope in <a, b> lies within 1 % of the slope at zero everywhere."""
    within_x, between_x = _linear_rows(x, y)
    within_y, between_y = _linear_rows(y, x)
    n, m = len(x.rows), len(y.rows)
    squares = (
        n**2 * float(x.second.square().sum()) - n,
        m**2 * float(y.second.square().sum()) - m,
        n * m * float((x.second * y.second).sum()),
    )
    slope = STEP * math.exp(-STEP + STEP * float(x.mean @ y.mean))
    return slope * math.sqrt(KernelRows(within_x, within_y, between_x, between_y, squares).variance())


def _linear_rows(unit: _Unit, other: _Unit) -> tuple[Tensor, Tensor]:
    """Sum <a, b> over the other rows of a's own set, and over those of the other."""
    within, between = zeros(unit.rows), zeros(unit.rows)
    for part in blocks(unit.rows, CHUNK):
        rows = unit.block(part)
        within[part] = rows @ (unit.mean * len(unit.rows)) - 1.0
        between[part] = rows @ (other.mean * len(other.rows))
    return within, between
