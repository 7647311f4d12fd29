"""Measure what the attribute reader still reads after each tokenizer: the ceiling of prompt adherence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2
from transformers import ResNetForImageClassification

from prx.embedded.training.common import (
    IMAGENET,
    Job,
    Record,
    attribute_accuracy,
    held_out,
    normalise,
)

_TOKENIZERS: dict[str, Any] = {"flux": AutoencoderKL, "flux2": AutoencoderKLFlux2, "repa_e": AutoencoderKL}


def reading_after_reconstruction(job: Job) -> dict[str, Record]:
    """Give, for each tokenizer that is there beside a reader, the attribute accuracies on reconstructions."""
    if not (job.out / "reader" / "config.json").exists():
        return {}
    present = [role for role in _TOKENIZERS if (job.out / role / "config.json").exists()]
    return {role: {"accuracy_after_reconstruction": _read(job, role)} for role in present}


@torch.no_grad()
def _read(job: Job, role: str) -> dict[str, float]:
    vae = _TOKENIZERS[role].from_pretrained(job.out / role).eval()
    reader = _reader(job.out)
    batch = held_out(job.scenes(512))
    logits = []
    for part in batch.images.split(128):
        output = vae.decode(vae.encode(2 * part - 1).latent_dist.mode()).sample
        logits.append(reader(pixel_values=normalise((output.clamp(-1, 1) + 1) / 2, IMAGENET)).logits)
    return attribute_accuracy(torch.cat(logits), batch.attributes)


def _reader(out: Path) -> Any:
    return ResNetForImageClassification.from_pretrained(out / "reader", dtype=torch.float32).eval()
