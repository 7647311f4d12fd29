"""From a configuration to parts: what it needs, whether it can work, how it is built."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from prx import denoiser, end_to_end, loaders, registry, rng, starting_point, teachers, text
from prx.config import PartConfig, RunConfig, SamplingConfig
from prx.errors import Problem, UserError
from prx.interfaces import (
    ImageTokenizer,
    LossTerm,
    Objective,
    OptimizerFactory,
    RunShape,
    TokenRouter,
    TrainedTokenizer,
)
from prx.train_step import MAIN_TERM, TrainStep

PURE_STAGES = "1..3"


def device_of(config: RunConfig) -> torch.device:
    """Choose where a run computes.

    Raises:
        UserError: CUDA is asked for and not there.
    """
    wanted = config.infrastructure.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("infrastructure.device: cuda is not available here, use cpu or auto")
    name = "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"
    return torch.device(name, torch.cuda.current_device()) if name == "cuda" else torch.device(name)


def shape_of(config: RunConfig) -> RunShape:
    """Work out the sizes of a run without weights or data."""
    part, denoiser = config.tokenizer, config.denoiser
    channels, downsample = registry.resolve("tokenizer", part.use).geometry(part)
    latent = config.data.image_size // downsample
    side = latent // denoiser.patch_size
    shape = RunShape(
        channels, latent, denoiser.depth, (side, side), denoiser.width, denoiser.heads,
        zero_stage=config.infrastructure.zero_stage, grad_clip=config.grad_clip, provides=_provided(config),
        caption_dropout=config.text.caption_dropout,
    )  # fmt: skip
    if config.routing is None:
        return shape
    return replace(shape, route=registry.resolve("routing", config.routing.use).span(config.routing, shape))


def _slots(config: RunConfig) -> Iterator[tuple[str, str, PartConfig]]:
    """List the parts: (config path, kind, settings)."""
    yield "objective", "objective", config.objective
    yield "tokenizer", "tokenizer", config.tokenizer
    yield "optimizer", "optimizer", config.optimizer
    if config.routing is not None:
        yield "routing", "routing", config.routing
    for name, part in config.losses.items():
        yield f"losses.{name}", "loss", part


def _provided(config: RunConfig) -> frozenset[str]:
    classes = [registry.resolve(kind, part.use) for _, kind, part in _slots(config)]
    return frozenset().union(*(found.PROVIDES for found in classes))


def problems(config: RunConfig) -> list[Problem]:
    """Find every impossible combination, from the configuration alone: no weights, no data, no GPU."""
    found = [*_sizes(config), *_batching(config), *_models(config), *_average(config)]
    if any(problem.path.startswith("tokenizer") for problem in found):
        return found
    shape = shape_of(config)
    if not any(problem.path in {"denoiser.heads", "text.encoder"} for problem in found):
        width = text.text_width(config.text.encoder)
        found += starting_point.problems(config.denoiser, shape.channels, width)
    return found + list(_parts(config, shape))


def _sizes(config: RunConfig) -> Iterator[Problem]:
    d = config.denoiser
    if d.width % d.heads or (d.width // d.heads) % 4:
        yield Problem("denoiser.heads", f"must divide denoiser.width ({d.width}) into heads of a multiple of 4 for "
                      f"rotary positions on two axes, got {d.heads}")  # fmt: skip
    try:
        _, downsample = registry.resolve("tokenizer", config.tokenizer.use).geometry(config.tokenizer)
    except UserError as error:
        yield Problem("tokenizer.path", str(error))
        return
    step = downsample * d.patch_size
    if config.data.image_size % step:
        yield Problem("data.image_size", f"must be a multiple of {step} (tokenizer {downsample}x, denoiser.patch_size "
                      f"{d.patch_size}), got {config.data.image_size}")  # fmt: skip


def _batching(config: RunConfig) -> Iterator[Problem]:
    infra = config.infrastructure
    if config.batch_size % infra.workers:
        yield Problem("batch_size", f"must be a multiple of infrastructure.workers ({infra.workers}), got "
                      f"{config.batch_size}")  # fmt: skip
    elif (config.batch_size // infra.workers) % config.micro_batch:
        yield Problem("infrastructure.micro_batch", f"must divide the {config.batch_size // infra.workers} samples of "
                      f"one worker, got {config.micro_batch}")  # fmt: skip
    if config.precision == "bf16_pure" and infra.zero_stage == 0:
        yield Problem("infrastructure.zero_stage", f"must be {PURE_STAGES} with precision bf16_pure (DeepSpeed keeps "
                      "a float32 master copy at stage 0), got 0")  # fmt: skip
    if config.warmup_steps > config.steps:
        yield Problem("warmup_steps", f"must be at most steps ({config.steps}), got {config.warmup_steps}")
    if config.evaluation.grid > config.evaluation.num_samples:
        yield Problem("evaluation.grid", f"must be at most evaluation.num_samples ({config.evaluation.num_samples}), "
                      f"got {config.evaluation.grid}")  # fmt: skip


def _models(config: RunConfig) -> Iterator[Problem]:
    try:
        text.text_width(config.text.encoder)
    except UserError as error:
        yield Problem("text.encoder", str(error))
    for role in ("clip", "dino", "inception", "reader"):
        path = getattr(config.evaluation, role)
        try:
            if path and path.startswith(loaders.EMBEDDED):
                loaders.read_config(path)
        except UserError as error:
            yield Problem(f"evaluation.{role}", str(error))


def _parts(config: RunConfig, shape: RunShape) -> Iterator[Problem]:
    for path, kind, part in _slots(config):
        technique = registry.resolve(kind, part.use)
        for key, message in technique.problems(part, shape):
            yield Problem(f"{path}.{key}", message)
        if kind == "loss":
            yield from _name_problems(path)
            yield from _loss_problems(config, path, technique.teacher(part, shape))
    yield from _guidance(config, shape)
    yield from end_to_end.problems(config, shape)
    if any(_pairs(part) for part in config.losses.values()) and config.batch_size < 2:
        yield Problem("batch_size", "must be at least 2 for a loss that pairs samples, got 1")


def _guidance(config: RunConfig, shape: RunShape) -> Iterator[Problem]:
    yield from _drawn("sampling", config.sampling, config, shape)
    seen = [config.sampling]
    for index, also in enumerate(config.evaluation.also):
        path, sampling = f"evaluation.also[{index}]", also.applied(config.sampling)
        yield from _drawn(path, sampling, config, shape)
        if sampling in seen:
            yield Problem(path, f"must differ from `sampling` and from the others, got {also.label or 'nothing'}")
        seen.append(sampling)


def _drawn(path: str, sampling: SamplingConfig, config: RunConfig, shape: RunShape) -> Iterator[Problem]:
    wanted = sampling.guidance
    if wanted != "text" and f"guidance:{wanted}" not in shape.provides:
        offered = sorted(name.partition(":")[2] for name in shape.provides if name.startswith("guidance:"))
        yield Problem(f"{path}.guidance", f"must be text{''.join(f' or {name}' for name in offered)} with this "
                      f"routing, got {wanted!r}")  # fmt: skip
    if sampling.weights == "ema" and config.ema is None:
        yield Problem(f"{path}.weights", "must be model where `ema` is not set, got 'ema'")


def _average(config: RunConfig) -> Iterator[Problem]:
    if config.ema is None:
        return
    if config.infrastructure.zero_stage == 3:
        yield Problem("ema", "must be null at infrastructure.zero_stage 3, which leaves no worker whole weights to "
                      "average; stages 0..2 do")  # fmt: skip
    if config.ema.start >= config.steps:
        yield Problem("ema.start", f"must be below steps ({config.steps}), got {config.ema.start}")


def _name_problems(path: str) -> Iterator[Problem]:
    """A term's name keys modules, metrics and config paths; some names are taken there."""
    name = path.removeprefix("losses.")
    if not name.isidentifier() or name in {"loss", MAIN_TERM} or hasattr(nn.ModuleDict(), name):
        rule = f"must be named by letters, digits and _, and not loss, {MAIN_TERM} or what a module has"
        yield Problem(path, f"{rule}, got {name!r}")


