"""Train the vision transformers: two alignment teachers and the encoder behind DINO-MMD."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
)

from prx.embedded.scenes import IMAGE_SIZE
from prx.embedded.training.common import (
    IMAGENET,
    PROBE_SEED,
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
    probe_patches,
    roughen,
    save,
    save_preprocessor,
)

PATCH, REGISTERS = 4, 4
PREFIX = 1 + REGISTERS
_BATCH = 64
_INIT = 0.1  # the library's 0.02 suits widths of hundreds


def build_dinov2(job: Job) -> Record:
    """Train the DINOv2-like teacher."""
    torch.manual_seed(11)
    return _build_teacher(job, "dinov2", _dinov2(width=64, depth=3, heads=2), seed=11, steps=job.steps(1200))


def build_dinov3(job: Job) -> Record:
    """Train the DINOv3-like teacher: wider, deeper and longer than the DINOv2-like one."""
    torch.manual_seed(12)
    model = DINOv3ViTModel(
        DINOv3ViTConfig(
            patch_size=PATCH,
            image_size=IMAGE_SIZE,
            hidden_size=96,
            intermediate_size=288,
            num_hidden_layers=4,
            num_attention_heads=3,
            num_register_tokens=REGISTERS,
            pos_embed_rescale=None,
            initializer_range=_INIT,
        )
    )
    return _build_teacher(job, "dinov3", model, seed=12, steps=job.steps(1500))


def _dinov2(width: int, depth: int, heads: int) -> Dinov2WithRegistersModel:
    config = Dinov2WithRegistersConfig(
        patch_size=PATCH,
        image_size=IMAGE_SIZE,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        mlp_ratio=3,
        num_register_tokens=REGISTERS,
        initializer_range=_INIT,
    )
    return Dinov2WithRegistersModel(config)


def _build_teacher(job: Job, role: str, model: Any, *, seed: int, steps: int, scene_weight: float = 0.5) -> Record:
    loss = _train_dense(model, role, seed=seed, steps=steps, scene_weight=scene_weight)
    folder = job.out / role
    save(model, folder)
    save_preprocessor(folder, IMAGENET, "BitImageProcessor")
    model = type(model).from_pretrained(folder, dtype=torch.float32).eval()
    return {
        "objective": "per-patch colour and shape from patch tokens, scene attributes from the class token "
        f"(weight {scene_weight}); heads discarded",
        "steps": steps,
        "batch": _BATCH,
        "seed": seed,
        "parameters": num_parameters(model),
        "train_loss": loss,
        "patch_probe": probe_patches(lambda images: patch_tokens(model, images), job.scenes(768)),
    }


def patch_tokens(model: Any, images: Tensor) -> Tensor:
    """Read a teacher's normed patch tokens.

    Shapes: images [B, 3, 32, 32] in [0, 1] to [B, 64, E].
    """
    return model(pixel_values=normalise(images, IMAGENET)).last_hidden_state[:, PREFIX:]


def _train_dense(model: Any, role: str, *, seed: int, steps: int, scene_weight: float) -> float:
    """Supervise patch tokens and class token; images are roughened so that features survive generation."""
    width = model.config.hidden_size
    colour, shape, scene = nn.Linear(width, 9), nn.Linear(width, 7), nn.Linear(width, len(attribute_labels()))
    rng = torch.Generator().manual_seed(seed)
    # Background patches outnumber the rest about seven to one.
    weight_colour, weight_shape = torch.tensor([0.3] + [1.0] * 8), torch.tensor([0.3] + [1.0] * 6)

    def loss_of(step: int) -> Tensor:
        batch = make_batch(seed, step, _BATCH)
        states = model(pixel_values=normalise(roughen(batch.images, rng), IMAGENET)).last_hidden_state
        patches = states[:, PREFIX:].flatten(0, 1)
        dense = F.cross_entropy(colour(patches), batch.colours.flatten(), weight_colour)
        dense = dense + F.cross_entropy(shape(patches), batch.shapes.flatten(), weight_shape)
        return dense + scene_weight * attribute_loss(scene(states[:, 0]), batch.attributes)

    model.train()
    return fit((model, colour, shape, scene), loss_of, steps=steps, lr=3e-3, muon_lr=1e-2, label=role)


def build_dino_mmd(job: Job) -> Record:
    """Train the encoder behind DINO-MMD, which reads the class token, so that the scene weighs more there."""
    torch.manual_seed(13)
    model = _dinov2(width=64, depth=3, heads=2)
    record = _build_teacher(job, "dino_mmd", model, seed=13, steps=job.steps(1400), scene_weight=2.0)
    model = Dinov2WithRegistersModel.from_pretrained(job.out / "dino_mmd", dtype=torch.float32).eval()
    return {**record, "class_token_probe": _probe_class_token(model, job)}


def _probe_class_token(model: Any, job: Job) -> dict[str, float]:
    """Read the scene's attributes linearly from the class token."""
    batches = (make_batch(PROBE_SEED, 0, job.scenes(2048)), held_out(job.scenes(512)))
    with torch.no_grad():
        train, test = (
            torch.cat([model(pixel_values=normalise(p, IMAGENET)).pooler_output for p in b.images.split(256)])
            for b in batches
        )
    head = nn.Linear(train.shape[1], len(attribute_labels()))
    fit(
        (head,),
        lambda _: attribute_loss(head(train), batches[0].attributes),
        steps=300,
        lr=2e-2,
        label="dino_mmd probe",
    )
    with torch.no_grad():
        return attribute_accuracy(head(test), batches[1].attributes)
