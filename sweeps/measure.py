"""Between a run's configuration and its evaluation: which networks, which reference, kept for the process."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from prx.config import RunConfig
from prx.errors import UserError
from sweeps.metrics import METRICS, QUALITY
from sweeps.results import write_atomic

if TYPE_CHECKING:
    from torch import Tensor

    from evaluation.evaluate import Evaluator
    from sweeps.history.keys import Lineage

Report = Callable[[str, int, int], None]

MORE = "raise evaluation.num_samples, or leave FID out with evaluation.inception: null"


def evaluate(config: RunConfig, cache: Path) -> Callable[[Tensor], dict[str, float]]:
    """Give the function that measures a run's images; networks and references are loaded once a process.

    Where the configuration names no network, as in a sweep about speed alone, images are only counted.
    """
    if not _measured(config):
        return lambda images: {"num_samples": float(len(images))}
    return _evaluator(_shared(config).model_dump_json(), cache).evaluate


def prepare(configs: Sequence[RunConfig], cache: Path, report: Report) -> None:
    """Encode what the trials share, and build every reference, before anything is trained.

    Raises:
        UserError: Data cannot be read, or a metric cannot be computed from as many samples.
    """
    from prx import prepare as encodings
    from prx.quiet import hush

    hush()
    encodings.prepare(configs, cache, report)
    distinct = dict.fromkeys(_shared(config).model_dump_json() for config in configs if _measured(config))
    for done, shared in enumerate(distinct):
        report("references", done, len(distinct))
        _evaluator(shared, cache)
        report("references", done + 1, len(distinct))
    _evaluator.cache_clear()


def unmeasurable(name: str, config: RunConfig) -> str | None:
    """Say what a metric lacks in a configuration, as far as that can be seen without a download."""
    from prx.loaders import resolve

    role = METRICS[name].role
    path = getattr(config.evaluation, role) if role else None
    if role and path is None:
        return f"{name} needs evaluation.{role} in every cell, got null"
    if name == "clip_score" and path and Path(resolve(path)).is_dir() and not _computable(name, config):
        return f"clip_score needs a CLIP with its text tower and tokenizer as evaluation.clip, got {path}"
    return None


def lineage(config: RunConfig, cache: Path) -> Lineage:
    """Name the states of a run whose data are prepared."""
    from prx import prepare as encodings
    from sweeps.history.keys import Lineage

    return Lineage(config, encodings.plan(config, cache))


def _shared(config: RunConfig) -> RunConfig:
    """Reduce a configuration to what its evaluation depends on, so that trials share one evaluator."""
    evaluation = config.evaluation.model_copy(update={"every": 1, "grid": 1, "also": []})
    return RunConfig(data=config.data, evaluation=evaluation, infrastructure=config.infrastructure)


def _measured(config: RunConfig) -> bool:
    return any(getattr(config.evaluation, METRICS[name].role or "") for name in QUALITY)


def _computable(name: str, config: RunConfig) -> bool:
    """Leave out clip_score where the CLIP role has no text tower, as metrics without a role are left out."""
    from evaluation.captions import has_text_tower
    from prx.loaders import resolve

    clip = config.evaluation.clip
    return name != "clip_score" or (clip is not None and has_text_tower(resolve(clip)))


@lru_cache(maxsize=2)
def _evaluator(shared: str, cache: Path) -> Evaluator:
    from evaluation.evaluate import EvaluationSpec, Evaluator
    from prx.data import reference_set
    from prx.loaders import resolve
    from prx.recipe import device_of

    config = RunConfig.model_validate_json(shared)
    roles = {name: METRICS[name].role or "" for name in QUALITY}
    weights = {role: getattr(config.evaluation, role) for role in roles.values()}
    reference = reference_set(config, cache)
    try:
        spec = EvaluationSpec(
            **{role: resolve(path) for role, path in weights.items() if path},  # type: ignore[arg-type]
            metrics=[name for name, role in roles.items() if weights[role] and _computable(name, config)],
            batch_size=config.evaluation.batch_size,
            device=str(device_of(config)),
        )
        found = Evaluator(
            spec, reference.images, reference.attributes, cache / "references", reference.fingerprint,
            captions=reference.prompts, remedy=MORE,
        )  # fmt: skip
        _write_provenance(found, cache / "references")
    except (ValueError, FileNotFoundError) as error:
        raise error if isinstance(error, UserError) else UserError(f"evaluation: {error}") from error
    return found


def _write_provenance(evaluator: Evaluator, folder: Path) -> None:
    """Say beside the references, under their hash, by which networks and estimators they are compared."""
    named = evaluator.provenance()
    write_atomic(folder / f"{named['reference_hash']}.json", json.dumps(named, indent=1) + "\n")
