"""Small random networks, saved in the folder format of the real ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ResNetConfig,
    ResNetForImageClassification,
)
from transformers.utils import logging

VIT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
GRID = {"image_size": 16, "patch_size": 8}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"}
PREPROCESSOR = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
LABELS = ["background=red", "background=blue", "shape=circle", "shape=square", "shape=none"]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    logging.disable_progress_bar()


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of random networks by role."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("weights")
    labels = {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}
    models = {
        "clip": CLIPVisionModelWithProjection(CLIPVisionConfig(**VIT, **GRID, projection_dim=10)),
        "dino": Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**VIT, **GRID)),
        "dinov3": DINOv3ViTModel(DINOv3ViTConfig(**VIT, **GRID)),
        "inception": ResNetForImageClassification(ResNetConfig(**RESNET, num_labels=4)),
        "reader": ResNetForImageClassification(ResNetConfig(**RESNET, **labels)),
    }
    sizes = {
        "clip": {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}},
        "dino": {"size": {"height": 16, "width": 16}},
    }
    for role, model in models.items():
        model.save_pretrained(root / role)
        settings = PREPROCESSOR | sizes.get(role, {"size": 16})
        (root / role / "preprocessor_config.json").write_text(json.dumps(settings))
    return {role: root / role for role in models}


@pytest.fixture(scope="session")
def images() -> Tensor:
    """Forty images of one size."""
    return random_images(40, seed=1)


def random_images(num: int, *, seed: int, height: int = 16, width: int = 16, high: int = 256) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(high, (num, 3, height, width), dtype=torch.uint8, generator=generator)
