"""CMMD of many embeddings: time, memory and error of ours beside full matrices in float32, in turn, in one run."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from evaluation.arrays import checked_pair, normalise
from evaluation.metrics import cmmd, mmd
from evaluation.unit_mmd import BLOCK, short_format

WARM_UP = 512
"""Rows of the call before the clock starts, which pays for threads and kernels."""


def full_matrices(x: Tensor, y: Tensor) -> float:
    """Compute CMMD the usual way: three whole kernel matrices in float32."""
    gamma, scale = 1 / (2 * 10.0**2), 1000.0

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        squares = (a * a).sum(dim=1)[:, None] + (b * b).sum(dim=1)[None, :]
        return torch.exp(-gamma * (-2 * (a @ b.T) + squares)).mean()

    x, y = (rows / rows.norm(dim=1, keepdim=True) for rows in checked_pair("cmmd", x, y))
    return float(scale * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)))


def exact(x: Tensor, y: Tensor) -> float:
    """Compute CMMD by exp in float64 over all pairs, a block at a time."""
    return mmd(normalise(x), normalise(y))


def embeddings(num: int, width: int) -> tuple[Tensor, Tensor]:
    """Draw two sets around one direction, as image networks give them, with means a little apart."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(num, width, generator=generator) / width**0.5 for _ in range(2))
    x[:, 0] += 0.8
    y[:, 0] += 0.8
    y[:, 1] += 0.1
    return x, y


SIDES: dict[str, Callable[[Tensor, Tensor], float]] = {"full": full_matrices, "ours": cmmd, "exact": exact}


def measure(num: int, width: int, rounds: int, *, with_exact: bool) -> None:
    """Print what each side takes on one thread.

    Each runs in processes of its own, so that their memory can be told apart. Processor time, on one thread, is the
    same whoever else uses the machine.
    """
    found: dict[str, list[dict[str, Any]]] = {"full": [], "ours": []}
    for _ in range(rounds):
        for side, runs in found.items():
            runs.append(_run(side, num, width))
    if with_exact:
        found["exact"] = [_run("exact", num, width)]
    seconds = {side: median(run["seconds"] for run in runs) for side, runs in found.items()}
    rates = {key: median(run[key] for runs in found.values() for run in runs) for key in ("float32", "short")}
    least = 2 * num * num * width * 2 / 1e9  # x-x and y-y by halves, x-y whole
    title = f"CMMD of {num} x {num} embeddings of width {width}, one thread, median of {rounds} in turn"
    table = Table(title=title)
    for column in ("", "processor s", "speed", "memory MB", "value", "off float64 by"):
        table.add_column(column, justify="right" if column else "left")
    names = {"full": "full float32", "ours": "ours", "exact": "float64, all pairs"}
    reference = found["exact"][0]["value"] if with_exact else None
    for side, runs in found.items():
        run = runs[0]
        off = "" if reference is None else f"{abs(run['value'] / reference - 1):.1e}"
        memory = f"{max(run['megabytes'] for run in runs):.0f}"
        speed = f"{seconds['full'] / seconds[side]:.2f}x"
        table.add_row(names[side], f"{seconds[side]:.2f}", speed, memory, f"{run['value']:.6f}", off)
    console = Console()
    console.print(table)
    console.print(f"Memory: what the process grew by, the embeddings ({2 * num * width * 4 / 1e6:.0f} MB) not counted.")
    for key, name in (("float32", "float32"), ("short", str(short_format(torch.device('cpu'))).removeprefix("torch."))):
        share = least / seconds["ours"] / rates[key]
        console.print(
            f"Matrix multiplication in {name}: {rates[key]:.0f} GFLOP/s; the products of all pairs would take "
            f"{least / rates[key]:.2f} s at that rate, {share:.0%} of the time ours took."
        )


def _run(side: str, num: int, width: int) -> dict[str, Any]:
    code = f"from sweeps.benchmarks.mmd import run; run({side!r}, {num}, {width})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def run(side: str, num: int, width: int) -> None:
    """Measure one side in this process, and print what was found."""
    torch.set_num_threads(1)
    x, y = embeddings(num, width)
    SIDES[side](x[:WARM_UP], y[:WARM_UP])
    before, started = _peak(), time.process_time()
    value = SIDES[side](x, y)
    seconds, grown = time.process_time() - started, _peak() - before
    rates = {"float32": _rate(torch.float32, width), "short": _rate(short_format(x.device), width)}
    print(json.dumps({"value": value, "seconds": seconds, "megabytes": grown / 1e6, **rates}))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def _rate(dtype: torch.dtype, width: int, rounds: int = 20) -> float:
    """Measure matrix multiplication on blocks as large as ours, in GFLOP/s: the best of some rounds."""
    a, b = (torch.randn(BLOCK, width).to(dtype) for _ in range(2))
    taken = []
    for _ in range(rounds):
        started = time.process_time()
        a @ b.T
        taken.append(time.process_time() - started)
    return 2 * BLOCK * BLOCK * width / min(taken) / 1e9
