"""What each technique costs: its step beside the baseline's, interleaved, with frozen encoders cached."""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from prx import prepare, recipe
from prx.compose import load_base
from prx.config import RunConfig, parse_run_config
from prx.engine import Engine
from prx.errors import UserError
from prx.interfaces import LossTerm
from prx.quiet import hush
from prx.registry import choices
from prx.trainer import Trainer
from prx.yamlsource import Source, merge
from sweeps.article import tables
from sweeps.benchmarks.synthetic import batch_of, stood_in, write_stand_ins
from sweeps.catalogue import default_catalogue, load_catalogue
from sweeps.patches import read_patch

WARM_UP = 3
LEVELS = (
    "objective=flow_matching",
    "alignment=repa_dinov2",
    "alignment=repa_dinov3",
    "alignment=irepa_dinov2",
    "alignment=haste_dinov2",
    "objective=contrastive",
    "objective=x_prediction",
    "tokenizer=flux2",
    "tokenizer=repa_e",
    "alignment=repa_dinov2 tokenizer=repa_e",
    "routing=tread",
    "routing=sprint",
    "optimizer=muon",
    "precision=bf16_master",
    "ema=ema",
    "resolution=token",
)
"""Catalogue levels that are measured unless told; those that the base cannot have are named and left out.

The first is the baseline itself: how far from 1 a ratio can be by chance.
"""


@dataclass(frozen=True)
class Measured:
    """Seconds a step of the baseline and of the levels, by round; `flops` counts one global batch.

    Units: seconds of wall-clock time on a GPU, of processor time on a CPU.
    """

    levels: dict[str, str]
    tokens: str
    seconds: list[tuple[float, float]]
    flops: float

    @property
    def ratios(self) -> list[float]:
        """Give the throughput relative to the baseline, by round."""
        return [base / mine for base, mine in self.seconds]


class Side(Protocol):
    """One run that can be stepped."""

    def step(self) -> None:
        """Take one optimizer step."""


class Cached:
    """The trainer as sweeps use it, reading warm caches."""

    def __init__(self, config: RunConfig, cache: Path, folder: Path) -> None:
        self.trainer = Trainer(config, folder=folder, cache=cache)

    def step(self) -> None:
        """Take one optimizer step."""
        self.trainer.advance(self.trainer.step + 1)

    def close(self) -> None:
        """Release the engine."""
        self.trainer.close()


class InMemory:
    """The engine alone, on one batch of random numbers."""

    def __init__(self, config: RunConfig) -> None:
        if config.infrastructure.threads:
            torch.set_num_threads(config.infrastructure.threads)
        self.engine, self.number = Engine(config, recipe.build(config)), 0
        self.batch = batch_of(config, self.engine.module, self.engine.device)

    def step(self) -> None:
        """Take one optimizer step."""
        self.engine.train(self.batch, self.number)
        self.number += 1

    def close(self) -> None:
        """Release the engine."""
        self.engine.close()


def measure(
    base: str,
    rounds: int,
    cache: Path,
    *,
    synthetic: bool = False,
    peak_tflops: float | None = None,
    levels: Sequence[str] = (),
    changes: Mapping[str, Any] | None = None,
) -> list[Measured]:
    """Print each level's step time relative to the baseline's; two runs are held at a time.

    Args:
        base: Preset or YAML of the run to measure.
        rounds: Steps a side and level.
        cache: Folder of encodings.
        synthetic: Use random numbers instead of data and weights.
        peak_tflops: What the device can do at the precision of the run, for its share.
        levels: `AXIS=LEVEL`, several of one run separated by blanks; else `LEVELS`.
        changes: Settings of every run, over the base's.

    Raises:
        UserError: A level is not in the catalogue.
    """
    hush()
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_stand_ins(root)
        source = merge(load_base(base), Source({"steps": 10**9} | dict(changes or {})))
        catalogue = load_catalogue(default_catalogue(source), Source(None))
        wanted = [_split(text, catalogue) for text in levels or _offered(catalogue)]
        found = []
        for chosen in wanted:
            try:
                found.append(_one(source, catalogue, chosen, rounds, None if synthetic else cache, root))
            except UserError as error:
                console.print(f"left out: {_name(chosen)}: {error}", markup=False, highlight=False)
    console.print(_table(found, base, configs_of(source), peak_tflops))
    return found


def _one(
    source: Source, catalogue: Source, chosen: dict[str, str], rounds: int, cache: Path | None, root: Path
) -> Measured:
    """Measure one combination of levels; without a cache, on random numbers and stand-ins for models.

    Raises:
        UserError: The run cannot be trained, or not without data and weights.
    """
    configs = [_config(source, catalogue, levels, root if cache is None else None) for levels in ({}, chosen)]
    if cache is not None:
        prepare.prepare(configs, cache, lambda what, done, total: None)
    elif "trained_tokenizer" in recipe.shape_of(configs[1]).provides:
        raise UserError("a tokenizer that is trained needs pictures and weights")
    try:
        return _measured(configs, chosen, rounds, cache, root)
    finally:
        gc.collect()  # engines refer to themselves; two of the next level must fit beside nothing else
        torch.cuda.empty_cache()


def configs_of(source: Source) -> RunConfig:
    """Give the baseline's configuration."""
    return parse_run_config(source.data, source)


def _offered(catalogue: Source) -> Iterator[str]:
    """List the usual levels that a catalogue has."""
    for text in LEVELS:
        pairs = (part.split("=") for part in text.split())
        if all(level in catalogue.data.get(axis, {}) for axis, level in pairs):
            yield text