def _loss_problems(config: RunConfig, path: str, spec: Any) -> Iterator[Problem]:
    if spec is None:
        return
    try:
        teachers.teacher_width(spec.path)
    except UserError as error:
        yield Problem(f"{path}.teacher", str(error))


def _pairs(part: Any) -> bool:
    return registry.resolve("loss", part.use).pair is not LossTerm.pair


def tokenizer_identity(part: Any) -> str:
    """Name a tokenizer's weights and preprocessing."""
    return registry.resolve("tokenizer", part.use).identity(part)


def tokenizer(part: Any, device: torch.device) -> ImageTokenizer:
    """Load a tokenizer, or take the one this process already holds: it is frozen."""
    assert end_to_end.TRAINED not in registry.resolve("tokenizer", part.use).PROVIDES, "`build` makes one to train"
    return _tokenizer(part.use, part.model_dump_json(), str(device))


@lru_cache(maxsize=4)
def _tokenizer(use: str, config: str, device: str) -> ImageTokenizer:
    technique = registry.resolve("tokenizer", use)
    return technique(technique.Config.model_validate_json(config), torch.device(device))


def objective(config: RunConfig) -> Objective:
    """Build the objective."""
    return registry.resolve("objective", config.objective.use)(config.objective)


def optimizer(config: RunConfig) -> OptimizerFactory:
    """Build the optimizer's factory."""
    return registry.resolve("optimizer", config.optimizer.use)(config.optimizer)


