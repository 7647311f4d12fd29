"""Frozen networks that say how different two pictures look, differentiable in the pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from prx import loaders, modelfiles
from prx.errors import UserError
from prx.images import IMAGENET_MEAN, IMAGENET_STD
from prx.interfaces import RunShape, StepView

EPS = 1e-8
SMALLEST = {"vgg16": 16, "resnet": 4}
# Where `features` of VGG16 has its convolutions; a ReLU follows each, a pooling each group.
CONVOLUTIONS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
HEADS = "functional/image/lpips_models/vgg.pth"


def kind(path: str) -> str:
    """Tell which network a folder holds, without its weights.

    Raises:
        UserError: It is none of the known ones.
    """
    found = loaders.read_config(path)
    name = found.get("architecture") or found.get("model_type")
    if name not in SMALLEST:
        raise UserError(f"perceptual network {path!r} is a {name!r}, must be one of {', '.join(sorted(SMALLEST))}")
    return str(name)


@lru_cache(maxsize=2)
def shared(path: str, device: str) -> PerceptualNetwork:
    """Give the network that this process already holds: it is frozen, and no module owns it."""
    return PerceptualNetwork(path, torch.device(device))


class PerceptualNetwork:
    """LPIPS: squared distance of unit-length features at several depths, weighted per channel, summed.

    A `vgg16` folder, with torchvision's keys as in timm/vgg16.tv_in1k, is weighted by the linear heads that
    LPIPS learned from human judgements. A `resnet` (transformers' classes; the embedded world's inception
    role) has no such heads: every channel weighs the same, and the depths are averaged.
    Both expect ImageNet's channel statistics. Where a run trains on the network that FID looks through, as
    with the embedded world's inception role, FID is no independent judge any more.
    Source: Zhang et al. 2018 (arXiv:1801.03924). The heads are those of LPIPS 0.1 (BSD 2-clause, copyright
    2018 Zhang, Isola, Efros, Shechtman, Wang), read from the installed torchmetrics package.
    """

    def __init__(self, path: str, device: torch.device) -> None:
        found = Vgg16(path) if kind(path) == "vgg16" else ResNet(path)
        self.backbone = found.to(device).eval().requires_grad_(False)
        self.mean = (2 * torch.tensor(IMAGENET_MEAN, device=device) - 1).view(1, 3, 1, 1)
        self.std = (2 * torch.tensor(IMAGENET_STD, device=device)).view(1, 3, 1, 1)

    def features(self, images: Tensor) -> list[Tensor]:
        """Compute features of unit length over channels, [B, C', H', W'] each, of images in [-1, 1]."""
        return [_unit(found.float()) for found in self.backbone((images - self.mean) / self.std)]

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        """Compare images [B, 3, S, S] in [-1, 1], one by one: [B]; no gradient reaches `second`."""
        with torch.no_grad():
            wanted = self.features(second)
        total = first.new_zeros(len(first), dtype=torch.float32)
        for here, there, head in zip(self.features(first), wanted, self.backbone.heads(), strict=True):
            # A matrix product would fall back to bfloat16 under autocast; this sum does not.
            weighted = (here - there).square() * head.view(-1, 1, 1)
            total = total + weighted.sum(dim=1).mean(dim=(1, 2))
        return total


def _unit(features: Tensor) -> Tensor:
    """Scale to unit length; smooth where every channel is silent, unlike a plain norm."""
    return features / (features.square().sum(dim=1, keepdim=True) + EPS).sqrt()


class Vgg16(nn.Module):
    """The convolutions of VGG16; gives the last activation before each pooling.

    Source: Simonyan and Zisserman 2014 (arXiv:1409.1556).
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        weights = _features(path)
        self.groups = nn.ModuleList(_group(weights, group) for group in CONVOLUTIONS)
        widths = [len(weights[f"features.{group[-1]}.bias"]) for group in CONVOLUTIONS]
        self.weights = nn.ParameterList(_heads(path, widths))

    def heads(self) -> list[Tensor]:
        """Give LPIPS's weight of every channel, [C'] for each depth."""
        return list(self.weights)

    def forward(self, images: Tensor) -> Iterator[Tensor]:
        """Give the activations of the five depths."""
        for group in self.groups:
            images = group(images)
            yield images


class ResNet(nn.Module):
    """A residual network of transformers; gives the first convolution's output and every stage's."""

    def __init__(self, path: str) -> None:
        from transformers import ResNetModel

        super().__init__()
        self.model = loaders.load(ResNetModel, path, dtype=torch.float32)
        config = self.model.config
        self.widths = [config.embedding_size, *config.hidden_sizes]

    def heads(self) -> list[Tensor]:
        """Weigh all channels of a depth alike and all depths alike: the distance is in 0..4."""
        device = self.model.device
        return [torch.full((width,), 1 / len(self.widths), device=device) for width in self.widths]

    def forward(self, images: Tensor) -> Iterator[Tensor]:
        """Give the activations of every depth."""
        images = self.model.embedder.embedder(images)
        yield images
        images = self.model.embedder.pooler(images)
        for stage in self.model.encoder.stages:
            images = stage(images)
            yield images


def _features(path: str) -> dict[str, Tensor]:
    """Read the tensors of the convolutions alone: the classifier behind them is eight times their size."""
    from safetensors import SafetensorError, safe_open

    names = [f"features.{number}.{what}" for group in CONVOLUTIONS for number in group for what in ("weight", "bias")]
    found: dict[str, Tensor] = {}
    for file in modelfiles.weight_files(loaders.folder(path), "model", loaders.place(path).how):
        try:
            with safe_open(file, framework="pt") as tensors:
                found |= {name: tensors.get_tensor(name).float() for name in set(names) & set(tensors.keys())}
        except SafetensorError as error:
            raise UserError(f"{path!r}: {file} cannot be read ({error})") from error
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(f"{path!r}: the weights lack {len(missing)} tensors of VGG16, the first is {missing[0]}")
    return found


def _group(weights: dict[str, Tensor], numbers: tuple[int, ...]) -> nn.Sequential:
    """Build the pooling before a group of convolutions, and the group."""
    layers: list[nn.Module] = [nn.MaxPool2d(2)] if numbers[0] else []
    for number in numbers:
        weight, bias = weights[f"features.{number}.weight"], weights[f"features.{number}.bias"]
        convolution = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
        convolution.load_state_dict({"weight": weight, "bias": bias})
        layers += [convolution, nn.ReLU()]
    return nn.Sequential(*layers)


def _heads(path: str, widths: list[int]) -> list[Tensor]:
    """Read LPIPS's heads for VGG16, [C'] for each depth.

    The package is found, not imported: importing it would import torchvision where that is installed.

    Raises:
        UserError: The network is narrower or wider than the VGG16 that the heads belong to.
    """
    package = find_spec("torchmetrics")
    if package is None or not package.submodule_search_locations:
        raise UserError("LPIPS's heads are part of torchmetrics, which is not installed")
    file = Path(package.submodule_search_locations[0]) / HEADS
    found = torch.load(file, map_location="cpu", weights_only=True)
    heads = [found[f"lin{depth}.model.1.weight"].flatten() for depth in range(len(CONVOLUTIONS))]
    wanted = [len(head) for head in heads]
    if widths != wanted:
        raise UserError(f"{path!r}: LPIPS's heads need a VGG16 of widths {wanted}, got {widths}")
    return heads


def unmet(shape: RunShape) -> list[tuple[str, str]]:
    """Find what keeps a perceptual loss from working: it compares predicted pictures, not latents."""
    return [] if "pixels" in shape.provides else [("use", "compares pictures, needs tokenizer.use: pixels")]


def gated(distance: Callable[[Tensor, Tensor], Tensor], view: StepView, max_t: float) -> Tensor:
    """Average a distance [B] between the estimate and the clean image over the batch, a scalar.

    Samples noisier than `max_t` are left out of the computation and count as zero. Dividing by the whole
    batch, not by how many were left, keeps the loss independent of the micro-batch.
    """
    assert view.estimate is not None
    chosen = view.sample.t <= max_t
    if not chosen.any():
        return view.estimate.new_zeros(())
    return distance(view.estimate[chosen], view.sample.clean[chosen]).sum() / len(chosen)