def _split(text: str, catalogue: Source) -> dict[str, str]:
    found = {}
    for part in text.split():
        axis, _, level = part.partition("=")
        if axis not in catalogue.data:
            raise UserError(f"--level must be AXIS=LEVEL of the catalogue; {choices(axis, sorted(catalogue.data))}")
        if level not in catalogue.data[axis]:
            raise UserError(f"--level {axis}=: {choices(level, list(catalogue.data[axis]))}")
        found[axis] = level
    return found


def _config(source: Source, catalogue: Source, chosen: Mapping[str, str], folder: Path | None) -> RunConfig:
    """Lay levels over the base.

    Raises:
        UserError: The run cannot be trained.
    """
    for axis, level in chosen.items():
        source = merge(source, read_patch(catalogue, (axis, level, "patch"))[0])
    if folder is not None:
        source = Source(stood_in(source.data, folder), source.file, source.marks)
    config = parse_run_config(source.data, source)
    problems = recipe.problems(config)
    if problems:
        raise UserError("; ".join(str(problem) for problem in problems))
    return config


@contextmanager
def _running(config: RunConfig, cache: Path | None, folder: Path) -> Iterator[Side]:
    side = InMemory(config) if cache is None else Cached(config, cache, folder)
    try:
        yield side
    finally:
        side.close()


def _measured(
    configs: Sequence[RunConfig], chosen: dict[str, str], rounds: int, cache: Path | None, root: Path
) -> Measured:
    seconds = []
    with ExitStack() as stack:
        sides = [stack.enter_context(_running(config, cache, root)) for config in configs]
        for number in range(rounds + WARM_UP):
            # Step by step in turn, each side first every other time: a machine's speed drifts within seconds.
            order = (0, 1) if number % 2 else (1, 0)
            taken = {index: _seconds(sides[index]) for index in order}
            if number >= WARM_UP:
                seconds.append((taken[0], taken[1]))
    return Measured(chosen, _tokens(configs[1]), seconds, flops(configs[1]))


def _seconds(side: Side) -> float:
    """Time a step: on a GPU until it is done, on a CPU by the seconds this process got, whoever else is busy."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    started = clock()
    side.step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - started


def _tokens(config: RunConfig) -> str:
    """Say how many image tokens run, and how many of them inside a route."""
    shape = recipe.shape_of(config)
    if config.routing is None or shape.route is None:
        return str(shape.num_tokens)
    kept: int = config.routing.num_kept(shape.num_tokens)  # type: ignore[attr-defined]
    return f"{shape.num_tokens}, {kept} in {shape.route[0]}..{shape.route[1]}"


def flops(config: RunConfig) -> float:
    """Count the multiply-adds, twice each, of one global batch forward and backward, without running it."""
    micro = config.model_copy(update={"batch_size": config.micro_batch, "precision": "fp32"})
    with torch.device("meta"):
        module = recipe.build(micro)
    module.to("meta")
    batch = batch_of(micro, module, torch.device("meta"))
    with FlopCounterMode(display=False) as counter:
        # Below `forward`, because autocast does not know the meta device; the weights of terms cost nothing.
        values = module.values(batch, [term for term in module.losses.values() if isinstance(term, LossTerm)])
        torch.stack(list(values.values())).sum().backward()
    return counter.get_total_flops() * config.batch_size / config.micro_batch


def _name(levels: Mapping[str, str]) -> str:
    return " · ".join(f"{axis}={level}" for axis, level in levels.items())


def _table(found: Sequence[Measured], base: str, config: RunConfig, peak: float | None) -> Table:
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, threads: {torch.get_num_threads()}"
    run = f"{Path(base).stem}, batch {config.batch_size}, {where}"
    table = Table(
        title=f"Throughput relative to the baseline ({run})", box=SIMPLE_HEAD,
        caption="Median and quartiles over interleaved rounds. Encoders are cached here; the article's teachers and "
        "autoencoders ran at every step.", pad_edge=False,
    )  # fmt: skip
    table.add_column("level", min_width=20, overflow="fold")
    for column in ("tokens", "ms", "ratio", "quartiles", "article"):
        table.add_column(column, justify="right", no_wrap=column != "tokens")
    if torch.cuda.is_available() or peak:
        table.add_column("TFLOP/s", justify="right")
        table.add_column("of peak", justify="right")
    for item in found:
        table.add_row(" · ".join(item.levels.values()), item.tokens, *_figures(item, config, peak))
    return table


def _figures(item: Measured, config: RunConfig, peak: float | None) -> list[str]:
    mine = statistics.median(after for _, after in item.seconds)
    low, middle, high = statistics.quantiles(item.ratios, n=4)
    shown = [f"{1000 * mine:.1f}", f"{middle:.3f}", f"{low:.2f}-{high:.2f}"]
    shown.append(_article(item.levels, config))
    if torch.cuda.is_available() or peak:
        achieved = item.flops / mine / 1e12
        shown += [f"{achieved:.3g}", f"{achieved / peak:.1%}" if peak else "-"]
    return shown


def _article(levels: Mapping[str, str], config: RunConfig) -> str:
    """Give the article's ratio of batches a second, where it has these levels."""
    table = tables()["pixels_1024" if config.tokenizer.use == "pixels" else "latent_256"]
    row, base = table.row(levels), table.row({})
    if row is None or row.batches_per_second is None or base is None or base.batches_per_second is None:
        return "-"
    return f"{row.batches_per_second / base.batches_per_second:.2f}"
