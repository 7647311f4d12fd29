"""Under which settings figures were measured: one line for the baseline and all like it, a cell's own beside it.

A metric means nothing without the way its pictures were drawn. The columns of the results keep their short names;
whatever a person reads says the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from prx.config_evaluation import AlsoConfig, SamplingConfig
from sweeps.results import SweepInfo, TrialInfo

if TYPE_CHECKING:
    from prx.config import RunConfig

SAMPLING = tuple(SamplingConfig.model_fields)
WEIGHTS = {"model": "the model's own weights", "ema": "EMA weights"}


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Take what metrics depend on from a configuration: how pictures are drawn, how many and large, against what."""
    return _settings(config.model_dump(mode="json", include={"sampling", "evaluation", "data"}))


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    evaluation, data = config["evaluation"], config["data"]
    against = {"reference": data["reference"], "prompts": data["prompt_column"]}
    pictures = {"num_samples": evaluation["num_samples"], "image_size": data["image_size"]}
    return dict(config["sampling"]) | pictures | against


def recalled(info: SweepInfo, config: Callable[[TrialInfo], Mapping[str, Any] | None]) -> SweepInfo:
    """Fill in what a sweep of an older version did not write down, from its trials' configurations.

    Nothing is filled in unless every trial tells: what some cells do not say cannot be common to all.
    """
    if not info.trials or any(trial.measured for trial in info.trials):
        return info
    cells = {trial.cell_id: trial for trial in reversed(info.trials)}
    try:
        found = {cell_id: _settings(config(trial) or {}) for cell_id, trial in cells.items()}
    except KeyError:
        return info
    return replace(info, trials=tuple(replace(t, measured=found[t.cell_id]) for t in info.trials))


def common(info: SweepInfo) -> dict[str, Any]:
    """Give the settings that all cells share; none where a sweep's version did not write them down."""
    first, *others = [trial.measured for trial in info.trials] or [{}]
    return {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}


def usual(info: SweepInfo) -> dict[str, Any]:
    """Give the settings of the baseline."""
    return next((trial.measured for trial in info.trials if trial.is_baseline), {})


def own(info: SweepInfo) -> dict[str, dict[str, Any]]:
    """Give each cell, by name, the settings in which it differs from the baseline; empty where all are alike."""
    base = usual(info)
    found = {t.name: {name: v for name, v in t.measured.items() if base.get(name) != v} for t in info.trials}
    return {name: settings for name, settings in found.items() if settings}


def words(settings: Mapping[str, Any]) -> str:
    """Write settings the way people say them: `10 sampling steps, guidance 3.5 (text), EMA weights, 192 samples`."""
    parts = [f"{settings['num_steps']} sampling steps"] if "num_steps" in settings else []
    scale, kind = settings.get("guidance_scale"), settings.get("guidance")
    if scale is not None:
        parts.append(f"guidance {scale:g}" + (f" ({kind})" if kind else ""))
    elif kind:
        parts.append(f"guidance by {kind}")
    parts += [WEIGHTS[settings["weights"]]] if "weights" in settings else []
    parts += [f"{settings['num_samples']:,} samples"] if "num_samples" in settings else []
    parts += [f"{settings['image_size']}² pixels"] if "image_size" in settings else []
    parts += [f"reference {settings['reference']}"] if "reference" in settings else []
    parts += [f"prompts from {settings['prompts']}"] if "prompts" in settings else []
    return ", ".join(parts)


def label(settings: Mapping[str, Any]) -> str:
    """Write what pictures are drawn with as the columns of other settings do; what is left out is as by default."""
    default = SamplingConfig().model_dump(mode="json")
    always = ("num_steps", "guidance_scale")
    named = {n: settings[n] for n in SAMPLING if n in settings and (n in always or settings[n] != default[n])}
    return AlsoConfig(**named).label


def full_name(heading: str, info: SweepInfo) -> str:
    """Add to a metric's name how it was measured, as far as all cells share that: `CMMD@num_steps=10`."""
    settings = label(common(info))
    return f"{heading}@{settings}" if settings else heading


def lines(info: SweepInfo) -> list[str]:
    """Say how the figures of a table were measured; nothing where that is not known."""
    said, apart = words(usual(info)), own(info)
    if not said:
        return []
    if not apart:
        return [f"Measured with {said}."]
    return [
        f"Measured with {said}, unless a row says otherwise.",
        "Such rows were measured in another way: part of their difference is that.",
    ]
