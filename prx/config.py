"""The configuration of one training run: typed, strict, hashed.

Defaults are the article's baseline (PRX part 2, section "The Baseline"); what it leaves open follows
Photoroom's released baseline configuration. `prx/presets/` holds named starting points.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    PositiveInt,
    SerializeAsAny,
    ValidationError,
)

from prx import registry
from prx.config_data import DataConfig
from prx.config_evaluation import EvaluationConfig as EvaluationConfig
from prx.config_evaluation import SamplingConfig as SamplingConfig
from prx.errors import ConfigError, Problem
from prx.strict import PositiveFloat, Probability, Strict
from prx.yamlsource import PathKeys, Source, dotted

Precision = Literal["fp32", "fp32_autocast_bf16", "bf16_master", "bf16_pure"]


class PartConfig(Strict):
    """Settings of one technique; `use` names it in the registry."""

    use: str


class ConflictStop(Strict):
    """End a term when its gradient fights the objective's: mean cosine on one block below `below`.

    Measured every `every` steps from step `start` on, at fixed timesteps, over `num_samples` images in whole
    batches, which are the run's first ones.
    Source: HASTE, Wang et al. 2025 (arXiv:2505.16792).
    """

    below: Annotated[float, Field(ge=-1, le=1)] = -0.05
    every: PositiveInt = 10_000
    start: Annotated[int, Field(ge=0)] = 50_000
    block: Annotated[int, Field(ge=0)] = 7
    times: Annotated[list[Probability], Field(min_length=1)] = [0.02, 0.1, 0.5, 0.8]
    num_samples: PositiveInt = 2_048

    def due_at(self, step: int) -> bool:
        """Tell whether to measure before the step that follows `step` updates."""
        return step >= self.start and (step - self.start) % self.every == 0


class TermConfig(PartConfig):
    """What every loss term has: a weight, and how it changes until the step where the term stops.

    From `stop_step` on the term is absent: no loss, no gradient, no teacher. `linear` and `cosine` let the
    weight fall to zero at `stop_step`, or at the run's end where it never stops.
    """

    weight: PositiveFloat = 0.5
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    stop_step: PositiveInt | Literal["never"] = "never"

    def weight_at(self, step: int, steps: int) -> float:
        """Give the weight of the step that follows `step` updates, in a run of `steps`; 0 means absent."""
        end = steps if self.stop_step == "never" else self.stop_step
        if step >= end and self.stop_step != "never":
            return 0.0
        share = min(1.0, step / end)
        factor = {"constant": 1.0, "linear": 1 - share, "cosine": 0.5 * (1 + math.cos(math.pi * share))}
        return self.weight * factor[self.schedule]


class RouterConfig(PartConfig):
    """What every router has: the blocks it shortens, inclusive and 0-based, and how many tokens it drops.

    From step `dense_from` on every token runs, as in SPRINT's second stage (arXiv:2510.21986).
    """

    start: Annotated[int, Field(ge=0)] | None = None
    end: Annotated[int, Field(ge=0)] | None = None
    drop_rate: Annotated[float, Field(gt=0, lt=1)] = 0.5
    dense_from: PositiveInt | Literal["never"] = "never"

    def span(self, depth: int) -> tuple[int, int]:
        """Give the first and the last routed block; unless told, two blocks before and three after run dense.

        So do TREAD's and PRX's (2..8 of 12, 2..12 of 16); below depth 12 a quarter on each side.
        """
        start = min(2, max(1, depth // 4)) if self.start is None else self.start
        return start, depth - 1 - min(3, depth // 4) if self.end is None else self.end

    def num_kept(self, num_tokens: int) -> int:
        """Give K: all but the rounded share, at least one and at most all but one."""
        return min(max(1, num_tokens - round(self.drop_rate * num_tokens)), num_tokens - 1)

    def drops_at(self, step: int) -> bool:
        """Tell whether the step that follows `step` updates drops tokens."""
        return self.dense_from == "never" or step < self.dense_from

    def misfits(self, depth: int, num_tokens: int) -> list[tuple[str, str]]:
        """Find what does not fit a denoiser of `depth` blocks on `num_tokens` tokens: (key, message)."""
        (start, end), found = self.span(depth), []
        if end >= depth:
            found.append(("end", f"must be in 0..{depth - 1} (denoiser.depth is {depth}), got {end}"))
        if start > end:
            found.append(("start", f"must be at most end ({end}; denoiser.depth is {depth}), got {start}"))
        if num_tokens < 2:
            found.append(("drop_rate", f"needs at least 2 image tokens to drop one of, got {num_tokens}"))
        return found


class AlignmentConfig(TermConfig):
    """What comparing with a teacher adds to a term: it may end by itself, if `stop_step` does not end it before."""

    teacher: str
    stop_when: ConflictStop | None = None

    def stop_problems(self, deepest: int, zero_stage: int) -> list[tuple[str, str]]:
        """Refuse a `stop_when` that could not measure; `deepest` is the last block with a gradient of the term."""
        found = []
        if self.stop_when is not None and zero_stage == 3:
            found.append(("stop_when", "must be null with infrastructure.zero_stage 3, which leaves no worker a "
                          "whole gradient; stages 0..2 do"))  # fmt: skip
        if self.stop_when is not None and self.stop_when.block > deepest:
            found.append(("stop_when.block", f"must be in 0..{deepest}, where the term has a gradient, got "
                          f"{self.stop_when.block}"))  # fmt: skip
        return found


def _part(kind: str) -> BeforeValidator:
    def validate(value: Any) -> Any:
        if isinstance(value, PartConfig):
            return value
        if not isinstance(value, Mapping) or not isinstance(value.get("use"), str):
            known = ", ".join(registry.names(kind)) or "none yet"
            raise ValueError(f"must be a mapping with `use`, one of {known}; got {value!r}")
        return registry.resolve(kind, value["use"]).Config.model_validate(dict(value))

    return BeforeValidator(validate)


def _use(name: str, **settings: Any) -> Any:
    """Make a technique the default of its slot; validated like a written one."""
    return Field(default_factory=lambda: {"use": name, **settings})


class TextConfig(Strict):
    """Frozen text encoder. Dropping a caption means encoding the empty string (techniques 2)."""

    encoder: str = "google/t5gemma-2b-2b-ul2"
    max_tokens: PositiveInt = 256
    caption_dropout: Probability = 0.1


class InitConfig(Strict):
    """Weights to start from: a folder or hub id of a `PRXTransformer2DModel` that diffusers saved."""

    path: str
    subfolder: str | None = None
    revision: str | None = None


class DenoiserConfig(Strict):
    """Shape of the PRX transformer; defaults are PRX-1.2B.

    `bottleneck` embeds patches through that many features, as JiT does (arXiv:2511.13720); `resolution`
    tells the model the latent's size, by `vec`, added to the time embedding, or `token`, beside the text:
    a constant where all images have one size, of which no effect is to be expected.
    """

    width: PositiveInt = 1792
    depth: PositiveInt = 16
    heads: PositiveInt = 28
    patch_size: PositiveInt = 2
    mlp_ratio: PositiveFloat = 3.5
    theta: PositiveInt = 10_000
    bottleneck: PositiveInt | None = None
    resolution: Literal["off", "vec", "token"] = "off"
    init: InitConfig | None = None


class EmaConfig(Strict):
    """Average of the weights, kept in float32: every `every` steps from `start` on; PRX's values."""

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    every: PositiveInt = 10
    start: Annotated[int, Field(ge=0)] = 0


