"""`python -m sweeps.benchmarks loop | launch | guidance | mmd | techniques | plan | early_stopping | replay | tree`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sweeps.command import run_app

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Cache = Annotated[Path, typer.Option(help="Folder for encodings, shared with sweeps.")]


@app.callback()
def commands() -> None:
    """Measure; every figure of speed comes as a ratio of two things measured side by side."""


@app.command()
def loop(
    base: Annotated[str, typer.Option(help="Preset or YAML of the run to measure.")] = "embedded",
    rounds: Annotated[int, typer.Option(help="Interleaved steps a side.", min=2)] = 120,
    cache: Cache = Path("runs/cache"),
) -> None:
    """Compare the trainer with a bare PyTorch loop on the same model and one in-memory batch."""
    from sweeps.benchmarks.loop import measure

    measure(base, rounds, cache)


@app.command()
def launch(
    trials: Annotated[int, typer.Option(help="Trials of our own way.", min=2)] = 20,
    documented: Annotated[int, typer.Option(help="Trials of the documented pattern.", min=1)] = 3,
    steps: Annotated[int, typer.Option(help="Training steps a trial.", min=2)] = 10,
    store: Annotated[Path, typer.Option(help="Where the trials go.")] = Path("runs/benchmark-launch"),
) -> None:
    """Compare what starting a trial costs: reused actors against one `TorchTrainer` a trial."""
    from sweeps.benchmarks.launch import measure

    measure(trials, documented, steps, store)


@app.command()
def guidance(
    sweep: Annotated[str, typer.Argument(help="Name of a sweep that was run.")],
    scale: Annotated[list[float], typer.Option(help="Guidance scale; may be given several times.")],
    store: Annotated[Path, typer.Option(help="The sweep's store.")] = Path("runs"),
) -> None:
    """Measure finished trials at several guidance scales, without training."""
    from sweeps.benchmarks.guidance import measure

    measure(sweep, scale, store)


@app.command()
def techniques(
    base: Annotated[str, typer.Option(help="Preset or YAML of the run to measure.")] = "embedded",
    rounds: Annotated[int, typer.Option(help="Interleaved steps a side and technique.", min=2)] = 60,
    cache: Cache = Path("runs/cache"),
    synthetic: Annotated[bool, typer.Option(help="Random numbers instead of data and weights.")] = False,
    peak_tflops: Annotated[float | None, typer.Option(help="Peak of the device, for its share.", min=1e-3)] = None,
    level: Annotated[
        list[str] | None, typer.Option(help="Only this AXIS=LEVEL of the catalogue; several times, or 'A=X B=Y'.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Instead of the base's.", min=2)] = None,
    zero_stage: Annotated[int, typer.Option(help="DeepSpeed ZeRO stage.", min=0, max=3)] = 0,
) -> None:
    """Compare each technique's step with the baseline's, step by step in turn, beside the article's ratio."""
    from sweeps.benchmarks.techniques import measure

    changes: dict[str, object] = {"infrastructure": {"zero_stage": zero_stage}}
    if batch_size is not None:
        changes |= {"batch_size": batch_size, "infrastructure": {"zero_stage": zero_stage, "micro_batch": None}}
    measure(base, rounds, cache, synthetic=synthetic, peak_tflops=peak_tflops, levels=level or (), changes=changes)


@app.command()
def plan(
    cells: Annotated[list[int] | None, typer.Option(help="Size of a plan; may be given several times.", min=20)] = None,
) -> None:
    """Plan and show grids of 100, 1,000 and 10,000 cells; seconds, and how they grow."""
    from sweeps.benchmarks.plan import measure

    measure(cells or [100, 1_000, 10_000])


@app.command()
def mmd(
    num: Annotated[int, typer.Option(help="Embeddings of each set.", min=4)] = 10_000,
    width: Annotated[int, typer.Option(help="Numbers of an embedding.", min=1)] = 768,
    rounds: Annotated[int, typer.Option(help="Runs a side, in turn.", min=1)] = 5,
    exact: Annotated[bool, typer.Option(help="Compare with float64 over all pairs, which takes a while.")] = True,
) -> None:
    """Compare CMMD with full float32 matrices: time, memory, and the distance to float64 over all pairs."""
    from sweeps.benchmarks.mmd import measure

    measure(num, width, rounds, with_exact=exact)


@app.command(name="early_stopping")
def early_stopping(
    results: Annotated[Path, typer.Argument(help="results.parquet of a sweep that stopped nobody.", metavar="PARQUET")],
    seeds: Annotated[list[int] | None, typer.Option(help="Only this seed; may be given several times.")] = None,
    metric: Annotated[str, typer.Option(help="Metric that decides.")] = "cmmd",
    arrivals: Annotated[int, typer.Option(help="Orders of arrival; the first is as planned.", min=1)] = 200,
    workers: Annotated[int, typer.Option(help="Trials at a time.", min=1)] = 2,
    factor: Annotated[int | None, typer.Option(help="Reduction factor, instead of the default.", min=2)] = None,
    noise_errors: Annotated[float | None, typer.Option(help="What counts as a tie, instead of the default.")] = None,
    grace_steps: Annotated[int | None, typer.Option(help="First rung (default: first evaluation).", min=1)] = None,
) -> None:
    """Compare early stopping with Ray's ASHA and with none on recorded curves: steps saved, best cell kept."""
    from sweeps.benchmarks.early_stopping import measure
    from sweeps.stopping.spec import SchedulerSpec

    given = {"reduction_factor": factor, "noise_errors": noise_errors, "grace_steps": grace_steps}
    spec = SchedulerSpec.model_validate({key: value for key, value in given.items() if value is not None})
    measure(results, seeds or (), metric, arrivals, workers, spec)


@app.command()
def replay(
    trials: Annotated[
        list[int] | None,
        typer.Option(help="How many finished trials; several times. 100 and 1,000 unless told.", min=10),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where to write them for the time; a temporary folder unless told.")
    ] = None,
) -> None:
    """Measure what taking up finished trials costs, from the command to "everything is trained already"."""
    from sweeps.benchmarks.replay import measure

    measure(trials or [100, 1_000], folder)


@app.command()
def tree() -> None:
    """Compare the steps that trials ask for with those to train, where they share their first ones."""
    from sweeps.benchmarks.tree import measure

    measure()


def main() -> None:
    """Run the command line."""
    run_app(app)


if __name__ == "__main__":
    main()
