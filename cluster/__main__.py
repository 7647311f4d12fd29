"""`python -m cluster submit FILE --store FOLDER`: run a sweep on a cluster from here."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated

import typer

USAGE_ERROR = 2
INTERRUPTED = 130

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def commands() -> None:
    """Send sweeps to a Ray cluster."""


@app.command()
def submit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="sweep YAML, inside the working directory")],
    store: Annotated[str, typer.Option(help="folder for results that every machine of the cluster sees")],
    address: Annotated[str | None, typer.Option(help="URL of the job server")] = None,
    working_dir: Annotated[Path, typer.Option(help="folder that is uploaded")] = Path("."),
) -> None:
    """Upload the working directory, run the sweep as a Ray job, and end as it ends."""
    from cluster.launch import submit as send

    try:
        command = ["python", "-m", "sweeps", "run", _inside(file, working_dir), "--store", _durable(store)]
        status = send(command, address=address, working_dir=working_dir, write=_write)
    except ValueError as error:
        typer.echo(f"cluster: {error}", err=True)
        raise typer.Exit(USAGE_ERROR) from error
    except KeyboardInterrupt as error:
        typer.echo("cluster: the job goes on; `ray job stop` ends it, submitting again resumes", err=True)
        raise typer.Exit(INTERRUPTED) from error
    raise typer.Exit(status)


def _write(text: str) -> None:
    typer.echo(text, nl=False)


def _inside(file: Path, working_dir: Path) -> str:
    """Return the sweep's path as the job sees it."""
    whole, root = file.resolve(), working_dir.resolve()
    if not whole.is_file():
        raise ValueError(f"FILE must be an existing sweep YAML, got {file}")
    if not whole.is_relative_to(root):
        raise ValueError(f"FILE must lie in --working-dir ({root}), for only that is uploaded; got {whole}")
    return whole.relative_to(root).as_posix()


def _durable(store: str) -> str:
    # A job runs in a copy of the working directory that Ray removes.
    if not PurePosixPath(store).is_absolute():
        raise ValueError(f"--store must be an absolute path, for a job has no lasting folder; got {store}")
    return store


if __name__ == "__main__":
    app()
