"""The configuration of one training run: typed, strict, hashed.

Defaults are the article's baseline (PRX part 2, section "The Baseline"); what it leaves open follows
Photoroom's released baseline configuration. `prx/presets/` holds named starting points.
"""

from __future__ import annotations

import hashlib
import json
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
from prx.config_parts import AlignmentConfig as AlignmentConfig
from prx.config_parts import ConflictStop as ConflictStop
from prx.config_parts import PartConfig as PartConfig
from prx.config_parts import RouterConfig as RouterConfig
from prx.config_parts import TermConfig as TermConfig
from prx.errors import ConfigError, Problem
from prx.strict import PositiveFloat, Probability, Strict
from prx.yamlsource import PathKeys, Source, dotted

Precision = Literal["fp32", "fp32_autocast_bf16", "bf16_master", "bf16_pure"]


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
    """Frozen text encoder.

    Args:
        encoder: A local folder, a hub id or `embedded:ROLE`.
        max_tokens: Tokens of a caption at the most; what is longer is cut.
        caption_dropout: Share of samples that train on the encoded empty string.
    """

    encoder: str = "google/t5gemma-2b-2b-ul2"
    max_tokens: PositiveInt = 256
    caption_dropout: Probability = 0.1


class InitConfig(Strict):
    """Weights to start from.

    Args:
        path: Folder or hub id of a `PRXTransformer2DModel` that diffusers saved.
        subfolder: Folder in it.
        revision: Revision of the hub's repository.
    """

    path: str
    subfolder: str | None = None
    revision: str | None = None


class DenoiserConfig(Strict):
    """Shape of the PRX transformer; defaults are PRX-1.2B.

    Args:
        width: Features of a token.
        depth: Blocks.
        heads: Attention heads of a block.
        patch_size: Side of the square of latent pixels that is one token.
        mlp_ratio: Hidden width of a block's MLP over `width`.
        theta: Base of the rotary position embedding.
        bottleneck: Features through which patches are embedded, as in JiT (arXiv:2511.13720).
        resolution: How the model is told the latent's size: `vec`, added to the time embedding, or `token`, beside
            the text. A constant where all images have one size, of which no effect is to be expected.
        init: Weights to start from; at random unless told.
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
    """Average of the weights, kept in float32; PRX's values.

    Args:
        decay: Share of the average that stays at an update.
        every: Steps between updates.
        start: Step from which it is kept.
    """

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    every: PositiveInt = 10
    start: Annotated[int, Field(ge=0)] = 0


class CacheConfig(Strict):
    """How much of the disk the outputs of frozen encoders may take.

    Args:
        max_gb: Gigabytes of all outputs that the runs need; more is refused before anything is encoded.
    """

    max_gb: PositiveFloat = 200.0


class InfrastructureConfig(Strict):
    """How a run is executed. Never part of its identity.

    Args:
        workers: Processes that train together.
        zero_stage: DeepSpeed's: 1 shards optimizer states, 2 gradients too, 3 weights too.
        micro_batch: Images that a worker passes through the denoiser at once; its whole share unless told.
        device: Where it trains; `auto` takes CUDA where there is any.
        threads: Threads of a worker on a CPU; torch's own choice unless told.
    """

    workers: PositiveInt = 1
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 2
    micro_batch: PositiveInt | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: PositiveInt | None = None


class RunConfig(Strict):
    """Everything that decides what one run trains.

    Args:
        name: Names the run; never part of its identity.
        seed: Seed of every draw: weights, order of the data, timesteps, noise, dropped captions.
        steps: Updates of the weights.
        batch_size: Images of an update, over all workers.
        warmup_steps: Steps in which the learning rate rises from 0; it is constant from then on.
        grad_clip: Norm that gradients are clipped to; null does not clip.
        precision: What weights, states and compute are kept in.
        data: Images and captions.
        text: The frozen text encoder.
        tokenizer: The frozen map between images and latents.
        denoiser: Shape of the model that is trained.
        objective: What is predicted, at which times.
        losses: Terms added to the objective's loss, each under a name of yours.
        routing: Tokens that skip blocks in training.
        optimizer: What updates the weights.
        ema: Average of the weights, to be sampled from.
        sampling: How pictures are drawn.
        evaluation: When and against what the run is measured.
        cache: How much of the disk encoded data may take.
        infrastructure: How the run is executed.
    """

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
