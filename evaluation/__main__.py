"""Compare two folders of images: `python -m evaluation REAL_DIR GENERATED_DIR`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from evaluation.evaluate import EvaluationSpec

USAGE_ERROR = 2
FOLDER_METRICS = ("cmmd", "dino_mmd", "fid")
CHOICES = (*FOLDER_METRICS, "knn_precision", "knn_recall", "density", "coverage")
EMBEDDED_FOLDERS = {"clip": "clip", "dino": "dino_mmd", "inception": "inception"}
EMBEDDED_NOTE = "embedded weights, trained on small drawn scenes: compare only with figures made by them"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Comparison:
    """Hold what is printed: figures, sample counts, and what they were computed with."""

    values: dict[str, float]
    counts: dict[str, int]
    estimators: dict[str, str]
    weights: dict[str, str]
    versions: dict[str, str]


@app.command()
def main(
    real: Annotated[Path, typer.Argument(metavar="REAL_DIR", help="folder of real images")],
    generated: Annotated[Path, typer.Argument(metavar="GENERATED_DIR", help="folder of generated images")],
    clip: Annotated[str | None, typer.Option(help="CLIP folder or hub id")] = None,
    dino: Annotated[str | None, typer.Option(help="DINO folder or hub id")] = None,
    inception: Annotated[str | None, typer.Option(help="FID network folder or hub id")] = None,
    metrics: Annotated[str, typer.Option(help="comma-separated choice")] = ",".join(FOLDER_METRICS),
    resamples: Annotated[int, typer.Option(help="bootstrap resamples behind ±; 0 for its closed form")] = 0,
    batch_size: Annotated[int, typer.Option(help="images per forward pass", min=1)] = 64,
    device: Annotated[str, typer.Option(help="torch device")] = "cpu",
    allow_few: Annotated[bool, typer.Option("--allow-few", help="FID with few samples")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """Print CMMD, DINO-MMD and FID between two folders of PNG or JPEG images."""
    try:
        files = _listed(real, generated)
        chosen = _chosen_metrics(metrics)
        weights = _chosen_weights(chosen, {"clip": clip, "dino": dino, "inception": inception})
        paths = {role: path for role, (path, _) in weights.items()}
        spec = _spec(paths, chosen, resamples, batch_size, device, allow_few)
        found = _compare_folders(files, spec, weights)
    except (ValueError, FileNotFoundError) as error:
        typer.echo(f"evaluation: {error}", err=True)
        raise typer.Exit(USAGE_ERROR) from error
    if as_json:
        typer.echo(json.dumps(_as_json(found), indent=2))
    else:
        _print_table(found)


def _listed(real: Path, generated: Path) -> dict[str, list[Path]]:
    from evaluation.images import list_images

    return {"real": list_images(real), "generated": list_images(generated)}


def _chosen_metrics(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in names if name not in CHOICES]
    if unknown or not names:
        raise ValueError(
            f"--metrics must be among {', '.join(CHOICES)}, got {', '.join(unknown) or 'none'}"
        )
    return names


def _chosen_weights(chosen: tuple[str, ...], given: dict[str, str | None]) -> dict[str, tuple[str, str]]:
    """Return, for each role the metrics need, where its weights are and what to call them."""
    from evaluation.evaluate import METRIC_ROLES

    found = {}
    for role in (METRIC_ROLES[name] for name in chosen):
        path = given[role]
        found[role] = (path, path) if path is not None else (str(_embedded_folder(role)), EMBEDDED_NOTE)
    return found


def _embedded_folder(role: str) -> Path:
    # Looked up, not imported: this package knows nothing of prx but where its data lie.
    spec = find_spec("prx")
    roots = spec.submodule_search_locations if spec and spec.submodule_search_locations else []
    for root in roots:
        folder = Path(root) / "embedded" / "weights" / EMBEDDED_FOLDERS[role]
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"--{role} must be given where no embedded weights are installed, got none")


def _spec(
    paths: dict[str, str],
    chosen: tuple[str, ...],
    resamples: int,
    batch_size: int,
    device: str,
    allow_few: bool,
) -> EvaluationSpec:
    from evaluation.evaluate import EvaluationSpec

    return EvaluationSpec(
        clip=paths.get("clip"),
        dino=paths.get("dino"),
        inception=paths.get("inception"),
        metrics=chosen,
        resamples=resamples,
        batch_size=batch_size,
        device=device,
        allow_few=allow_few,
    )


def _compare_folders(
    files: dict[str, list[Path]], spec: EvaluationSpec, weights: dict[str, tuple[str, str]]
) -> Comparison:
    from evaluation.evaluate import check_count, compare
    from evaluation.images import embed_files
    from evaluation.metrics import ESTIMATORS

    extractors = spec.load_extractors()
    for listed in files.values():
        check_count(len(listed), spec, extractors, f"number of images in {listed[0].parent}")
    rows = {
        side: embed_files(listed, extractors, batch_size=spec.batch_size) for side, listed in files.items()
    }
    return Comparison(
        values=compare(rows["generated"], rows["real"], spec),
        counts={side: len(listed) for side, listed in files.items()},
        estimators={name: ESTIMATORS[name] for name in spec.metrics},
        weights={role: label for role, (_, label) in weights.items()},
        versions={role: extractor.version for role, extractor in extractors.items()},
    )


def _as_json(found: Comparison) -> dict[str, object]:
    return {
        **found.values,
        "num_real": found.counts["real"],
        "num_samples": found.counts["generated"],
        "estimators": found.estimators,
        "weights": found.weights,
        "versions": found.versions,
    }


def _print_table(found: Comparison) -> None:
    console = Console()
    counts = f"{found.counts['generated']} generated against {found.counts['real']} real images"
    table = Table("metric", "value ± SE", "estimator", title=counts)
    for name, estimator in found.estimators.items():
        table.add_row(name, f"{found.values[name]:.4g} ± {found.values[f'{name}_se']:.2g}", estimator)
        if f"{name}_unbiased" in found.values:
            unbiased = f"{found.values[f'{name}_unbiased']:.4g}"
            table.add_row(f"{name}_unbiased", unbiased, f"as {name}, without the diagonal")
    console.print(table)
    for role, label in found.weights.items():
        console.print(f"{role}: {escape(label)}", soft_wrap=True)
        console.print(f"  version {escape(found.versions[role])}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    app()
