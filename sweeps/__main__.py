"""The command line `prx-sweep`, the same as `python -m sweeps`; `prx-sweep --help` lists its commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sweeps.command import run_app

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
Sweep = Annotated[Path, typer.Argument(help="YAML of a sweep.", metavar="FILE")]
History = Annotated[
    str | None,
    typer.Option(
        help="Folder or URI (s3://BUCKET/PREFIX, ...) of everything ever trained; STORE/history unless told.",
        metavar="DIR|URI",
    ),
]
Store = Annotated[Path, typer.Option(help="Folder where all sweeps keep their results.", metavar="DIR")]


@app.callback()
def commands() -> None:
    """Find out which training techniques help a text-to-image model, alone and together."""


@app.command()
def plan(
    file: Sweep,
    store: Store = Path("runs"),
    calibrate: Annotated[bool, typer.Option(help="Train the baseline for a few steps, to time it.")] = False,
    step_seconds: Annotated[
        float | None, typer.Option(help="Seconds a training step, for the estimate.", metavar="S", min=1e-9)
    ] = None,
    max_concurrent: Annotated[
        int | None, typer.Option(help="Trials at once, for the estimate; as many as fit here.", metavar="N", min=1)
    ] = None,
) -> None:
    """Show what a sweep would train, what it costs and what it can tell; trains nothing, unless to calibrate."""
    from sweeps.foresee import foresee
    from sweeps.plan import make_plan
    from sweeps.show_plan import render_plan
    from sweeps.spec import load_spec

    planned = make_plan(*load_spec(file))
    ahead = foresee(planned, store.absolute(), calibrate, step_seconds, max_concurrent)
    _console().print(render_plan(planned), ahead)


@app.command()
def run(
    file: Sweep,
    store: Store = Path("runs"),
    history: History = None,
    max_concurrent: Annotated[
        int | None, typer.Option(help="Trials at once at the most; as many as fit unless told.", metavar="N")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to use; else RAY_ADDRESS, else this machine.", metavar="A")
    ] = None,
) -> None:
    """Train a sweep's trials, stop the losers early, show the leaderboard; the same again resumes."""
    from sweeps.logs import only_ours
    from sweeps.plan import make_plan
    from sweeps.report_end import print_end
    from sweeps.results import SweepFolder
    from sweeps.run import INTERRUPTED, preflight, run_sweep
    from sweeps.spec import load_spec

    try:
        planned = make_plan(*load_spec(file))
        folder = SweepFolder(store.absolute(), planned.spec.name)
        preflight(planned, folder, address, max_concurrent, history)
        with only_ours(folder.logs / "output.log") as console:
            outcome = run_sweep(
                planned, store=store, history=history, address=address, max_concurrent=max_concurrent, console=console
            )
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    print_end(outcome, _console())
    raise typer.Exit(outcome.exit_code)


@app.command()
def status(
    sweep: Annotated[str, typer.Argument(help="Name of a sweep, or its YAML.", metavar="FILE|NAME")],
    store: Store = Path("runs"),
) -> None:
    """Show where a sweep stands, while it runs or after."""
    from sweeps.status import find, render_status

    _console().print(render_status(find(sweep, store.absolute())))


@app.command()
def report(
    sweep: Annotated[str, typer.Argument(help="Name of a sweep, or its YAML.", metavar="FILE|NAME")],
    store: Store = Path("runs"),
    out: Annotated[Path | None, typer.Option(help="File to write; in the sweep's folder unless told.")] = None,
    form: Annotated[str, typer.Option("--format", help="html, md, csv or parquet.", metavar="FORMAT")] = "html",
    open_: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
    serve: Annotated[bool, typer.Option("--serve", help="Show it at a local address, renewed with results.")] = False,
    port: Annotated[int, typer.Option(help="Port for --serve; 0 takes any that is free.")] = 8400,
) -> None:
    """Write what a sweep has found as one page that needs no network; while it runs or after."""
    from sweeps.report.command import serve_report, show_report
    from sweeps.status import find

    folder = find(sweep, store.absolute())
    if serve:
        serve_report(folder, port, _console(), browse=open_)
    else:
        show_report(folder, form, out, _console(), browse=open_)


Trial = Annotated[str, typer.Argument(help="A sweep (its leader), SWEEP/CELL, or a trial's id.", metavar="TRIAL")]
Seed = Annotated[
    int | None, typer.Option(help="Which seed; unless told the first of a cell, the best of the leader.", metavar="N")
]


