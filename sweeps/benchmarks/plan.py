"""How long a plan takes: read, composed, checked, hashed, priced and shown, as the number of cells grows."""

from __future__ import annotations

import gc
import io
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.table import Table

from prx.yamlsource import parse_yaml
from sweeps.foresee import foresee
from sweeps.plan import make_plan
from sweeps.show_plan import render_plan
from sweeps.spec import parse_spec

HEAD = """\
name: large
base: embedded
trial: {steps: 300, eval_every: 100}
axes:
  alignment: [none, repa_dinov2, repa_dinov3, irepa_dinov2, irepa_dinov3]
  objective: [flow_matching, contrastive]
  tokenizer: [flux, flux2]
"""
MOST_LEVELS = 25


def sweep_of(cells: int) -> str:
    """Write a grid of at most `cells` cells, and more than half of them: catalogue levels, and levels written out."""
    text, left = HEAD, cells // 20
    for axis, path, scale in (
        ("rate", "optimizer.lr", 1e-5),
        ("warmup", "warmup_steps", 1),
        ("clip", "grad_clip", 0.1),
    ):
        levels = min(left, MOST_LEVELS)
        left //= levels
        written = (f"{{name: {axis}{i}, patch: {{{path}: {scale * (i + 1):g}}}}}" for i in range(levels))
        text += f"  {axis}: [{', '.join(written)}]\n"
    return text


def seconds(cells: int) -> tuple[int, float, float]:
    """Plan and show one grid; gives its cells and the seconds, by the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    source = parse_yaml(sweep_of(cells), "sweep.yaml")
    plan = make_plan(parse_spec(source), source)
    ahead = foresee(plan, Path("nowhere"), step_seconds=1.0)
    Console(file=io.StringIO(), width=100).print(render_plan(plan), ahead)
    return len(plan.cells), time.perf_counter() - clock, time.process_time() - processor


def measure(sizes: Sequence[int]) -> None:
    """Print seconds for every size, and their growth from one to the next."""
    seconds(min(sizes))  # imports
    gc.collect()
    rows = [seconds(size) for size in sizes]
    table = Table(title="Planning: read, compose, check, hash, price, show")
    for column in ("cells", "seconds", "of the processor", "ms a cell"):
        table.add_column(column, justify="right")
    for cells, clock, processor in rows:
        table.add_row(f"{cells:,}", f"{clock:.2f}", f"{processor:.2f}", f"{1000 * processor / cells:.2f}")
    console = Console(highlight=False)
    console.print(table)
    for (fewer, _, before), (more, _, after) in pairwise(rows):
        console.print(
            f"{fewer:,} to {more:,} cells: {more / fewer:.1f} times the cells, {after / before:.1f} times the time"
        )
