"""Embed images with frozen networks under versioned preprocessing.

Shape letters: B batch, H W image grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation import inception, weights
from evaluation.preprocessing import PREPROCESSOR_FILE, Preprocessing, checked_images, read_preprocessing

ROLES = ("clip", "dino", "inception")
BATCH_SIZE = 64


class Extractor:
    """Embed uint8 images with one frozen network.

    `version` freezes role, preprocessing and weights: embeddings of equal version are comparable, others are
    not.

    Shapes: uint8 [B, 3, H, W] -> float32 [B, width], on the CPU.
    """

    def __init__(
        self,
        name: str,
        version: str,
        width: int,
        preprocess: Preprocessing | inception.AsGiven,
        network: Callable[[Tensor], Tensor],
        *,
        unit_length: bool,
        device: str | torch.device = "cpu",
    ) -> None:
        self.name = name
        self.version = version
        self.width = width
        self.preprocess = preprocess
        self.device = torch.device(device)
        self._network = network
        self._unit_length = unit_length

    def embed(self, images: Tensor, *, batch_size: int = BATCH_SIZE) -> Tensor:
        """Return one embedding per image.

        Raises: ValueError for anything but uint8 RGB, or a batch size below 1.
        """
        checked_images(images)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        parts = [self._embed_batch(batch) for batch in images.split(batch_size)] if len(images) else []
        return torch.cat(parts) if parts else torch.empty(0, self.width)

    @torch.no_grad()
    def _embed_batch(self, images: Tensor) -> Tensor:
        embeddings = self._network(self.preprocess(images.to(self.device))).float()
        if self._unit_length:
            embeddings = F.normalize(embeddings, dim=1)
        return embeddings.cpu()


def load_extractor(role: str, path: str | Path, *, device: str | torch.device = "cpu") -> Extractor:
    """Load the network of a role from a local folder or hub id, safetensors only.

    The inception role also takes `torch-fidelity`, the network of published FID (`evaluation.inception`).

    Raises: ValueError for an unknown role, a model type the role cannot use, or weights that do not fill the
        model; FileNotFoundError naming the missing folder or file.
    """
    if role not in ROLES:
        raise ValueError(f"extractor role must be one of {', '.join(ROLES)}, got {role!r}")
    if role == "inception" and inception.is_published(path):
        return _published_inception(path, device)
    folder = weights.checked_folder(path, extra_files=(PREPROCESSOR_FILE,))
    loaded = _LOADERS[role](folder, weights.read_config(folder), torch.device(device))
    preprocess = read_preprocessing(role, folder, loaded.image_size)
    version = f"{role}:{preprocess.version}:{weights.folder_hash(folder)}"
    return Extractor(
        role,
        version,
        loaded.width,
        preprocess,
        loaded.network,
        unit_length=role != "inception",
        device=device,
    )


def _published_inception(path: str | Path, device: str | torch.device) -> Extractor:
    network, digest = inception.load_published(path, torch.device(device))
    preprocess = inception.AsGiven()
    version = f"inception:{preprocess.version}:{digest}"
    return Extractor("inception", version, inception.WIDTH, preprocess, network, unit_length=False, device=device)


@dataclass(frozen=True)
class _Loaded:
    network: Callable[[Tensor], Tensor]
    width: int
    image_size: int | None


def _load_clip(folder: Path, config: dict[str, Any], device: torch.device) -> _Loaded:
    from transformers import CLIPConfig, CLIPVisionConfig, CLIPVisionModelWithProjection

    _check_model_type("clip", folder, config, ("clip", "clip_vision_model"))
    if config["model_type"] == "clip":
        # A full model names its projection at the top; the vision part of the file may hold the class
        # default.
        full = CLIPConfig.from_pretrained(folder, local_files_only=True)
        settings = full.vision_config
        settings.projection_dim = full.projection_dim
    else:
        settings = CLIPVisionConfig.from_pretrained(folder, local_files_only=True)
    model = weights.load_model(CLIPVisionModelWithProjection, folder, config=settings).to(device)
    return _Loaded(lambda pixels: model(pixels).image_embeds, settings.projection_dim, settings.image_size)


def _load_dino(folder: Path, config: dict[str, Any], device: torch.device) -> _Loaded:
    import transformers

    classes = {
        "dinov2_with_registers": "Dinov2WithRegistersModel",
        "dinov3_vit": "DINOv3ViTModel",
        "dinov2": "Dinov2Model",
    }
    model_type = _check_model_type("dino", folder, config, tuple(classes))
    model = weights.load_model(getattr(transformers, classes[model_type]), folder).to(device)
    # last_hidden_state has passed the final norm; its first token is the class token.
    return _Loaded(
        lambda pixels: model(pixels).last_hidden_state[:, 0],
        model.config.hidden_size,
        model.config.image_size,
    )


def _load_inception(folder: Path, config: dict[str, Any], device: torch.device) -> _Loaded:
    from transformers import ResNetForImageClassification

    _check_model_type("inception", folder, config, ("resnet",))
    model = weights.load_model(ResNetForImageClassification, folder).to(device)
    return _Loaded(
        lambda pixels: model.resnet(pixels).pooler_output.flatten(1), model.config.hidden_sizes[-1], None
    )


_LOADERS: dict[str, Callable[[Path, dict[str, Any], torch.device], _Loaded]] = {
    "clip": _load_clip,
    "dino": _load_dino,
    "inception": _load_inception,
}


def _check_model_type(role: str, folder: Path, config: dict[str, Any], choices: tuple[str, ...]) -> str:
    model_type = config.get("model_type")
    if model_type not in choices:
        raise ValueError(
            f"{folder / weights.CONFIG_FILE}: model_type for role {role} must be one of "
            f"{', '.join(choices)}, got {model_type!r}"
        )
    return model_type
