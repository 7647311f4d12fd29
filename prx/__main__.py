"""Train one configuration alone, and export it, with nothing but this package.

`python -m prx train CONFIG.yaml --out RUN`, then `python -m prx export RUN --out FOLDER`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from prx import recipe
from prx.compose import load_run_config, read_run_source
from prx.config import NOT_IDENTITY, RunConfig, TermConfig, parse_run_config
from prx.engine import rank_and_world
from prx.errors import ConfigError, NonFiniteError, Problem, UserError
from prx.trainer import checkpoints
from prx.yamlsource import PathKeys, Source, locate

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(stderr=True)
MAY_CHANGE = NOT_IDENTITY | {"steps", "sampling", "evaluation"}
"""What a run that goes on may be told anew: how long it trains and how it is measured."""
Offline = Annotated[bool, typer.Option("--offline", help="Look up no model outside this machine.")]


@app.callback()
def commands() -> None:
    """Train one PRX text-to-image model, or export it."""


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML of one run; `base:` names a preset or a file.")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints and pictures.")] = Path("runs/train"),
    cache: Annotated[Path, typer.Option(help="Folder for encodings, shared between runs.")] = Path("runs/cache"),
    offline: Offline = False,
) -> None:
    """Train a configuration to its end; the same command again resumes."""
    _go_offline(offline)
    source = read_run_source(config)
    run = parse_run_config(source.data, source)
    found = [*recipe.problems(run), *_launch(run)]
    if found:
        raise ConfigError([source.problem(tuple(p.path.split(".")), p.message) for p in found])
    _refuse_another_run(out, run, source)
    _take_device(run)
    try:
        _train(run, out, cache)
    except UserError as error:
        raise locate(source, error) from error


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder that `train --out` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder for the diffusers pipeline; must not exist.")],
    step: Annotated[int | None, typer.Option(help="Which checkpoint; the newest unless told.")] = None,
    offline: Offline = False,
) -> None:
    """Write a trained run as a folder that diffusers samples from."""
    from prx import checkpoint
    from prx.export import export as write
    from prx.quiet import hush

    _go_offline(offline)
    hush()
    config = load_run_config(run / "config.yaml")
    found = checkpoints(run)
    step = max(found, default=0) if step is None else step
    if step not in found:
        raise UserError(f"{run} has no checkpoint of step {step}; there are {sorted(found)}")
    write(config, checkpoint.read_module(config, found[step]), out, f"Weights after {step} steps.")
    console.print(f"exported step {step} to {out}")


def _go_offline(asked: bool) -> None:
    if asked:  # the variable that every library reads, and that workers inherit
        os.environ["HF_HUB_OFFLINE"] = "1"


def _launch(config: RunConfig) -> Iterator[Problem]:
    """Compare the workers of a run with the processes that were started."""
    world = rank_and_world()[1]
    if config.infrastructure.workers != world:
        yield Problem("infrastructure.workers", f"must be the number of processes that were started ({world}; torchrun "
                      f"--nproc-per-node starts more), got {config.infrastructure.workers}")  # fmt: skip


def _take_device(config: RunConfig) -> None:
    """Give every process of a launcher its own GPU; each sees all of them, and the first one is torch's choice."""
    device, local = recipe.device_of(config), int(os.environ.get("LOCAL_RANK", "0"))
    if device.type == "cuda":
        torch.cuda.set_device(local)


def _refuse_another_run(out: Path, config: RunConfig, source: Source) -> None:
    """Compare with the run that left checkpoints in a folder: going on from another's would train neither.

    Raises:
        ConfigError: Lists every setting that differs, with file and line.
    """
    file = out / "config.yaml"
    if not checkpoints(out) or not file.is_file():
        return
    before = load_run_config(file)
    rule = f"must be as in {file}, whose checkpoints --out {out} holds; name another folder, or remove this one"
    changes = _changes(_identity(before, config), _identity(config, before))
    if found := [source.problem(keys, f"{rule}: it is {was!r} there, got {now!r}") for keys, was, now in changes]:
        raise ConfigError(found)


def _identity(config: RunConfig, other: RunConfig) -> dict[str, Any]:
    """Give the settings that every step so far was trained with; the run's length is one where a weight follows it."""
    found = config.model_dump(mode="json", exclude=set(MAY_CHANGE))
    parts = [part for run in (config, other) for part in run.losses.values() if isinstance(part, TermConfig)]
    follows = any(part.schedule != "constant" and part.stop_step == "never" for part in parts)
    return found | ({"steps": config.steps} if follows else {})


def _changes(before: Any, now: Any, keys: PathKeys = ()) -> Iterator[tuple[PathKeys, Any, Any]]:
    """List the paths at which two trees differ, with both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            yield from _changes(before.get(key), now.get(key), (*keys, key))
    elif before != now:
        yield keys, before, now


def _train(config: RunConfig, out: Path, cache: Path) -> None:
    from prx import data, prepare, trainer
    from prx.images import save_grid
    from prx.quiet import hush

    hush()
    main_rank = rank_and_world()[0] == 0
    started = time.perf_counter()
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not main_rank) as bar:
        encoding: dict[str, TaskID] = {}

        def encoded(what: str, done: int, total: int) -> None:
            if what not in encoding:
                encoding[what] = bar.add_task(f"encode {what}", total=total, note="")
            bar.update(encoding[what], completed=done)

        prepare.prepare([config], cache, encoded)
        data.reference_set(config, cache)
        out.mkdir(parents=True, exist_ok=True)
        if main_rank:
            (out / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        task = bar.add_task("train", total=config.steps, note="")

        def report(run: trainer.Trainer, progress: trainer.Progress) -> None:
            terms = "  ".join(f"{name} {value:.4f}" for name, value in progress.terms.items())
            bar.update(task, completed=progress.step, note=f"loss {progress.loss:.4f}  {terms}")
            boundary = progress.step == config.steps or progress.step % config.evaluation.every == 0
            if boundary:
                pictures = run.sample(num=config.evaluation.grid)
                if main_rank:
                    save_grid(pictures, out / "samples" / f"step-{progress.step:08d}.png")

        trainer.train(config, folder=out, cache=cache, report=report)
    if main_rank:
        seconds = time.perf_counter() - started
        console.print(f"trained {config.steps} steps in {seconds:.0f} s; pictures in {out}/samples")


def main() -> None:
    """Run the command line; what the user can mend is one message and exit code 2."""
    try:
        app()
    except UserError as error:
        console.print(f"[red]error[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except NonFiniteError as error:
        console.print(f"[red]failed[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
