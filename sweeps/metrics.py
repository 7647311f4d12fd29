"""What a sweep can rank trials by, and the columns of its results that no axis may be named after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Direction = Literal["min", "max"]


@dataclass(frozen=True)
class Metric:
    """Which way is better, and the setting under `evaluation` that a run needs to measure it."""

    better: Direction
    role: str | None = None


METRICS: dict[str, Metric] = {
    "cmmd": Metric("min", "clip"),
    "dino_mmd": Metric("min", "dino"),
    "fid": Metric("min", "inception"),
    "adherence": Metric("max", "reader"),
    "clip_score": Metric("max", "clip"),
    "knn_precision": Metric("max", "dino"),
    "knn_recall": Metric("max", "dino"),
    "density": Metric("max", "dino"),
    "coverage": Metric("max", "dino"),
    "samples_per_second": Metric("max"),
    "batches_per_second": Metric("max"),
}
QUALITY = tuple(name for name, metric in METRICS.items() if metric.role)

RESULT_COLUMNS = frozenset(
    {"trial_id", "cell_id", "name", "is_baseline", "seed", "step", "state", "wall_seconds", "device_seconds"}
    | {"replayed", "reason", "num_samples", "loss", "cmmd_unbiased", "dino_mmd_unbiased"}
    | {*METRICS, *(f"{name}_se" for name in METRICS)}
)
