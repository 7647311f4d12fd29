"""A store that looks as if a sweep had run: simulated results, grids of plain colours, configurations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import yaml
from PIL import Image

from sweeps.results import (
    SweepFolder,
    SweepInfo,
    TrialState,
    append_journal,
    write_info,
    write_results,
    write_state,
)
from tests.sweeps.simulated import frame_of, info_of, without_end

AXES = {"alignment": ["none", "repa_dinov2", "repa_dinov3"], "tokenizer": ["flux", "repa_e"]}
PULL = {"repa_dinov2": -0.2, "repa_dinov3": -0.1, "repa_e": -0.3}
STEPS = (100, 200, 300)


def truth(levels):
    return 1.0 + sum(PULL.get(level, 0.0) for level in levels.values())


def cells():
    return [{"alignment": a, "tokenizer": t} for a in AXES["alignment"] for t in AXES["tokenizer"]]


def store_sweep(
    store: Path, info: SweepInfo | None = None, frame: pd.DataFrame | None = None, *, seeds: Iterable[int] = range(3),
    pruned: str = "", failed: str = "", samples: bool = True,
) -> SweepFolder:  # fmt: skip
    """Write a sweep into a store; cells named `pruned` and `failed` end at step 100."""
    info = info or replace(info_of(cells(), seeds), name="simulated")
    frame = frame_of(info, truth, noise=0.01, seed_noise=0.05) if frame is None else frame
    for name, state in ((pruned, "pruned"), (failed, "failed")):
        frame = without_end(frame, [t.trial_id for t in info.trials if t.name == name], state) if name else frame
    folder = SweepFolder(store, info.name)
    write_info(folder, info)
    write_results(frame.to_dict("records"), info.axes, folder.results)
    for trial in info.trials:
        rows = frame[frame["trial_id"] == trial.trial_id]
        home = folder.trial(trial.trial_id)
        state = TrialState(rows["state"].iloc[0], rows["reason"].iloc[0]) if len(rows) else TrialState()
        write_state(home, state)
        append_journal(home, *(boundary(row) for row in rows.to_dict("records")))
        (home / "config.yaml").write_text(yaml.safe_dump(config_of(trial), sort_keys=False))
        if state.state == "failed":
            (home / "error.txt").write_text(f"Traceback (most recent call last):\nNonFiniteError: {trial.name}\n")
        for step in STEPS if samples else ():
            if (rows["step"] == step).any():
                grid(home / "samples" / f"step-{step:08d}.png", step)
    return folder


def boundary(row):
    """Write a row as its trial did, which trained all of its way itself."""
    figures = {"cmmd": row["cmmd"], "cmmd_se": row["cmmd_se"]}
    metrics = {name: value for name, value in figures.items() if value == value}
    return {"kind": "boundary", "step": row["step"], "metrics": metrics, "wall_seconds": row["wall_seconds"],
            "device_seconds": row["device_seconds"], "steps_trained": row["step"]}  # fmt: skip


def config_of(trial):
    return {
        "name": trial.name, "seed": trial.seed, "steps": 300, "losses": {"use": trial.levels["alignment"]},
        "tokenizer": trial.levels["tokenizer"],
        "data": {"reference": "/nowhere", "num_reference": 4, "prompt_column": "caption", "image_size": 32},
        "evaluation": {"grid": 4, "clip": "embedded:clip", "dino": None},
    }  # fmt: skip


def grid(path: Path, step: int, side: int = 64) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), (step % 256, 80, 120)).save(path)
