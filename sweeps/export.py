"""What leaves a sweep: a trained trial as a folder that diffusers samples from, a picture, a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from prx.compose import load_run_config
from prx.errors import UserError
from prx.export import RECIPE, export
from prx.registry import choices
from sweeps.api import Results, TrialResult
from sweeps.leaderboard import Estimate, heading
from sweeps.metrics import METRICS
from sweeps.report import about
from sweeps.results import SweepFolder


def find_trial(name: str, store: Path, seed: int | None = None) -> TrialResult:
    """Find a trial by its id, as SWEEP/CELL, or as SWEEP for the cell that leads; of that seed, where one is told.

    Raises:
        UserError: There is none; lists what there is.
    """
    sweeps = sorted(path.parent.name for path in (store / "sweeps").glob("*/sweep.json"))
    sweep, _, cell = name.partition("/")
    if sweep in sweeps:
        results = Results(SweepFolder(store, sweep))
        if cell:
            return results.trial(cell, seed)
        best = results.best()
        return best if seed is None else results.trial(best.name, seed)
    for there in sweeps:
        folder = SweepFolder(store, there)
        if (folder.trial(name) / "config.yaml").is_file():
            return Results(folder).trial(name, seed)
    known = choices(sweep, sweeps)
    raise UserError(f"trial: {name!r} is no trial of {store}; the sweep in SWEEP or SWEEP/CELL {known}")


def export_trial(trial: TrialResult, out: Path, step: int | None = None) -> None:
    """Write a trial as a pipeline folder of diffusers, with a card of its figures.

    Raises:
        ConfigError: diffusers' pipelines would not draw what the trial's own sampler draws; lists every reason.
        UserError: No checkpoint of that step is kept, or the folder exists.
    """
    export(trial.config, trial.load_model(step), out, card(trial, step))


def card(trial: TrialResult, step: int | None = None) -> str:
    """Write what is known of a trial for its model card: figures at a step, origin."""
    rows = trial.curve if step is None else trial.curve[trial.curve["step"] == step]
    last = rows.iloc[-1]
    commit = about.read(trial.sweep).environment.get("git commit", "unknown")
    origin = {"sweep": trial.sweep.root.name, "cell": trial.name, "seed": trial.seed, "step": int(last["step"]),
              "trial": trial.info.trial_id, "commit": commit}  # fmt: skip
    lines = ["A text-to-image model trained with prx-sweeps.", "", "| measured | value |", "| --- | --- |"]
    known = {str(key): value for key, value in last.items() if not pd.isna(value)}
    for name in METRICS:
        if name in known:
            lines.append(f"| {heading(name)} | {Estimate(float(known[name]), known.get(f'{name}_se'))} |")
    samples = known.get("num_samples")
    if samples is not None:
        lines += ["", f"From {int(samples)} samples; ± is the standard error over them, not over training again."]
    return "\n".join([*lines, "", *(f"- {key}: {value}" for key, value in origin.items())])


def recipe(trial: TrialResult) -> str:
    """Write a trial's configuration as a YAML that `python -m prx train` takes as it is, under torchrun if need be."""
    found = trial.metrics
    metric = Results(trial.sweep).info.metric
    value = f", {metric} {found[metric]:.4g} at step {found['step']:.0f}" if metric in found else ""
    head = f"# {trial.name} of sweep {trial.sweep.root.name}, seed {trial.seed}{value}\n"
    workers = trial.config.infrastructure.workers
    if workers > 1:
        head += f"# trains alone with: torchrun --nproc-per-node {workers} -m prx train FILE\n"
    content: dict[str, Any] = trial.config.model_dump(mode="json")
    return head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def draw(
    folder: Path, prompt: str, out: Path, seed: int = 0, num_steps: int | None = None, guidance: float | None = None
) -> None:
    """Draw a picture with an exported pipeline, by the run's own sampling settings unless told.

    Raises:
        UserError: The folder is no exported run, or a damaged one, or the picture cannot be written.
    """
    import diffusers
    import torch

    if not (folder / RECIPE).is_file() or not (folder / "model_index.json").is_file():
        raise UserError(f"{folder}: must be a folder that `prx-sweep export` wrote, with model_index.json and {RECIPE}")
    config = load_run_config(folder / RECIPE)
    try:
        pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: cannot be loaded, export it again ({str(error).splitlines()[0]})") from error
    pipeline.set_progress_bar_config(disable=True)
    size = config.data.image_size
    cleaning = {"skip_text_cleaning": True} if type(pipeline).__name__ == "PRXPipeline" else {}
    picture = pipeline(
        prompt,
        height=size,
        width=size,
        use_resolution_binning=False,
        num_inference_steps=num_steps or config.sampling.num_steps,
        guidance_scale=config.sampling.guidance_scale if guidance is None else guidance,
        generator=torch.Generator().manual_seed(seed),
        **cleaning,
    ).images[0]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        picture.save(out)
    except (OSError, ValueError) as error:
        raise UserError(f"--out: {out} cannot be written ({error})") from error
