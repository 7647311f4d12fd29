"""Encode once what no trial changes: latents, text embeddings, teacher tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prx import cache, recipe, registry, teachers, text
from prx import data as datasets
from prx import images as pictures
from prx.cache import CacheKey, Joined, Rows
from prx.config import DataConfig, RunConfig
from prx.data import Dataset
from prx.end_to_end import TRAINED
from prx.errors import DataError
from prx.interfaces import TeacherSpec

Report = Callable[[str, int, int], None]
BATCH = 128
MEASURED = 1024
"""Images of a training set that the latents of a tokenizer yet to be trained are measured on."""


@dataclass(frozen=True)
class Job:
    """One encoding: its key, how many rows, and how to make them."""

    key: CacheKey
    what: str
    num: int
    row_values: int
    parts: Callable[[], Iterator[Mapping[str, Tensor]]]


@dataclass(frozen=True)
class Caches:
    """The encodings one configuration trains from; text by caption column, teachers by term.

    Lists have one encoding for every training set, in the order these are written.
    """

    latents: list[Job]
    texts: dict[str, list[Job]]
    null: Job
    prompts: Job
    targets: dict[str, list[Job]]
    statistics: list[Job]

    def all(self) -> list[Job]:
        """List every job."""
        texts, targets = (chain.from_iterable(jobs.values()) for jobs in (self.texts, self.targets))
        return [*self.latents, *texts, self.null, self.prompts, *targets, *self.statistics]


def plan(config: RunConfig, root: Path) -> Caches:
    """Name every encoding a run needs, without loading a model.

    Raises:
        DataError: The data cannot be opened.
        UserError: A model folder has no config.json.
    """
    train = datasets.train_sets(config.data, root / "data")
    held_out = datasets.reference_data(config.data, root / "data")
    shape = recipe.shape_of(config)
    trained = TRAINED in shape.provides
    targets = {}
    for name, part in config.losses.items():
        spec = registry.resolve("loss", part.use).teacher(part, shape)
        if spec is not None:
            targets[name] = [_teacher_job(config, dataset, spec) for dataset in train]
    return Caches(
        latents=[(_image_job if trained else _latent_job)(config, dataset) for dataset in train],
        texts={column: [_text_job(config, dataset, column) for dataset in train] for column in config.data.captions},
        null=_null_job(config),
        prompts=_text_job(config, held_out, config.data.prompt_column, "prompts"),
        targets=targets,
        statistics=[_statistics_job(config, dataset) for dataset in train] if trained else [],
    )


def read(root: Path, jobs: Sequence[Job]) -> Rows:
    """Map what jobs have encoded, one after the other."""
    parts = [cache.read(root, job.key) for job in jobs]
    return parts[0] if len(parts) == 1 else Joined(parts)


def prepare(configs: Sequence[RunConfig], root: Path, report: Report) -> None:
    """Encode what the configurations need and the cache does not have yet.

    Raises:
        DataError: Data is missing, corrupt, unreadable, or the cache would exceed `cache.max_gb`.
    """
    jobs = {job.key.digest: job for config in configs for job in plan(config, root).all()}
    _check_size(list(jobs.values()), min((config.cache.max_gb for config in configs), default=0.0))
    for job in jobs.values():
        if not cache.exists(root, job.key):
            cache.write(root, job.key, _reported(job, report))


def _reported(job: Job, report: Report) -> Iterator[Mapping[str, Tensor]]:
    done = 0
    report(job.what, 0, job.num)
    for part in job.parts():
        done += len(next(iter(part.values())))
        yield part
        report(job.what, done, job.num)


def _check_size(jobs: Sequence[Job], max_gb: float) -> None:
    """Compare the sum with the limit: a disk that holds each encoding may not hold all of them."""
    sizes = [(job.num * job.row_values * 2 / 1e9, job.what) for job in jobs]
    total = sum(size for size, _ in sizes)
    if total > max_gb:
        size, what = max(sizes)
        rule = f"the encodings would take {total:.3g} GB, {what} {size:.3g} GB of it"
        raise DataError(f"cache.max_gb: {rule}; at most {max_gb:g} GB are allowed")


def _half(values: Tensor, what: str) -> Tensor:
    stored = values.to(torch.float16).cpu()
    if not torch.isfinite(stored).all():
        raise DataError(f"{what} has values beyond the range of float16, in which caches are kept")
    return stored


def _device(config: RunConfig) -> torch.device:
    return recipe.device_of(config)


def _latent_job(config: RunConfig, dataset: Dataset) -> Job:
    part, size = config.tokenizer, config.data.image_size
    channels, downsample = registry.resolve("tokenizer", part.use).geometry(part)
    identity = recipe.tokenizer_identity(part)

    def parts() -> Iterator[Mapping[str, Tensor]]:
        tokenizer = recipe.tokenizer(part, _device(config))
        for images in _images(config, dataset):
            moments = tokenizer.encode(pictures.to_unit(images.to(_device(config))))
            yield {"moments": _half(moments, "the latent")}

    key = CacheKey("latents", f"{identity}:size={size}", _pictures(config, dataset))
    copies = 2 if getattr(part, "sample", False) else 1  # mean and deviation, where the posterior is drawn from
    values = copies * channels * (size // downsample) ** 2
    return Job(key, f"latents ({_short(part)})", dataset.num, values, parts)


def _image_job(config: RunConfig, dataset: Dataset) -> Job:
    """Keep the pictures themselves: latents of a tokenizer that is trained are of one step only."""
    size = config.data.image_size

    def parts() -> Iterator[Mapping[str, Tensor]]:
        for images in _images(config, dataset):
            yield {"images": images}

    key = CacheKey("images", f"uint8:size={size}:{config.data.image_column}", dataset.fingerprint)
    return Job(key, "images", dataset.num, 3 * size**2 // 2, parts)  # a value is half as long as the others'


def _statistics_job(config: RunConfig, dataset: Dataset) -> Job:
    part, num = config.tokenizer, min(MEASURED, dataset.num)
    technique = registry.resolve("tokenizer", part.use)

    def parts() -> Iterator[Mapping[str, Tensor]]:
        tokenizer, found, left = technique(part, _device(config)), [], num
        for images in _images(config, dataset):
            shown = images[:left]
            found.append(tokenizer.measure(pictures.to_unit(shown.to(_device(config)))).cpu() * len(shown))
            left -= len(shown)
            if not left:
                break
        yield {"channels": (torch.stack(found).sum(0) / num).unsqueeze(0)}

    identity = f"{recipe.tokenizer_identity(part)}:size={config.data.image_size}:first={num}"
    key = CacheKey("statistics", identity, _pictures(config, dataset))
    return Job(key, f"latent statistics ({_short(part)})", 1, 2 * technique.geometry(part)[0], parts)


def _pictures(config: RunConfig, dataset: Dataset) -> str:
    """Name the pictures of a data set that may have several columns of them; the usual one goes without saying."""
    column = config.data.image_column
    return dataset.fingerprint if column == DataConfig().image_column else f"{dataset.fingerprint}:{column}"


def _images(config: RunConfig, dataset: Dataset) -> Iterator[Tensor]:
    column = config.data.image_column
    for where, batch in datasets.batches(dataset, [column], BATCH):
        yield datasets.decode_images(where, batch[column], config.data.image_size)


def _teacher_job(config: RunConfig, dataset: Dataset, spec: TeacherSpec) -> Job:
    path, grid, layers = spec.path, spec.grid, spec.attention
    column = "attention" if layers else "tokens"

    def parts() -> Iterator[Mapping[str, Tensor]]:
        teacher = teachers.Teacher(path, _device(config), attention=bool(layers))
        for images in _images(config, dataset):
            shown = images.to(_device(config))
            found = teacher.attention(shown, grid, layers) if layers else teacher.tokens(shown, grid)
            yield {column: _half(found, f"teacher {path}")}

    of = f":attention={','.join(map(str, layers))}" if layers else ""
    encoder = f"{teachers.identity(path)}:grid={grid[0]}x{grid[1]}:size={config.data.image_size}{of}"
    num = grid[0] * grid[1]
    values = len(layers) * teachers.teacher_heads(path) * num**2 if layers else num * teachers.teacher_width(path)
    what = f"attention of {path}" if layers else f"teacher ({path})"
    return Job(CacheKey("teacher", encoder, _pictures(config, dataset)), what, dataset.num, values, parts)


def _text_job(config: RunConfig, dataset: Dataset, column: str, role: str = "captions") -> Job:
    path, limit = config.text.encoder, config.text.max_tokens

    def captions() -> Iterator[list[str]]:
        for where, batch in datasets.batches(dataset, [column], BATCH):
            if any(not isinstance(value, str) for value in batch[column]):
                raise DataError(f"{where}: column {column!r} must hold text in every row")
            yield batch[column]

    def parts() -> Iterator[Mapping[str, Tensor]]:
        encoder = text.TextEncoder(path, limit, _device(config))
        longest = max(max(encoder.lengths(rows)) for rows in captions())
        for rows in captions():
            yield _encoded(encoder, rows, longest)

    key = CacheKey("text", f"{text.identity(path, limit)}:{column}", dataset.fingerprint)
    return Job(key, f"{role} ({column})", dataset.num, limit * text.text_width(path), parts)


def _null_job(config: RunConfig) -> Job:
    path, limit = config.text.encoder, config.text.max_tokens

    def parts() -> Iterator[Mapping[str, Tensor]]:
        encoder = text.TextEncoder(path, limit, _device(config))
        yield _encoded(encoder, [""], max(1, encoder.lengths([""])[0]))

    key = CacheKey("null", text.identity(path, limit), "empty string")
    return Job(key, "the empty caption", 1, limit * text.text_width(path), parts)


def _encoded(encoder: text.TextEncoder, captions: list[str], length: int) -> dict[str, Tensor]:
    embeddings, mask = encoder.encode(captions, length)
    return {
        "embeddings": _half(embeddings, "the text encoder"), "mask": mask.to(torch.uint8).cpu(),
        "caption": torch.tensor([_number(caption) for caption in captions]),
    }  # fmt: skip


def _number(caption: str) -> int:
    """Give equal captions equal numbers, and different ones different numbers in practice: int64."""
    return int.from_bytes(hashlib.blake2b(caption.encode(), digest_size=8).digest(), "little", signed=True)


def _short(part: Any) -> str:
    return getattr(part, "path", part.use)
