"""Train the residual networks: the attribute reader and the features behind FID."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import ResNetConfig, ResNetForImageClassification

from prx.embedded.training.common import (
    IMAGENET,
    Job,
    Record,
    attribute_accuracy,
    attribute_labels,
    attribute_loss,
    fit,
    held_out,
    make_batch,
    normalise,
    num_parameters,
    roughen,
    save,
    save_preprocessor,
)

_BATCH = 128


def build_reader(job: Job) -> Record:
    """Train the classifier that reads attributes back from pictures."""
    return _build(job, "reader", (48, 64, 80, 96), seed=31, steps=job.steps(2400))


def build_inception(job: Job) -> Record:
    """Train the classifier whose pooled 64-wide features FID compares."""
    return _build(job, "inception", (32, 48, 64), seed=32, steps=job.steps(1200))


def _build(job: Job, role: str, widths: tuple[int, ...], *, seed: int, steps: int) -> Record:
    torch.manual_seed(seed)
    labels = attribute_labels()
    model = ResNetForImageClassification(
        ResNetConfig(
            embedding_size=32,
            hidden_sizes=widths,
            depths=(1,) * len(widths),
            layer_type="basic",
            id2label=dict(enumerate(labels)),
            label2id={label: i for i, label in enumerate(labels)},
        )
    )
    rng = torch.Generator().manual_seed(seed)

    def loss_of(step: int) -> Tensor:
        batch = make_batch(seed, step, _BATCH)
        return attribute_loss(
            model(pixel_values=normalise(roughen(batch.images, rng), IMAGENET)).logits, batch.attributes
        )

    model.train()
    loss = fit((model,), loss_of, steps=steps, lr=4e-3, label=role)
    folder = job.out / role
    save(model, folder)
    save_preprocessor(folder, IMAGENET, "ConvNextImageProcessor")
    facts = {
        "objective": "nine scene attributes, one head each",
        "steps": steps,
        "batch": _BATCH,
        "seed": seed,
    }
    return {**facts, "train_loss": loss, **_measure(job, role)}


def _measure(job: Job, role: str) -> Record:
    """Measure held-out accuracy on clean and on roughened renders."""
    model = ResNetForImageClassification.from_pretrained(job.out / role, dtype=torch.float32).eval()
    batch = held_out(job.scenes(1024))
    rough = roughen(batch.images, torch.Generator().manual_seed(0))
    with torch.no_grad():
        clean, noisy = (model(pixel_values=normalise(images, IMAGENET)).logits for images in (batch.images, rough))
    return {
        "parameters": num_parameters(model),
        "accuracy": attribute_accuracy(clean, batch.attributes),
        "accuracy_roughened": attribute_accuracy(noisy, batch.attributes),
    }