@app.command()
def export(
    trial: Trial,
    out: Annotated[Path, typer.Option(help="Folder for the diffusers pipeline; must not exist.", metavar="DIR")],
    store: Store = Path("runs"),
    seed: Seed = None,
    step: Annotated[int | None, typer.Option(help="Which boundary; the last unless told.", metavar="N")] = None,
) -> None:
    """Write a trained trial as a folder that diffusers samples from, with a card of its figures."""
    from prx.quiet import hush
    from sweeps.export import export_trial, find_trial

    hush()
    found = find_trial(trial, store.absolute(), seed)
    export_trial(found, out, step)
    _console().print(f"exported {found.name} (seed {found.seed}) to {out}", markup=False)


@app.command()
def sample(
    folder: Annotated[Path, typer.Argument(help="Folder that `export` wrote.", metavar="DIR")],
    prompt: Annotated[str, typer.Option(help="What to draw.", metavar="TEXT")],
    out: Annotated[Path, typer.Option(help="Picture to write.", metavar="FILE")] = Path("sample.png"),
    seed: Annotated[int, typer.Option(help="Seed of the noise.", min=0)] = 0,
    num_steps: Annotated[int | None, typer.Option(help="Sampler's steps; the run's unless told.", min=1)] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="The run's unless told.", min=1.0)] = None,
) -> None:
    """Draw a picture with an exported trial."""
    from prx.quiet import hush
    from sweeps.export import draw

    hush()
    draw(folder, prompt, out, seed, num_steps, guidance_scale)
    _console().print(f"drew {out}", markup=False)


@app.command()
def recipe(trial: Trial, store: Store = Path("runs"), seed: Seed = None) -> None:
    """Print a trial's configuration, the leader's of a sweep, as a YAML that `python -m prx train` takes."""
    from sweeps import export as exporting

    typer.echo(exporting.recipe(exporting.find_trial(trial, store.absolute(), seed)), nl=False)


@app.command()
def gc(
    store: Store = Path("runs"),
    history: History = None,
    keep_best: Annotated[
        int, typer.Option(help="Finals of a sweep that keep their checkpoint, beside the baseline's.", metavar="K")
    ] = 5,
    unnamed: Annotated[
        bool, typer.Option("--unnamed", help="Free what no sweep of this store names, too.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Free it; without this, only show what would go.")] = False,
) -> None:
    """Show what checkpoints and leftovers could be freed, and why; measurements always stay."""
    from sweeps.gc import collect
    from sweeps.show_gc import render_gc

    found = collect(store, history, keep_best=keep_best, unnamed=unnamed, delete=yes)
    _console().print(render_gc(found, deleted=yes))


@app.command()
def techniques(
    name: Annotated[str | None, typer.Argument(help="One technique, in full.", metavar="NAME")] = None,
) -> None:
    """List what can be varied: techniques, their sources and search ranges, the levels of the catalogues."""
    from sweeps.techniques import find, render_all, render_one

    _console().print(render_all() if name is None else render_one(find(name)))


@app.command()
def schema(
    form: Annotated[str, typer.Option("--format", help="json, for editors, or md.", metavar="FORMAT")] = "json",
    of: Annotated[str, typer.Option(help="sweep, or run: the file of a base.", metavar="WHAT")] = "sweep",
    write: Annotated[bool, typer.Option("--write", help="Write the committed files of a checkout again.")] = False,
) -> None:
    """Print what a sweep's YAML may say, as a JSON schema for editors or as a page."""
    from sweeps.reference import command

    if write:
        _console().print("\n".join(f"wrote {path}" for path in command.write()), markup=False)
    else:
        typer.echo(command.text_of(form, of), nl=False)


@app.command()
def simulate(
    file: Annotated[Path, typer.Argument(help="YAML of a sweep, or a results.parquet.", metavar="FILE")],
    results: Annotated[
        Path | None, typer.Option(help="Recorded curves of the sweep; synthetic ones unless told.", metavar="PARQUET")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="Metric that decides, of recorded curves.")] = None,
    workers: Annotated[int, typer.Option(help="Trials at a time.", min=1)] = 2,
    arrivals: Annotated[int, typer.Option(help="Orders of arrival to try; the first is as planned.", min=1)] = 50,
    seed: Annotated[int, typer.Option(help="Seed of synthetic curves.", min=0)] = 0,
    factor: Annotated[int | None, typer.Option(help="Reduction factor, instead of the sweep's.", min=2)] = None,
    grace_steps: Annotated[int | None, typer.Option(help="First rung, instead of the sweep's.", min=1)] = None,
) -> None:
    """Show what every early-stopping rule would save and lose, in seconds; trains nothing."""
    from sweeps.simulation.command import Request, run

    run(Request(file, results, metric, workers, arrivals, seed, factor, grace_steps), _console())


def _console() -> Console:
    """Give the terminal; a pipe or a log, which has no width, gets room for every figure."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=120)


def main() -> None:
    """Run the command line."""
    run_app(app)


if __name__ == "__main__":
    main()