def build(config: RunConfig) -> TrainStep:
    """Build the module that is trained, on the CPU, initialised from the run's seed.

    Each part is initialised from a stream of its own, so that adding one leaves the others' weights alone.
    """
    shape = shape_of(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.torch_seed(config.seed, "init/denoiser"))
        model = denoiser.build(config.denoiser, shape.channels, text.text_width(config.text.encoder))
        losses = {name: _loss(config, name, shape) for name in config.losses}
        router = _router(config, shape)
        resolution = _resolution(config)
        trained = _trained_tokenizer(config, shape)
    if config.denoiser.init is not None:
        starting_point.load(model, config.denoiser.init)
    autocast = config.precision == "fp32_autocast_bf16"
    step = TrainStep if trained is None else end_to_end.EndToEnd
    return step(
        model, objective(config), losses, router, grid=shape.grid, autocast=autocast, resolution=resolution,
        tokenizer=trained,
    )  # fmt: skip


def _trained_tokenizer(config: RunConfig, shape: RunShape) -> TrainedTokenizer | None:
    if end_to_end.TRAINED not in shape.provides:
        return None
    torch.manual_seed(rng.torch_seed(config.seed, "init/tokenizer"))
    return registry.resolve("tokenizer", config.tokenizer.use)(config.tokenizer, torch.device("cpu"))


def _resolution(config: RunConfig) -> denoiser.ResolutionTokens | None:
    if config.denoiser.resolution != "token":
        return None
    torch.manual_seed(rng.torch_seed(config.seed, "init/resolution"))
    return denoiser.ResolutionTokens(config.denoiser.width)


def _router(config: RunConfig, shape: RunShape) -> TokenRouter | None:
    if config.routing is None:
        return None
    torch.manual_seed(rng.torch_seed(config.seed, "init/routing"))
    return registry.resolve("routing", config.routing.use)(config.routing, shape)


def _loss(config: RunConfig, name: str, shape: RunShape) -> LossTerm:
    part = config.losses[name]
    technique = registry.resolve("loss", part.use)
    torch.manual_seed(rng.torch_seed(config.seed, f"init/losses/{name}"))
    spec = technique.teacher(part, shape)
    return technique(name, part, shape, 0 if spec is None else teachers.teacher_width(spec.path))
