"""Embed a reference set once per data fingerprint and extractor, and keep it on disk."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from evaluation.features import BATCH_SIZE, Extractor

FORMAT_VERSION = "1"
SPOT_IMAGES = 64


@dataclass(frozen=True)
class Reference:
    """Hold the embeddings of one reference set by extractor name.

    Shapes: each entry float32 [count, width].
    """

    embeddings: Mapping[str, Tensor]
    hash: str
    count: int


def build_reference(
    images: Tensor,
    extractors: Mapping[str, Extractor],
    *,
    cache: Path | None,
    fingerprint: str,
    batch_size: int = BATCH_SIZE,
) -> Reference:
    """Return the embeddings of the images, from the cache where it holds them.

    `hash` names data, count and extractor versions, not floating-point results, so it agrees between
    machines.

    Shapes: images uint8 [count, 3, H, W].
    Raises: ValueError for an empty fingerprint or no images.
    """
    if not fingerprint:
        raise ValueError("reference fingerprint must not be empty, got ''")
    if not len(images):
        raise ValueError("reference images must hold at least one image, got 0")
    identity = f"{fingerprint}:{len(images)}:{_spot_hash(images)}"
    embeddings = {
        name: _cached(images, extractor, cache, identity, batch_size)
        for name, extractor in sorted(extractors.items())
    }
    versions = [f"{name}={extractor.version}" for name, extractor in sorted(extractors.items())]
    return Reference(embeddings, _digest(identity, *versions), len(images))


def _spot_hash(images: Tensor) -> str:
    """Hash evenly spaced images: a fingerprint given with other pictures must not find their embeddings."""
    rows = torch.linspace(0, len(images) - 1, min(SPOT_IMAGES, len(images))).round().long()
    sample = images[rows].contiguous().cpu()
    return _digest(str(list(images.shape)), hashlib.sha256(sample.numpy().tobytes()).hexdigest())


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _cached(
    images: Tensor, extractor: Extractor, cache: Path | None, identity: str, batch_size: int
) -> Tensor:
    if cache is None:
        return extractor.embed(images, batch_size=batch_size)
    key = _digest(FORMAT_VERSION, identity, extractor.version)
    file = cache / f"reference-{extractor.name}-{key}.safetensors"
    found = _load(file, key, (len(images), extractor.width)) if file.exists() else None
    if found is None:
        found = extractor.embed(images, batch_size=batch_size)
        _store(file, key, found)
    return found


def _load(file: Path, key: str, shape: tuple[int, int]) -> Tensor | None:
    try:
        with safe_open(file, framework="pt") as stored:
            metadata, embeddings = stored.metadata() or {}, stored.get_tensor("embeddings")
    except FileNotFoundError:
        # Another worker set it aside between the look and the read.
        return None
    except (SafetensorError, OSError) as error:
        return _set_aside(file, f"cannot be read ({error})")
    if metadata.get("key") != key or tuple(embeddings.shape) != shape:
        return _set_aside(file, "belongs to another reference set")
    if metadata.get("checksum") != _checksum(embeddings):
        return _set_aside(file, "does not match its checksum")
    return embeddings


def _set_aside(file: Path, reason: str) -> Tensor | None:
    """Move a bad file out of the way with a warning; there is nothing to return in its place."""
    warnings.warn(f"{file} {reason}: set aside and computed again", stacklevel=4)
    with suppress(FileNotFoundError):
        file.replace(file.with_name(f"{file.name}.damaged-{uuid4().hex[:8]}"))
    return None


def _checksum(embeddings: Tensor) -> str:
    return hashlib.sha256(embeddings.contiguous().numpy().tobytes()).hexdigest()


def _store(file: Path, key: str, embeddings: Tensor) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"key": key, "checksum": _checksum(embeddings)}
    temporary = file.with_name(f".{file.name}.{uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(save({"embeddings": embeddings.contiguous()}, metadata=metadata))
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