class CacheConfig(Strict):
    """Where frozen encoders' outputs are kept, and how much of the disk they may take."""

    max_gb: PositiveFloat = 200.0


class InfrastructureConfig(Strict):
    """How a run is executed. Never part of its identity."""

    workers: PositiveInt = 1
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 2
    micro_batch: PositiveInt | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: PositiveInt | None = None


class RunConfig(Strict):
    """Everything that decides what one run trains."""

    name: str = "run"
    seed: Annotated[int, Field(ge=0)] = 0
    steps: PositiveInt = 100_000
    batch_size: PositiveInt = 256
    warmup_steps: Annotated[int, Field(ge=0)] = 1_000
    grad_clip: PositiveFloat | None = 0.2
    precision: Precision = "fp32_autocast_bf16"
    data: DataConfig = DataConfig()
    text: TextConfig = TextConfig()
    tokenizer: Annotated[SerializeAsAny[PartConfig], _part("tokenizer")] = _use(
        "autoencoder", path="black-forest-labs/FLUX.1-dev", subfolder="vae"
    )
    denoiser: DenoiserConfig = DenoiserConfig()
    objective: Annotated[SerializeAsAny[PartConfig], _part("objective")] = _use("velocity")
    losses: dict[str, Annotated[SerializeAsAny[PartConfig], _part("loss")]] = Field(default_factory=dict)
    routing: Annotated[SerializeAsAny[PartConfig], _part("routing")] | None = None
    optimizer: Annotated[SerializeAsAny[PartConfig], _part("optimizer")] = _use("adamw")
    ema: EmaConfig | None = None
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    cache: CacheConfig = CacheConfig()
    infrastructure: InfrastructureConfig = InfrastructureConfig()

    @property
    def micro_batch(self) -> int:
        """Images one worker passes through the denoiser at once."""
        return self.infrastructure.micro_batch or self.batch_size // self.infrastructure.workers


