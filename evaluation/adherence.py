"""Read attributes back from images and score them against what was asked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation import weights
from evaluation.features import BATCH_SIZE
from evaluation.preprocessing import PREPROCESSOR_FILE, Preprocessing, checked_images, read_preprocessing

Attributes = Mapping[str, str]


class AttributeReader:
    """Read one value per attribute from uint8 images.

    Shapes: uint8 [B, 3, H, W] -> B dictionaries.
    """

    def __init__(
        self,
        choices: Mapping[str, Mapping[int, str]],
        version: str,
        preprocess: Preprocessing,
        network: Callable[[Tensor], Tensor],
        *,
        device: str | torch.device = "cpu",
    ) -> None:
        self.choices = {name: dict(values) for name, values in choices.items()}
        self.version = version
        self.preprocess = preprocess
        self.device = torch.device(device)
        self._network = network

    def read(self, images: Tensor, *, batch_size: int = BATCH_SIZE) -> list[dict[str, str]]:
        """Return the most likely value of every attribute for each image.

        Raises: ValueError for anything but uint8 RGB.
        """
        checked_images(images)
        batches = images.split(batch_size) if len(images) else ()
        return [found for batch in batches for found in self._read_batch(batch)]

    @torch.no_grad()
    def _read_batch(self, images: Tensor) -> list[dict[str, str]]:
        logits = self._network(self.preprocess(images.to(self.device))).cpu()
        found: list[dict[str, str]] = [{} for _ in range(len(images))]
        for name, values in self.choices.items():
            columns = list(values)
            for row, best in enumerate(logits[:, columns].argmax(dim=1).tolist()):
                found[row][name] = values[columns[best]]
        return found


def load_reader(path: str | Path, *, device: str | torch.device = "cpu") -> AttributeReader:
    """Load a classifier whose `config.id2label` entries read "attribute=value".

    Raises: FileNotFoundError naming the missing file; ValueError for another model type or label form.
    """
    from transformers import ResNetForImageClassification

    folder = weights.checked_folder(path, extra_files=(PREPROCESSOR_FILE,))
    config = weights.read_config(folder)
    if config.get("model_type") != "resnet":
        found = config.get("model_type")
        raise ValueError(f"{folder / weights.CONFIG_FILE}: model_type must be resnet, got {found!r}")
    model = weights.load_model(ResNetForImageClassification, folder).to(device)
    choices = group_labels(model.config.id2label, folder)
    preprocess = read_preprocessing("inception", folder, None)
    version = f"reader:{preprocess.version}:{weights.folder_hash(folder)}"
    return AttributeReader(choices, version, preprocess, lambda pixels: model(pixels).logits, device=device)


def group_labels(id2label: Mapping[Any, str], folder: Path) -> dict[str, dict[int, str]]:
    """Group "attribute=value" labels by attribute, keeping each value's logit."""
    grouped: dict[str, dict[int, str]] = defaultdict(dict)
    for index, label in id2label.items():
        name, sign, value = str(label).partition("=")
        if not (name and sign and value):
            raise ValueError(
                f"{folder / weights.CONFIG_FILE}: id2label.{index} must read attribute=value, got {label!r}"
            )
        grouped[name][int(index)] = value
    return dict(grouped)


def adherence(predicted: Sequence[Attributes], wanted: Sequence[Attributes]) -> tuple[float, float]:
    """Return mean and standard error, over images, of the share of wanted attributes that were read back.

    Images that all agree have no spread, and still leave doubt: two images at 0 and two at 1 are then added for the
    error, as for the shares of `evaluation.manifold` (Agresti and Coull 1998).

    Raises: ValueError for unequal lengths, fewer than two images, an image that wants nothing, or an
        attribute that was never read.
    """
    shares = np.array([np.mean(list(hits.values())) for hits in _hits(predicted, wanted)])
    doubted = shares if np.ptp(shares) > 0 else np.append(shares, [0.0, 0.0, 1.0, 1.0])
    return float(shares.mean()), float(doubted.std(ddof=1) / np.sqrt(len(doubted)))


def adherence_by_attribute(predicted: Sequence[Attributes], wanted: Sequence[Attributes]) -> dict[str, float]:
    """Return, for each attribute, the share of images that want it and show it."""
    collected: dict[str, list[bool]] = defaultdict(list)
    for hits in _hits(predicted, wanted):
        for name, hit in hits.items():
            collected[name].append(hit)
    return {name: float(np.mean(values)) for name, values in collected.items()}


def _hits(predicted: Sequence[Attributes], wanted: Sequence[Attributes]) -> list[dict[str, bool]]:
    if len(predicted) != len(wanted):
        raise ValueError(
            f"adherence: predicted and wanted must have equal lengths, got {len(predicted)} and {len(wanted)}"
        )
    if len(wanted) < 2:
        raise ValueError(f"adherence: wanted must have at least 2 images, got {len(wanted)}")
    pairs = zip(predicted, wanted, strict=True)
    return [_image_hits(row, found, asked) for row, (found, asked) in enumerate(pairs)]


def _image_hits(row: int, found: Attributes, asked: Attributes) -> dict[str, bool]:
    if not asked:
        raise ValueError(
            f"adherence: wanted must name an attribute for every image, got none for image {row}"
        )
    unread = [name for name in asked if name not in found]
    if unread:
        raise ValueError(
            f"adherence: wanted attributes of image {row} must be among {', '.join(found)}, "
            f"got {', '.join(unread)}"
        )
    return {name: found[name] == value for name, value in asked.items()}
