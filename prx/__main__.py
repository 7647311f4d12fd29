"""`python -m prx train CONFIG.yaml`: train one configuration alone, with nothing but this package."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from prx import recipe
from prx.compose import read_run_source
from prx.config import RunConfig, parse_run_config
from prx.engine import rank_and_world
from prx.errors import ConfigError, NonFiniteError, UserError
from prx.yamlsource import locate

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(stderr=True)


@app.callback()
def commands() -> None:
    """Train one PRX text-to-image model."""


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML of one run; `base:` names a preset or a file.")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints and pictures.")] = Path("runs/train"),
    cache: Annotated[Path, typer.Option(help="Folder for encodings, shared between runs.")] = Path("runs/cache"),
) -> None:
    """Train a configuration to its end; the same command again resumes."""
    source = read_run_source(config)
    run = parse_run_config(source.data, source)
    found = recipe.problems(run)
    if found:
        raise ConfigError([source.problem(tuple(p.path.split(".")), p.message) for p in found])
    try:
        _train(run, out, cache)
    except UserError as error:
        raise locate(source, error) from error


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
                pictures = run.sample()[: config.evaluation.grid]
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