PART_KINDS = {
    "tokenizer": "tokenizer",
    "objective": "objective",
    "losses": "loss",
    "routing": "routing",
    "optimizer": "optimizer",
}
NOT_IDENTITY = {"name", "infrastructure", "cache"}


def config_id(config: RunConfig) -> str:
    """Hash what decides the result; equal ids train equal models."""
    content = config.model_dump(mode="json", exclude=NOT_IDENTITY)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _message(error: Mapping[str, Any], keys: PathKeys, model: Any, data: Any) -> str:
    value = error.get("input")
    if error["type"] == "extra_forbidden":
        allowed = sorted(_fields(model, keys[:-1], data))
        return f"unknown key; {registry.choices(keys[-1], allowed)}" if allowed else "unknown key"
    text = str(error["msg"]).removeprefix("Value error, ")
    text = text.replace("Input should", "must").replace("Field required", "is required")
    shown = "" if error["type"] in {"missing", "value_error"} else f", got {value!r}"
    return text[0].lower() + text[1:] + shown


def _fields(model: Any, keys: PathKeys, data: Any) -> list[str]:
    """Names allowed at a path: by the static types, and for a technique by the `use` that was written."""
    if model is RunConfig and keys and keys[0] in PART_KINDS:
        size = 2 if keys[0] == "losses" else 1
        for key in keys[:size]:
            data = data[key]
        return _fields(registry.resolve(PART_KINDS[str(keys[0])], data["use"]).Config, keys[size:], data)
    if isinstance(model, type) and issubclass(model, BaseModel):
        if not keys:
            return [info.alias or name for name, info in model.model_fields.items()]
        info = model.model_fields.get(str(keys[0]))
        return _fields(info.annotation, keys[1:], data) if info else []
    if get_origin(model) in {dict, list}:
        return _fields(get_args(model)[-1], keys[1:], data)
    return next(filter(None, (_fields(choice, keys, data) for choice in get_args(model))), [])


def problems_of(error: ValidationError, model: Any, source: Source | None, data: Any) -> list[Problem]:
    """Turn pydantic's errors about `data` into ours, with file and line where the value was written."""
    found = []
    for item in error.errors():
        keys = tuple(k for k in item["loc"] if k != "[key]")
        message = _message(item, keys, model, data)
        found.append(source.problem(keys, message) if source else Problem(dotted(keys), message))
    return found


def parse_run_config(data: Any, source: Source | None = None) -> RunConfig:
    """Validate a mapping into a `RunConfig`.

    Raises:
        ConfigError: Lists every unknown key, wrong type and value out of range, with file and line.
    """
    if not isinstance(data, Mapping):
        where = (source.file, 1) if source else (None, None)
        raise ConfigError([Problem("", f"must be a mapping of settings, got {data!r}", *where)])
    try:
        return RunConfig.model_validate(dict(data))
    except ValidationError as error:
        raise ConfigError(problems_of(error, RunConfig, source, data)) from error
